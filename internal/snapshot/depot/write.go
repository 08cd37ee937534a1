package depot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/tarfs"
)

// fresh unpacks r and publishes the layer. When the same chain was published meanwhile, that layer is the answer.
func (in *incoming) fresh(ctx context.Context, r io.Reader) (_ *layer, err error) {
	d := in.d
	id := d.newID()
	dir := filepath.Join(d.root, newDir, id)
	defer func() {
		if err != nil {
			d.delete(dir)
		}
	}()
	rec, err := in.write(ctx, dir, r)
	if err != nil {
		return nil, err
	}
	if err := compare(in.want, rec.DiffID); err != nil {
		return nil, err
	}
	if in.want == "" {
		// Two commits or imports of the same content at a time: one of them publishes.
		have, release, err := d.claim(ctx, rec.Chain)
		if err != nil {
			return nil, err
		}
		if have != nil {
			d.delete(dir)
			return &layer{Layer: *have}, d.settle(have.Chain, in.opts.Relaxed)
		}
		defer release()
	}
	if in.mine != nil {
		share := rec
		share.Files = id
		d.mu.Lock()
		in.mine.dir, in.mine.rec = dir, share
		d.mu.Unlock()
		in.mine.settle()
	}
	return in.publish(ctx, id, rec)
}

// publish flushes what lies in new/<id>, waits for the parent and gives the layer its place. On an error the caller deletes new/<id>.
func (in *incoming) publish(ctx context.Context, id string, rec layerFile) (_ *layer, err error) {
	d, relaxed := in.d, in.opts.Relaxed
	dir, place := filepath.Join(d.root, newDir, id), filepath.Join(d.root, layersDir, id)
	if !relaxed {
		if err := writeLayer(dir, rec); err != nil {
			return nil, err
		}
		if err := d.rounds.sync(); err != nil {
			return nil, err
		}
	}
	if err := in.ready(ctx); err != nil {
		return nil, err
	}
	// The parent may have come after the flush, and be a relaxed one.
	if err := d.settle(in.parent, relaxed); err != nil {
		return nil, err
	}
	if !rec.Root {
		if err := d.rootLikeParent(filepath.Join(dir, TreeDir), in.parent, relaxed); err != nil {
			return nil, err
		}
	}
	if in.opts.Hold != "" {
		if err := d.foretell(in.opts.Hold, rec.Chain); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errs.Also(err, d.recant(in.opts.Hold))
			}
		}()
	}
	var l *layer
	if relaxed {
		l, err = d.placeRelaxed(rec, dir, place)
	} else {
		l, err = d.placeDurable(rec, dir, place)
	}
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.putHeld(l, in.opts.Hold)
	in.done = true
	d.mu.Unlock()
	return l, nil
}

func writeLayer(dir string, rec layerFile) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, layerRecord), data, 0o600)
}

// placeDurable moves a layer's folder, which was flushed with its record, to layers/.
func (d *Depot) placeDurable(rec layerFile, from, to string) (*layer, error) {
	if err := os.Rename(from, to); err != nil {
		return nil, err
	}
	if err := syncDir(filepath.Dir(to)); err != nil {
		return nil, errs.Also(err, os.Rename(to, from))
	}
	return rec.layer(filepath.Base(to)), nil
}

// placeRelaxed writes the record, and moves the folder, as a part of the round that goes on.
func (d *Depot) placeRelaxed(rec layerFile, from, to string) (*layer, error) {
	r := d.rounds.begin()
	defer r.done()
	rec.Boot, rec.Round = d.rounds.boot, r.number
	if err := writeLayer(from, rec); err != nil {
		return nil, err
	}
	if err := os.Rename(from, to); err != nil {
		return nil, err
	}
	return rec.layer(filepath.Base(to)), nil
}

// rootLikeParent gives a root that the tar did not describe the parent's owner and mode: overlayfs shows the topmost one.
func (d *Depot) rootLikeParent(path string, parent snapshot.ChainID, relaxed bool) error {
	changed, err := d.likeRoot(path, parent)
	if err != nil || !changed || relaxed {
		return err
	}
	return syncDir(path)
}

// write unpacks into dir and digests on the way.
func (in *incoming) write(ctx context.Context, dir string, r io.Reader) (rec layerFile, err error) {
	// Many layers of an image may wait here for their download: what they need is taken when there is something to unpack.
	r, err = begun(r)
	if err != nil {
		return rec, err
	}
	if err := in.d.inNew.Mkdir(filepath.Base(dir), 0o711); err != nil {
		return rec, err
	}
	for _, path := range []string{filepath.Join(dir, keptDir), filepath.Join(dir, TreeDir)} {
		if err := os.Mkdir(path, 0o711); err != nil {
			return rec, err
		}
	}
	if err := os.Chmod(filepath.Join(dir, TreeDir), 0o755); err != nil {
		return rec, err
	}
	tree, err := os.Open(filepath.Join(dir, TreeDir))
	if err != nil {
		return rec, err
	}
	defer tree.Close()
	kept, err := os.Open(filepath.Join(dir, keptDir))
	if err != nil {
		return rec, err
	}
	defer kept.Close()
	meta, err := os.OpenFile(filepath.Join(dir, frames), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return rec, err
	}
	defer func() { err = errs.Also(err, meta.Close()) }()
	enc, err := in.d.encoder(meta)
	if err != nil {
		return rec, err
	}
	defer in.d.putBack(enc)
	src := &digestReader{r: r, h: sha256.New(), buf: make([]byte, 256<<10)}
	stats, err := in.unpack(ctx, Job{Parent: in.parent, Tree: tree, Layer: src, Ready: in.ready, Options: tarfs.Options{
		Meta: enc, Kept: kept, MaxEntries: in.opts.MaxEntries, MaxBytes: in.opts.MaxBytes,
		Skipped: func(path, what string, err error) {
			in.d.log.Debug("left out of a layer", "path", path, "what", what, "error", err)
		},
	}})
	if cerr := enc.Close(); err == nil { // else it only frees its memory: the file goes away with the layer, and a full disk is told once
		err = cerr
	}
	if err != nil {
		return rec, err
	}
	diff := digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(src.h.Sum(nil)))
	return layerFile{Chain: snapshot.ChainOf(in.parent, diff), Parent: in.parent, DiffID: diff, Size: stats.Bytes, TarSize: src.n,
		form: form{Free: !stats.Based, Root: stats.Root}}, nil
}

// begun waits for the first bytes.
func begun(r io.Reader) (io.Reader, error) {
	first := make([]byte, 512)
	for {
		n, err := r.Read(first)
		switch {
		case err == io.EOF:
			return bytes.NewReader(first[:n]), nil
		case err != nil:
			return nil, err
		case n > 0:
			return io.MultiReader(bytes.NewReader(first[:n]), r), nil
		}
	}
}

// digestReader reads in large pieces, digests each in one go, and gives them out as they are asked for.
type digestReader struct {
	r    io.Reader
	h    hash.Hash
	buf  []byte
	rest []byte // of buf, not given out yet
	n    int64
	err  error
}

func (r *digestReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		var n int
		n, r.err = r.r.Read(r.buf)
		r.rest = r.buf[:n]
		r.h.Write(r.rest)
		r.n += int64(n)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// likeRoot gives path owner and mode of the chain's root; changed tells whether it had others.
func (d *Depot) likeRoot(path string, chain snapshot.ChainID) (changed bool, err error) {
	var now, st unix.Stat_t
	st.Mode = 0o755
	if chain != "" {
		d.mu.Lock()
		l := d.layers[chain]
		d.mu.Unlock()
		if l == nil {
			return false, noLayer(chain)
		}
		low := d.layerTree(l.id)
		if err := unix.Stat(low, &st); err != nil {
			return false, &os.PathError{Op: "stat", Path: low, Err: err}
		}
	}
	if err := unix.Stat(path, &now); err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Uid != now.Uid || st.Gid != now.Gid {
		changed = true
		if err := unix.Chown(path, int(st.Uid), int(st.Gid)); err != nil {
			return changed, &os.PathError{Op: "chown", Path: path, Err: err}
		}
	}
	if changed || now.Mode&0o7777 != st.Mode&0o7777 {
		changed = true
		if err := unix.Chmod(path, st.Mode&0o7777); err != nil {
			return changed, &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	return changed, nil
}
