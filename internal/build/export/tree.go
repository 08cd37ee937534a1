package export

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/result"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/tarfs"
)

// tree sends the files of a result: as one archive (type tar), or for a folder of the asker (type local), who gives the files the owner it wants. Several platforms have a folder each
// unless platform-split=false; attestations are files beside.
func (x *exporting) tree(ctx context.Context) error {
	if x.job.Session == nil || x.job.Session.Outputs == nil {
		return errs.New(errs.Invalid, "the client takes no output")
	}
	if x.opts.kind == kindLocal {
		r := x.stream(ctx, x.writeTrees)
		err := x.job.Session.Outputs.Tree(ctx, x.id, r)
		return errors.Join(err, r.Close())
	}
	w, err := x.job.Session.Outputs.File(ctx, x.id, map[string]string{})
	if err != nil {
		return err
	}
	x.say("sending tarball", 0, 0, false)
	count := &counting{w: w, tell: func(n int64) { x.say("sending tarball", n, 0, false) }}
	err = errors.Join(x.writeTrees(ctx, count), w.Close())
	x.say("sending tarball", count.n, count.n, err == nil)
	return err
}

// say tells how far a part of the export is.
func (x *exporting) say(id string, current, total int64, done bool) {
	if x.job.Progress != nil {
		x.job.Progress.Status(id, current, total, done)
	}
}

// counting tells every few megabytes how much went through.
type counting struct {
	w       io.Writer
	n, told int64
	tell    func(int64)
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if c.n += int64(n); c.n-c.told >= 4<<20 {
		c.told = c.n
		c.tell(c.n)
	}
	return n, err
}

// writeTrees writes the whole as one archive.
func (x *exporting) writeTrees(ctx context.Context, w io.Writer) error {
	if t := x.targets[0]; len(x.targets) == 1 && !x.many() && t.epoch == nil && len(t.attests) == 0 {
		return x.writeTree(ctx, t, "", w)
	}
	split := x.many()
	if x.opts.platformSplit != nil {
		split = *x.opts.platformSplit
	}
	tw := tar.NewWriter(w)
	names := map[string]bool{}
	for _, t := range x.targets {
		p := part{x: x, t: t, tw: tw, names: names, when: x.now().Truncate(time.Second)}
		if t.epoch != nil {
			p.when = *t.epoch
		}
		if folder := strings.ReplaceAll(t.id, "/", "_"); split {
			p.folder = folder
		} else if x.many() {
			p.suffix = "." + folder
		}
		if err := p.write(ctx); err != nil {
			return err
		}
	}
	return tw.Close()
}

// writeTree writes the files of one platform, all names below folder.
func (x *exporting) writeTree(ctx context.Context, t *target, folder string, w io.Writer) error {
	if t.chain == "" {
		return tar.NewWriter(w).Close()
	}
	m, err := x.Trees.View(ctx, t.chain)
	if err != nil {
		return err
	}
	return errors.Join(tarfs.Write(ctx, m.Root, w, tarfs.WriteOptions{Base: folder}), m.Close())
}

// part is what one platform adds to an archive of files.
type part struct {
	x      *exporting
	t      *target
	tw     *tar.Writer
	folder string
	suffix string          // of the names of attestations, when platforms share a folder
	names  map[string]bool // of what was written, when platforms share a folder
	when   time.Time
	files  []Subject
}

func (p *part) write(ctx context.Context) error {
	if p.folder != "" {
		if err := p.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: p.folder + "/", Mode: 0o755, ModTime: p.when, Format: tar.FormatPAX}); err != nil {
			return err
		}
	}
	r := p.x.stream(ctx, func(ctx context.Context, w io.Writer) error { return p.x.writeTree(ctx, p.t, p.folder, w) })
	err := p.copy(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	return p.attest(ctx)
}

// copy passes the files on, and notes their digests when there are attestations about them.
func (p *part) copy(r io.Reader) error {
	tr := tar.NewReader(r)
	buf := make([]byte, 256<<10)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if p.folder == "" && p.names[hdr.Name] && hdr.Typeflag == tar.TypeDir {
			continue // of another platform, too
		}
		if p.names[hdr.Name] {
			return errs.New(errs.Conflict, "several platforms have a file /%s: export them without platform-split=false", hdr.Name)
		}
		p.names[hdr.Name] = true
		if p.t.epoch != nil {
			hdr.ModTime = p.when
		}
		hdr.AccessTime, hdr.ChangeTime, hdr.Format = time.Time{}, time.Time{}, tar.FormatPAX
		if err := p.tw.WriteHeader(hdr); err != nil {
			return err
		}
		if hdr.Typeflag != tar.TypeReg {
			continue
		}
		if err := p.content(hdr, tr, buf); err != nil {
			return err
		}
	}
	_, err := io.CopyBuffer(io.Discard, r, buf)
	return err
}

func (p *part) content(hdr *tar.Header, r io.Reader, buf []byte) error {
	var w io.Writer = p.tw
	sum := digest.Canonical.Digester()
	if len(p.t.attests) > 0 {
		w = io.MultiWriter(p.tw, sum.Hash())
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
	if len(p.t.attests) > 0 {
		name := strings.TrimPrefix(hdr.Name, p.folder+"/")
		p.files = append(p.files, Subject{name, result.ToDigestMap(sum.Digest())})
	}
	return err
}

// attest adds the attestations as files.
func (p *part) attest(ctx context.Context) error {
	for _, a := range p.t.attests {
		if a.inlineOnly {
			continue
		}
		stmt, err := a.statement(ctx, p.files)
		if err != nil {
			return err
		}
		data, err := json.MarshalIndent(stmt, "", "  ")
		if err != nil {
			return err
		}
		name := p.x.opts.attestPrefix + path.Base(a.path)
		if p.suffix != "" {
			ext := path.Ext(name)
			name = strings.TrimSuffix(name, ext) + p.suffix + ext
		}
		name = path.Join(p.folder, name)
		if p.names[name] {
			return errs.New(errs.Conflict, "an attestation and a file of the result are both called %s: choose an attestation-prefix", name)
		}
		p.names[name] = true
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: p.when, Format: tar.FormatPAX}
		if err := p.tw.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := p.tw.Write(data); err != nil {
			return err
		}
	}
	return nil
}
