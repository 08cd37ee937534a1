package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/compressed"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/task"
)

// maxMembers bounds what an image archive may list: it is an archive of blobs, not of files.
const maxMembers = 100_000

// spool is an archive on disk whose members can be read in any order. The file has no name: it is gone with the process.
type spool struct {
	f       *os.File
	members map[string]member
}

type member struct {
	off, size int64
	link      string
	sum       digest.Digest // of members below blobs/sha256, which is also their name
}

func newSpool(dir string) (*spool, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return &spool{f: os.NewFile(uintptr(fd), dir+"/load"), members: map[string]member{}}, nil
	}
	// Not every file system has O_TMPFILE.
	f, err := os.CreateTemp(dir, "load-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return &spool{f: f, members: map[string]member{}}, nil
}

// fill copies the members of the archive.
func (sp *spool) fill(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	buf := make([]byte, 256<<10)
	var off int64
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return archiveError(err)
		}
		if n == maxMembers {
			return errs.New(errs.Invalid, "archive has more than %d entries: it is not an image archive", maxMembers)
		}
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		switch hdr.Typeflag {
		case tar.TypeSymlink:
			sp.members[name] = member{link: strings.TrimPrefix(path.Join("/", path.Dir(name), hdr.Linkname), "/")}
			continue
		case tar.TypeLink:
			sp.members[name] = member{link: strings.TrimPrefix(path.Clean("/"+hdr.Linkname), "/")}
			continue
		case tar.TypeReg:
		default:
			continue
		}
		m := member{off: off}
		if m.size, m.sum, err = sp.add(ctx, name, tr, buf); err != nil {
			return archiveError(err)
		}
		off += m.size
		sp.members[name] = m
	}
	_, err := io.CopyBuffer(io.Discard, r, buf) // so that the sender is not cut off
	return err
}

// add copies one member. One that is named by a digest must have it.
func (sp *spool) add(ctx context.Context, name string, r io.Reader, buf []byte) (int64, digest.Digest, error) {
	in := struct{ io.Reader }{&ctxReader{ctx, r}}
	hex, ok := strings.CutPrefix(name, "blobs/sha256/")
	if !ok {
		n, err := io.CopyBuffer(struct{ io.Writer }{sp.f}, in, buf)
		return n, "", err
	}
	h := digest.SHA256.Digester()
	n, err := io.CopyBuffer(io.MultiWriter(sp.f, h.Hash()), in, buf)
	if err == nil && h.Digest().Encoded() != hex {
		err = errs.New(errs.Invalid, "archive: %s has digest %s", name, h.Digest())
	}
	return n, h.Digest(), err
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func archiveError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Invalid, "archive is damaged or cut off: %w", err)
	}
	return err
}

// open reads a member; links lead to other members and nowhere else.
func (sp *spool) open(name string) (*io.SectionReader, member, error) {
	asked := name
	for range 8 {
		name = strings.TrimPrefix(path.Clean("/"+name), "/")
		m, ok := sp.members[name]
		if !ok {
			return nil, m, errs.New(errs.Invalid, "archive has no %s", asked)
		}
		if m.link == "" {
			return io.NewSectionReader(sp.f, m.off, m.size), m, nil
		}
		name = m.link
	}
	return nil, member{}, errs.New(errs.Invalid, "archive: %s is a link that leads nowhere", asked)
}

func (sp *spool) has(name string) bool { _, ok := sp.members[name]; return ok }

func (sp *spool) read(name string) ([]byte, error) {
	r, m, err := sp.open(name)
	if err != nil {
		return nil, err
	}
	if m.size > maxConfig {
		return nil, errs.New(errs.Invalid, "archive: %s has %d bytes, more than %d", name, m.size, maxConfig)
	}
	return io.ReadAll(r)
}

func (sp *spool) json(name string, v any) error {
	data, err := sp.read(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return errs.New(errs.Invalid, "archive: %s: %w", name, err)
	}
	return nil
}

// packed is an image of an archive, before it is unpacked: its config and, for each of its layers, a member.
type packed struct {
	raw    []byte
	layers []string
	refs   []reference.Ref
	// digests of the layer members as their manifest states them; nil when it states none.
	blobs []blob
	// doc is the manifest that the archive has for the image; nil for none.
	doc *manifest.Document
	// sibling: it is another platform's image of an index, and is not told by itself.
	sibling bool
}

// Load reads an archive and adds its images, all of them or none.
func (s *Images) Load(ctx context.Context, r io.Reader, progress Progress) ([]string, error) {
	return s.LoadFor(ctx, r, nil, progress)
}

// LoadFor implements [Platforms].
func (s *Images) LoadFor(ctx context.Context, r io.Reader, wanted []manifest.Platform, progress Progress) ([]string, error) {
	if progress == nil {
		progress = func(string, string, int64, int64) {}
	}
	s.busy.Add(1)
	defer s.busy.Add(-1)
	plain, err := compressed.Reader(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer plain.Close()
	sp, err := newSpool(s.root)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer sp.f.Close()
	if err := sp.fill(ctx, plain); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	var images []packed
	if len(wanted) == 0 {
		images, err = sp.images(ctx, s.platform)
	} else {
		images, err = sp.imagesFor(ctx, wanted)
	}
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	s.gate.begin()
	defer s.gate.end()
	var names []string
	docs := sp.manifests()
	var indexes []indexed
	if len(wanted) == 0 {
		indexes = sp.indexes()
		images = siblings(images, indexes)
	}
	for i := range images {
		if err := s.unpack(ctx, sp, images[i], progress); err != nil {
			return nil, fmt.Errorf("load: %w", err)
		}
		sp.attach(&images[i], docs)
		if images[i].doc != nil && !s.formsHere(ctx, sp, images[i]) {
			images[i].doc = nil
		}
		if err := s.keepForms(ctx, sp, images[i]); err != nil {
			return nil, fmt.Errorf("load: %w", err)
		}
	}
	for _, img := range images {
		var came []digest.Digest
		if img.doc != nil {
			came = append(came, img.doc.Digest)
		}
		e, err := s.add(ctx, img.raw, img.refs, came...)
		if err != nil {
			return nil, fmt.Errorf("load: %w", err)
		}
		for _, ref := range img.refs {
			names = append(names, ref.Familiar())
		}
		if len(img.refs) == 0 && !img.sibling {
			names = append(names, namelessOf(e.id, indexes).String())
		}
	}
	if err := s.addIndexes(ctx, sp, indexes); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	return names, nil
}

// images finds out which of the formats it is.
func (sp *spool) images(ctx context.Context, p manifest.Platform) ([]packed, error) {
	switch {
	case sp.has("manifest.json"):
		return sp.dockerImages()
	case sp.has("index.json"):
		return sp.ociImages(p)
	case sp.has("repositories"):
		return sp.oldImages(ctx)
	}
	return nil, errs.New(errs.Invalid, "archive holds no image: it has none of manifest.json, index.json and repositories (for a plain file tree, use import)")
}

// imagesFor finds the images of some platforms. In an archive that is both, Docker's list names one image of several, the layout all.
func (sp *spool) imagesFor(ctx context.Context, wanted []manifest.Platform) (found []packed, err error) {
	for _, p := range wanted {
		var all []packed
		if sp.has("index.json") {
			all, err = sp.ociImages(p)
		} else if all, err = sp.images(ctx, p); err == nil {
			all, err = fitting(all, p)
		}
		if err != nil {
			return nil, err
		}
		found = append(found, all...)
	}
	return found, nil
}

func fitting(all []packed, p manifest.Platform) (fit []packed, err error) {
	var others []string
	for _, img := range all {
		cfg, err := ParseConfig(img.raw)
		if err != nil {
			return nil, err
		}
		have := manifest.Platform{OS: cfg.OS, Arch: cfg.Architecture, Variant: cfg.Variant}
		if p.Match(have) > 0 {
			fit = append(fit, img)
		} else {
			others = append(others, have.String())
		}
	}
	if len(fit) == 0 {
		return nil, errs.New(errs.Invalid, "archive holds no image for %s, only for %s", p, strings.Join(others, ", "))
	}
	return fit, nil
}

// unpack applies the layers, side by side. Whatever it applied is a candidate for removal until an image names it.
func (s *Images) unpack(ctx context.Context, sp *spool, img packed, progress Progress) error {
	cfg, err := ParseConfig(img.raw)
	if err != nil {
		return err
	}
	if cfg.OS != "" && cfg.OS != "linux" {
		return errs.New(errs.Invalid, "image operating system %q cannot be used on this platform", cfg.OS)
	}
	if len(img.layers) != len(cfg.RootFS.DiffIDs) {
		return errs.New(errs.Invalid, "archive lists %d layers, the image config %d", len(img.layers), len(cfg.RootFS.DiffIDs))
	}
	if n := len(img.layers); n > manifest.MaxLayers {
		return errs.New(errs.Invalid, "archive lists %d layers, more than %d", n, manifest.MaxLayers)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var tell sync.Mutex
	var work sync.WaitGroup
	places := make(chan struct{}, 2*processors())
	var chain snapshot.ChainID
	var below <-chan struct{}
	for i, name := range img.layers {
		l := loadedLayer{name: name, parent: chain, diff: cfg.RootFS.DiffIDs[i], below: below, done: make(chan struct{})}
		if img.blobs != nil {
			l.blob = &img.blobs[i]
		}
		chain, below = snapshot.ChainOf(chain, l.diff), l.done
		s.gate.candidate(loose{name: chain})
		// Begun in order, so that the layer that the others wait for always has a place.
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		work.Go(func() {
			defer func() { <-places }()
			err := s.unpackLayer(ctx, sp, l, func(id, status string, current, total int64) {
				tell.Lock()
				defer tell.Unlock()
				progress(id, status, current, total)
			})
			if err != nil {
				cancel(fmt.Errorf("layer %d (%s): %w", i+1, name, err))
				return
			}
			close(l.done)
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

// loadedLayer is a layer of an archive.
type loadedLayer struct {
	name   string
	parent snapshot.ChainID
	diff   digest.Digest
	blob   *blob           // what its manifest says; may be nil
	below  <-chan struct{} // closed when the layer below is there; nil for the lowest
	done   chan struct{}
}

func (s *Images) unpackLayer(ctx context.Context, sp *spool, l loadedLayer, progress Progress) (err error) {
	defer task.Contain(s.log, "load layer "+l.diff.String(), &err)
	if !sp.has(l.name) {
		return s.leftOut(ctx, l)
	}
	r, m, err := sp.open(l.name)
	if err != nil {
		return err
	}
	if l.blob != nil {
		if err := l.blob.check(m); err != nil {
			return err
		}
	}
	short := l.diff.Encoded()[:12]
	progress(short, "Loading layer", 0, m.size)
	plain := newPlain(ctx, &counter{r: r, tell: func(n int64) { progress(short, "Loading layer", n, m.size) }}, s.log)
	opts := snapshot.Stacking{MaxBytes: s.limits.layer(m.size), MaxEntries: s.limits.Entries}
	if l.below != nil {
		opts.Ready = func(ctx context.Context) error {
			select {
			case <-l.below:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	_, err = s.snaps.Stack(ctx, l.parent, l.diff, plain, opts)
	if err = errs.Also(err, plain.Close()); err == nil {
		progress(short, "Loading layer", m.size, m.size) // one that was there is not read
	}
	return err
}

// leftOut looks for a layer that the archive does not have, because whoever made it knew or believed that it is here.
func (s *Images) leftOut(ctx context.Context, l loadedLayer) error {
	_, err := s.snaps.Stat(ctx, snapshot.ChainOf(l.parent, l.diff))
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.Invalid, "archive has no %s, and the layer is not here either: save the image whole", l.name)
	}
	return err
}

// counter tells how far a reader is, not more often than every half megabyte.
type counter struct {
	r       io.Reader
	n, told int64
	tell    func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.n-c.told >= 512<<10 || err == io.EOF && c.n != c.told {
		c.told = c.n
		c.tell(c.n)
	}
	return n, err
}
