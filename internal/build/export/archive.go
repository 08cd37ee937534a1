package export

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/reference"
)

// An archive is an OCI layout as a tar; one of type docker has, besides, what `docker load` of any age reads:
//
//	blobs/sha256/<hex>   configs, manifests, indexes, layers, statements
//	index.json           what the names lead to
//	oci-layout
//	manifest.json        docker: config, names and layers
//
// A tar wants the length of a file before its bytes: layers whose compressed form is not known yet are compressed into an unnamed file first.

const (
	annotationName = "io.containerd.image.name"
	annotationRef  = ocispec.AnnotationRefName
	layoutStore    = "export" // the name that clients know the layout by
	layoutFile     = `{"imageLayoutVersion":"1.0.0"}`
)

// archive makes an archive or a layout of the result.
func (x *exporting) archive(ctx context.Context) (map[string]string, error) {
	if x.opts.kind == kindDocker && len(x.targets) > 1 && !x.opts.ociTypes(x.attested()) {
		return nil, errs.New(errs.Invalid, "a docker archive holds one platform: choose oci-mediatypes=true or type oci for several")
	}
	if err := x.finishAll(ctx); err != nil {
		return nil, err
	}
	outs, done, err := x.outgoings(ctx)
	defer done()
	if err != nil {
		return nil, err
	}
	sp := &spools{dir: x.Dir, files: map[digest.Digest]*os.File{}}
	defer sp.close()
	for _, out := range outs {
		if err := sp.settle(ctx, out); err != nil {
			return nil, err
		}
	}
	x.say("exporting layers", 0, 0, true)
	p, err := x.pack(ctx, outs)
	if err != nil {
		return nil, err
	}
	said, err := x.response(p)
	if err != nil {
		return nil, err
	}
	blobs := x.blobs(p, sp)
	if !x.opts.tar {
		return said, x.layout(ctx, p, blobs)
	}
	return said, x.sendArchive(ctx, p, blobs)
}

// spools keeps what was compressed, until it was copied.
type spools struct {
	dir   string
	files map[digest.Digest]*os.File
}

func (s *spools) close() {
	for _, f := range s.files {
		_ = f.Close() // it has no name any more, and nothing in it is wanted
	}
}

// settle compresses the layers that have no known form yet.
func (s *spools) settle(ctx context.Context, out image.Outgoing) error {
	for _, l := range out.Layers() {
		if _, ok := l.Known(); ok {
			continue
		}
		if err := s.add(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (s *spools) add(ctx context.Context, l image.OutgoingLayer) error {
	f, err := os.CreateTemp(s.dir, "layer-*.tmp")
	if err != nil {
		return err
	}
	if err := os.Remove(f.Name()); err != nil {
		return errors.Join(err, f.Close())
	}
	sum := digest.Canonical.Digester()
	n, err := image.Pour(ctx, l, io.MultiWriter(f, sum.Hash()))
	if err == nil {
		err = l.Sent(ocispec.Descriptor{Digest: sum.Digest(), Size: n})
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if old := s.files[sum.Digest()]; old != nil {
		return f.Close() // the same layer twice
	}
	s.files[sum.Digest()] = f
	return nil
}

// archived is a blob of an archive.
type archived struct {
	desc  ocispec.Descriptor
	write func(ctx context.Context, w io.Writer) error
}

func rawBlob(desc ocispec.Descriptor, raw []byte) archived {
	return archived{desc, func(_ context.Context, w io.Writer) error {
		_, err := w.Write(raw)
		return err
	}}
}

// blobs lists what belongs to the archive, each once, in an order that depends on the result alone.
func (x *exporting) blobs(p *parcel, sp *spools) (all []archived) {
	seen := map[digest.Digest]bool{}
	add := func(b archived) {
		if !seen[b.desc.Digest] {
			seen[b.desc.Digest] = true
			all = append(all, b)
		}
	}
	for _, img := range p.images {
		layers := img.out.Layers()
		for i, d := range img.doc.Manifest.Layers {
			add(archived{d, func(ctx context.Context, w io.Writer) error {
				return x.copyLayer(ctx, layers[i], d, sp.files[d.Digest], w)
			}})
		}
		add(rawBlob(img.doc.Manifest.Config, img.t.config))
		add(rawBlob(descriptor(img.doc), img.doc.Raw))
	}
	for _, a := range p.about {
		add(rawBlob(a.doc.Manifest.Config, a.blobs[a.doc.Manifest.Config.Digest]))
		for _, d := range a.doc.Manifest.Layers {
			add(rawBlob(d, a.blobs[d.Digest]))
		}
		add(rawBlob(descriptor(a.doc), a.doc.Raw))
	}
	if p.index != nil {
		add(rawBlob(descriptor(*p.index), p.index.Raw))
	}
	return all
}

// copyLayer writes a layer of which digest and size are known. Other bytes than those are an error: what was written is no use then.
func (x *exporting) copyLayer(ctx context.Context, l image.OutgoingLayer, d ocispec.Descriptor, spooled *os.File, w io.Writer) error {
	sum := digest.Canonical.Digester()
	both := io.MultiWriter(w, sum.Hash())
	if spooled != nil {
		if _, err := io.Copy(both, io.NewSectionReader(spooled, 0, d.Size)); err != nil {
			return err
		}
	} else if _, err := image.Pour(ctx, l, &bounded{both, d.Size}); err != nil {
		return err
	}
	if got := sum.Digest(); got != d.Digest {
		return errs.New(errs.Invalid, "layer %s is not to be had as %s any more: export it with force-compression=true", l.DiffID(), d.Digest)
	}
	return nil
}

// bounded refuses more bytes than a blob has.
type bounded struct {
	w    io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errs.New(errs.Invalid, "a layer has other bytes than it is known by: export it with force-compression=true")
	}
	return b.w.Write(p)
}

// listed is index.json: the root under each name.
func (x *exporting) listed(p *parcel) ([]byte, []ocispec.Descriptor, error) {
	n, err := x.notes()
	if err != nil {
		return nil, nil, err
	}
	d := descriptor(p.root())
	d.Annotations = map[string]string{ocispec.AnnotationCreated: p.created.Format(time.RFC3339)}
	if p.index == nil {
		d.Platform = plain(p.images[0].t.platform)
		maps.Copy(d.Annotations, n.of(exptypes.AnnotationManifestDescriptor, p.images[0].t))
	}
	maps.Copy(d.Annotations, n.of(exptypes.AnnotationIndexDescriptor, nil))
	list := []ocispec.Descriptor{}
	for _, r := range x.storeNames() {
		named := d
		named.Annotations = maps.Clone(d.Annotations)
		named.Annotations[annotationName], named.Annotations[annotationRef] = r.String(), r.Tag
		list = append(list, named)
	}
	if len(list) == 0 {
		list = append(list, d)
	}
	raw, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
	return raw, list, err
}

// dockerManifest is manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (x *exporting) dockerManifest(p *parcel, ref []reference.Ref) ([]byte, error) {
	m := dockerManifest{RepoTags: []string{}, Layers: []string{}}
	doc := p.images[x.leading(p)].doc
	m.Config = blobPath(doc.Manifest.Config.Digest)
	for _, l := range doc.Manifest.Layers {
		m.Layers = append(m.Layers, blobPath(l.Digest))
	}
	for _, r := range ref {
		m.RepoTags = append(m.RepoTags, r.Familiar())
	}
	return json.Marshal([]dockerManifest{m})
}

func blobPath(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// sendArchive writes the tar to the asker.
func (x *exporting) sendArchive(ctx context.Context, p *parcel, blobs []archived) error {
	if x.job.Session == nil || x.job.Session.Outputs == nil {
		return errs.New(errs.Invalid, "the client takes no output")
	}
	w, err := x.job.Session.Outputs.File(ctx, x.id, map[string]string{})
	if err != nil {
		return err
	}
	x.say("sending tarball", 0, 0, false)
	count := &counting{w: w, tell: func(n int64) { x.say("sending tarball", n, 0, false) }}
	err = errors.Join(x.writeArchive(ctx, p, blobs, count), w.Close())
	x.say("sending tarball", count.n, count.n, err == nil)
	return err
}

func (x *exporting) writeArchive(ctx context.Context, p *parcel, blobs []archived, w io.Writer) error {
	tw := tar.NewWriter(w)
	when := time.Unix(0, 0) // archives of equal results are equal
	if x.targets[0].epoch != nil {
		when = *x.targets[0].epoch
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: when}); err != nil {
			return err
		}
	}
	slices.SortStableFunc(blobs, func(a, b archived) int { return strings.Compare(string(a.desc.Digest), string(b.desc.Digest)) })
	for _, b := range blobs {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: blobPath(b.desc.Digest), Mode: 0o444, Size: b.desc.Size, ModTime: when}); err != nil {
			return err
		}
		if err := b.write(ctx, tw); err != nil {
			return err
		}
	}
	idx, _, err := x.listed(p)
	if err != nil {
		return err
	}
	files := map[string][]byte{"index.json": idx, "oci-layout": []byte(layoutFile)}
	if x.opts.kind == kindDocker {
		if files["manifest.json"], err = x.dockerManifest(p, x.storeNames()); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: int64(len(files[name])), ModTime: when}); err != nil {
			return err
		}
		if _, err := tw.Write(files[name]); err != nil {
			return err
		}
	}
	return tw.Close()
}

// layout writes the blobs into a folder of the asker's. BuildKit's clients write index.json themselves, by the descriptor of the response; others are told.
func (x *exporting) layout(ctx context.Context, p *parcel, blobs []archived) error {
	if x.job.Session == nil || x.job.Session.Blobs == nil {
		return errs.New(errs.Invalid, "the client takes no blobs: export with tar=true")
	}
	to := x.job.Session.Blobs
	for _, b := range blobs {
		r := x.stream(ctx, b.write)
		err := to.Write(ctx, layoutStore, b.desc.Digest, b.desc.Size, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("blob %s: %w", b.desc.Digest, err)
		}
	}
	_, list, err := x.listed(p)
	if err != nil {
		return err
	}
	for _, d := range list {
		name := d.Annotations[annotationRef]
		if name == "" {
			name = reference.DefaultTag
		}
		raw, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if err := to.SetRef(ctx, layoutStore, name, raw); err != nil && !errors.Is(err, errs.NotImplemented) {
			return err
		}
	}
	return nil
}
