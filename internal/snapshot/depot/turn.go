package depot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/tarfs"
)

// How a tree becomes a layer, in its own folder:
//
//	trees/<id>/{tree.json,<files>,<rest>}  read the files: digest, tar.zst beside them
//	     ─▶ new/<id>                       from here on a killed process leaves no tree, and the start deletes what it was
//	     ─▶ <files> becomes tree/, layer.json is written, tree.json and <rest> go
//	     ─▶ (durable: flush) ─▶ layers/<id>
//
// On an error the same way back.

// Turning is a driver's part of Turn.
type Turning struct {
	// Files is the directory of the tree's folder that becomes the layer's files; Rest are the names of what else is there, beside the record.
	Files string
	Rest  []string
	// Write writes the tree's changes as Diff does, with these options added.
	Write func(ctx context.Context, w io.Writer, opts tarfs.WriteOptions) error
	// Free: the files do not depend on what is below.
	Free bool
}

// Turn is snapshot.Store's Turn. The driver sees to it that nobody has the tree mounted.
func (d *Depot) Turn(ctx context.Context, key string, opts snapshot.TurnOptions, how Turning) (_ snapshot.Layer, err error) {
	t, err := d.seize(key)
	if err != nil {
		return snapshot.Layer{}, err
	}
	defer d.unseize(t)
	tn := &turning{d: d, t: t, how: how, opts: opts, dir: filepath.Join(d.root, treesDir, t.id)}
	l, err := tn.run(ctx)
	if err != nil {
		return snapshot.Layer{}, fmt.Errorf("turn tree %s into a layer: %w", key, err)
	}
	return l, nil
}

// seize takes a tree for this call alone.
func (d *Depot) seize(key string) (*tree, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.trees[key]
	if t == nil {
		return nil, noTree(key)
	}
	if t.busy {
		return nil, errs.New(errs.Conflict, "tree %s is being made or removed", key)
	}
	t.busy = true
	return t, nil
}

func (d *Depot) unseize(t *tree) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t.busy = false
}

// turning is one tree on its way.
type turning struct {
	d       *Depot
	t       *tree
	how     Turning
	opts    snapshot.TurnOptions
	dir     string
	stats   tarfs.Stats
	sockets []string
}

func (tn *turning) run(ctx context.Context) (snapshot.Layer, error) {
	d := tn.d
	rec, err := tn.describe(ctx)
	if err != nil {
		return snapshot.Layer{}, err
	}
	if tn.stats.Entries == 0 && !tn.opts.Empty {
		return tn.same(ctx, tn.t.Chain)
	}
	for {
		have, release, err := d.claim(ctx, rec.Chain)
		if err != nil {
			return snapshot.Layer{}, err
		}
		if have == nil {
			defer release()
			return tn.publish(rec)
		}
		l, err := tn.same(ctx, rec.Chain)
		if err == nil || !errors.Is(err, errs.NotFound) {
			return l, err
		} // removed a moment ago
	}
}

// same answers with a layer that is there, and removes the tree.
func (tn *turning) same(ctx context.Context, chain snapshot.ChainID) (snapshot.Layer, error) {
	d := tn.d
	if tn.opts.Hold != "" {
		if err := d.Hold(ctx, tn.opts.Hold, chain); err != nil {
			return snapshot.Layer{}, err
		}
	}
	var l snapshot.Layer
	var err error
	if chain != "" {
		l, err = d.Stat(ctx, chain)
	}
	if err == nil {
		err = d.settle(chain, tn.opts.Relaxed)
	}
	if err == nil {
		err = d.discard(tn.dir)
	}
	if err != nil {
		if tn.opts.Hold != "" {
			err = errs.Also(err, d.Release(ctx, tn.opts.Hold))
		}
		return snapshot.Layer{}, err
	}
	tn.gone()
	d.drop(tn.t.Chain)
	return l, nil
}

// gone forgets the tree.
func (tn *turning) gone() {
	tn.d.mu.Lock()
	delete(tn.d.trees, tn.t.Key)
	tn.d.mu.Unlock()
	tn.d.forgetUsage(tn.t.Key)
}

// describe reads the files, and leaves what LayerTar needs in the tree's folder.
func (tn *turning) describe(ctx context.Context) (rec layerFile, err error) {
	if err := os.Mkdir(filepath.Join(tn.dir, keptDir), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return rec, err
	}
	meta, err := os.OpenFile(filepath.Join(tn.dir, frames), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return rec, err
	}
	defer func() { err = errs.Also(err, meta.Close()) }()
	enc, err := tn.d.encoder(meta)
	if err != nil {
		return rec, err
	}
	defer tn.d.putBack(enc)
	sum := &summing{h: sha256.New()}
	err = tn.how.Write(ctx, sum, tarfs.WriteOptions{Meta: enc, Stats: &tn.stats, Skipped: func(path string) { tn.sockets = append(tn.sockets, path) }})
	if err = errs.Also(err, enc.Close()); err != nil {
		return rec, err
	}
	diff := digest.NewDigest(digest.SHA256, sum.h)
	return layerFile{Chain: snapshot.ChainOf(tn.t.Chain, diff), Parent: tn.t.Chain, DiffID: diff, Size: tn.stats.Bytes, TarSize: sum.n,
		form: form{Free: tn.how.Free, Root: tn.stats.Root}}, nil
}

// encoder lends an encoder for frames: making one costs more than what it has to do for a small layer.
func (d *Depot) encoder(w io.Writer) (*zstd.Encoder, error) {
	if enc, ok := d.enc.Get().(*zstd.Encoder); ok {
		enc.Reset(w)
		return enc, nil
	}
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10))
}

// putBack takes a closed encoder; it lets go of where it wrote.
func (d *Depot) putBack(enc *zstd.Encoder) {
	enc.Reset(nil)
	d.enc.Put(enc)
}

type summing struct {
	h hash.Hash
	n int64
}

func (s *summing) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	return s.h.Write(p)
}

// publish gives the layer its place. The tree's hold on the chain becomes the layer's.
func (tn *turning) publish(rec layerFile) (_ snapshot.Layer, err error) {
	d, id := tn.d, tn.t.id
	if err := removeSockets(filepath.Join(tn.dir, tn.how.Files), tn.sockets); err != nil {
		return snapshot.Layer{}, err
	}
	aside, place := filepath.Join(d.root, newDir, id), filepath.Join(d.root, layersDir, id)
	var back []func() error
	defer func() {
		for i := len(back) - 1; err != nil && i >= 0; i-- {
			if berr := back[i](); berr != nil {
				err = errs.Also(err, berr)
				return
			}
		}
	}()
	move := func(from, to string) error {
		if err := os.Rename(from, to); err != nil {
			return err
		}
		back = append(back, func() error { return os.Rename(to, from) })
		return nil
	}
	if err := move(tn.dir, aside); err != nil {
		return snapshot.Layer{}, err
	}
	if files := filepath.Join(aside, tn.how.Files); tn.how.Files != TreeDir {
		if err := move(files, filepath.Join(aside, TreeDir)); err != nil {
			return snapshot.Layer{}, err
		}
	}
	if tn.opts.Hold != "" {
		if err := d.foretell(tn.opts.Hold, rec.Chain); err != nil {
			return snapshot.Layer{}, err
		}
		back = append(back, func() error { return d.recant(tn.opts.Hold) })
	}
	var l *layer
	if tn.opts.Relaxed {
		l, err = d.placeRelaxed(rec, aside, place)
	} else if err = writeLayer(aside, rec); err == nil {
		if err = d.rounds.sync(); err == nil {
			l, err = d.placeDurable(rec, aside, place)
		}
	}
	if err != nil {
		return snapshot.Layer{}, err
	}
	tn.tidy(place)
	d.mu.Lock()
	d.putHeld(l, tn.opts.Hold)
	d.mu.Unlock()
	tn.gone()
	return l.Layer, nil
}

// tidy deletes what a layer does not have. What a killed process leaves of it does no harm.
func (tn *turning) tidy(place string) {
	err := unix.Unlink(filepath.Join(place, treeRecord))
	for _, name := range tn.how.Rest {
		to := filepath.Join(tn.d.root, trashDir, tn.t.id+"-"+name)
		if rerr := os.Rename(filepath.Join(place, name), to); rerr != nil {
			err = errs.Also(err, rerr)
			continue
		}
		tn.d.delete(to)
	}
	if err != nil {
		tn.d.log.Warn("leftover of a tree stays in its layer", "layer", place, "error", err)
	}
}

// removeSockets takes what no layer has out of the files; the directories keep their times.
func removeSockets(path string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	root, err := safefs.Root(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err = errs.Also(err, removeSocket(root, name)); err != nil {
			break
		}
	}
	return errs.Also(err, root.Close())
}

func removeSocket(root *os.File, name string) error {
	dir, base, err := safefs.Parent(root, name)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(dir.Fd()), &st)
	if err == nil {
		err = unix.Unlinkat(int(dir.Fd()), base, 0)
	}
	if err == nil {
		err = unix.UtimesNanoAt(int(dir.Fd()), ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
	}
	if err != nil {
		err = &os.PathError{Op: "remove socket", Path: name, Err: err}
	}
	return errs.Also(err, dir.Close())
}
