package depot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/tarfs"
)

// How a layer comes in while its parent may be under way:
//
//	claim chain ─▶ there already, or somebody unpacks it: wait for that
//	      │
//	claim diff ─▶ files known from another parent ─▶ hard links ─┐
//	      │       somebody unpacks them: wait until they are there │
//	      ▼                                                        ▼
//	   unpack ─▶ (Base: wait for the parent) ─▶ digest ─▶ flush ─▶ wait for the parent ─▶ root attributes ─▶ rename ─▶ flush
//
// Who waits for another's unpacking of the same diff is let go as soon as that one begins to wait for its own parent: nobody waits for a
// chain above its own, so a diff that occurs twice in one image cannot wait for itself.

// Job is one layer for the driver to unpack.
type Job struct {
	Parent snapshot.ChainID
	Tree   *os.File // an empty directory
	Layer  io.Reader
	// Ready waits for the parent. The driver calls it before it looks at the parent's files.
	Ready   func(ctx context.Context) error
	Options tarfs.Options // the fields that the depot cares for are set
}

// Unpack writes a layer tar into a tree. The depot gives the root directory the attributes of the parent's, unless the tar describes it.
type Unpack func(ctx context.Context, job Job) (tarfs.Stats, error)

// work is the unpacking of one diff.
type work struct {
	settled chan struct{} // closed when the files are there, or are not to be waited for
	gone    chan struct{} // closed when the layer is published or given up
	once    sync.Once
	// Guarded by Depot.mu: what others may link.
	dir string // of the layer, while in new/; empty until its files are there
	rec layerFile
}

func (w *work) settle() { w.once.Do(func() { close(w.settled) }) }

// Stack is snapshot.Store's Stack.
func (d *Depot) Stack(ctx context.Context, parent snapshot.ChainID, want digest.Digest, r io.Reader, opts snapshot.Stacking, unpack Unpack) (snapshot.Layer, error) {
	if err := checkWant(want); err != nil {
		return snapshot.Layer{}, err
	}
	var release func()
	for {
		have, free, err := d.claim(ctx, snapshot.ChainOf(parent, want))
		if err != nil {
			return snapshot.Layer{}, err
		}
		if have == nil {
			release = free
			break
		}
		if opts.Hold != "" {
			err = d.Hold(ctx, opts.Hold, have.Chain)
		}
		if !errors.Is(err, errs.NotFound) { // else removed a moment ago
			return *have, errs.Also(err, d.settle(have.Chain, opts.Relaxed))
		}
	}
	defer release()
	in := &incoming{d: d, parent: parent, want: want, opts: opts, unpack: unpack}
	defer in.letGo()
	l, err := in.fromKnown(ctx, r == nil)
	if err == nil && l == nil {
		if r == nil {
			return snapshot.Layer{}, errs.New(errs.NotFound, "no layer with the diff id %s", want)
		}
		l, err = in.fresh(ctx, r)
	}
	if err != nil {
		return snapshot.Layer{}, fmt.Errorf("apply layer: %w", err)
	}
	return l.Layer, nil
}

func checkWant(want digest.Digest) error {
	if err := want.Validate(); err != nil || want.Algorithm() != digest.SHA256 {
		return errs.New(errs.Invalid, "layer digest %q is not a sha256 digest", string(want))
	}
	return nil
}

// incoming is one layer on its way. Its chain is claimed, unless want is empty.
type incoming struct {
	d      *Depot
	parent snapshot.ChainID
	want   digest.Digest
	opts   snapshot.Stacking
	unpack Unpack
	mine   *work // set while others may wait for these files
	held   bool  // the parent
	done   bool  // published: the hold is the layer's now
}

// ready waits for the parent and holds it. Once it was there, it stays.
func (in *incoming) ready(ctx context.Context) error {
	if in.held {
		return nil
	}
	if in.opts.Ready != nil {
		if in.mine != nil {
			in.mine.settle()
		}
		if err := in.opts.Ready(ctx); err != nil {
			return err
		}
	}
	if err := in.d.hold(in.parent); err != nil {
		return err
	}
	in.held = true
	return nil
}

func (in *incoming) letGo() {
	if in.held && !in.done {
		in.d.drop(in.parent)
	}
	if in.mine == nil {
		return
	}
	in.d.mu.Lock()
	if in.d.work[in.want] == in.mine {
		delete(in.d.work, in.want)
	}
	in.d.mu.Unlock()
	in.mine.settle()
	close(in.mine.gone)
}

// fromKnown makes the layer of files that are on disk already or are just being unpacked. nil: there are none, and this call is the one to unpack them.
// must asks to write them again from a layer that stands on other files, when links cannot do.
func (in *incoming) fromKnown(ctx context.Context, must bool) (*layer, error) {
	d := in.d
	for {
		d.mu.Lock()
		known := append([]*layer(nil), d.byDiff[in.want]...)
		other := d.work[in.want]
		if len(known) == 0 && other == nil {
			in.mine = &work{settled: make(chan struct{}), gone: make(chan struct{})}
			d.work[in.want] = in.mine
		}
		d.mu.Unlock()
		if in.mine != nil {
			return nil, nil
		}
		for _, from := range known {
			l, err := in.fromLayer(ctx, from, must)
			if l != nil || err != nil && ctx.Err() != nil || errors.Is(err, unix.ENOSPC) {
				return l, err
			}
			if err != nil {
				d.log.Warn("files of a layer cannot be used again", "layer", from.Chain, "error", err)
			}
		}
		if other == nil {
			return nil, nil
		}
		select {
		case <-other.settled:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		d.mu.Lock()
		dir, rec := other.dir, other.rec
		d.mu.Unlock()
		if dir == "" || !rec.Free {
			return nil, nil // it waits for its parent, or failed: no use waiting with it
		}
		l, err := in.link(ctx, dir, rec)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return l, err
		}
		// It is being published or thrown away at this moment. Published: the next round finds it.
		select {
		case <-other.gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fromLayer uses a committed layer's files. nil without an error: they cannot be used.
func (in *incoming) fromLayer(ctx context.Context, from *layer, must bool) (*layer, error) {
	if err := in.d.hold(from.Chain); err != nil {
		return nil, nil // it is going away
	}
	defer in.d.drop(from.Chain)
	if from.form.Free {
		return in.link(ctx, filepath.Join(in.d.root, layersDir, from.id), layerFile{form: from.form, Size: from.Size, TarSize: from.TarSize, Files: from.Files})
	}
	if !must {
		return nil, nil
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(in.d.LayerTar(ctx, from.Chain, pw)) }()
	l, err := in.fresh(ctx, pr)
	pr.CloseWithError(errors.New("layer has ended"))
	return l, err
}

// link makes the layer of another one's files by hard links: directories of its own, the rest shared. Layers are never changed, so sharing
// does not show but in the number of links, and each of the two can be removed without the other.
func (in *incoming) link(ctx context.Context, from string, rec layerFile) (*layer, error) {
	d := in.d
	id := d.newID()
	dir := filepath.Join(d.root, newDir, id)
	rec.Chain, rec.Parent, rec.DiffID = snapshot.ChainOf(in.parent, in.want), in.parent, in.want
	err := d.inNew.Mkdir(id, 0o711)
	if err == nil {
		err = linkLayer(ctx, from, dir)
	}
	var l *layer
	if err == nil {
		l, err = in.publish(ctx, id, rec)
	}
	if err != nil {
		d.delete(dir)
	}
	return l, err
}

func linkLayer(ctx context.Context, from, to string) error {
	for _, name := range []string{TreeDir, keptDir} {
		if err := os.Mkdir(filepath.Join(to, name), 0o711); err != nil {
			return err
		}
		src, err := os.Open(filepath.Join(from, name))
		if err != nil {
			return err
		}
		dst, err := os.Open(filepath.Join(to, name))
		if err == nil {
			err = errs.Also(tarfs.LinkTree(ctx, src, dst), dst.Close())
		}
		if err = errs.Also(err, src.Close()); err != nil {
			return err
		}
	}
	return os.Link(filepath.Join(from, frames), filepath.Join(to, frames))
}
