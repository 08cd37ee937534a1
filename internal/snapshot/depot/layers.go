package depot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/tarfs"
)

// Unpack writes the layer tar r into tree, which is an empty directory with the attributes of the parent's root. parent is the folder
// of the parent layer's files, or empty. opts has the fields set that the depot cares for.
type Unpack func(ctx context.Context, parent snapshot.ChainID, tree *os.File, r io.Reader, opts tarfs.Options) (tarfs.Stats, error)

// Apply is snapshot.Store's Apply.
func (d *Depot) Apply(ctx context.Context, parent snapshot.ChainID, want digest.Digest, r io.Reader, unpack Unpack) (snapshot.Layer, error) {
	if want != "" {
		if err := want.Validate(); err != nil || want.Algorithm() != digest.SHA256 {
			return snapshot.Layer{}, errs.New(errs.Invalid, "layer digest %q is not a sha256 digest", want)
		}
		chain := ChainOf(parent, want)
		have, release, err := d.claim(ctx, chain)
		if err != nil {
			return snapshot.Layer{}, err
		}
		if have != nil {
			return *have, drain(want, r)
		}
		defer release()
	}
	if err := d.hold(parent); err != nil {
		return snapshot.Layer{}, err
	}
	l, err := d.unpack(ctx, parent, want, r, unpack)
	if err != nil {
		d.drop(parent)
		return snapshot.Layer{}, fmt.Errorf("apply layer: %w", err)
	}
	return l.Layer, nil
}

// claim waits until nobody unpacks chain. It returns the layer if it is there then, else the right to unpack it.
func (d *Depot) claim(ctx context.Context, chain snapshot.ChainID) (*snapshot.Layer, func(), error) {
	for {
		d.mu.Lock()
		if l := d.layers[chain]; l != nil {
			have := l.Layer
			d.mu.Unlock()
			return &have, nil, nil
		}
		other := d.flights[chain]
		if other == nil {
			mine := make(chan struct{})
			d.flights[chain] = mine
			d.mu.Unlock()
			return nil, func() {
				d.mu.Lock()
				delete(d.flights, chain)
				d.mu.Unlock()
				close(mine)
			}, nil
		}
		d.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// drain reads a layer that is there already, and checks it all the same.
func drain(want digest.Digest, r io.Reader) error {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, r, make([]byte, 256<<10)); err != nil {
		return fmt.Errorf("read layer %s: %w", want, err)
	}
	return compare(want, digest.NewDigest(digest.SHA256, h))
}

func compare(want, got digest.Digest) error {
	if want != "" && want != got {
		return errs.New(errs.Invalid, "layer digest is %s, expected %s", got, want)
	}
	return nil
}

// hold and drop count who stands on a layer.
func (d *Depot) hold(chain snapshot.ChainID) error {
	if chain == "" {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.layers[chain]
	if l == nil {
		return noLayer(chain)
	}
	l.uses++
	return nil
}

func (d *Depot) drop(chain snapshot.ChainID) {
	if chain == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.layers[chain]; l != nil {
		l.uses--
	}
}

// unpack writes the layer aside, flushes and publishes it. When the same chain was published meanwhile, that layer is the answer.
func (d *Depot) unpack(ctx context.Context, parent snapshot.ChainID, want digest.Digest, r io.Reader, unpack Unpack) (_ *layer, err error) {
	id := d.newID()
	dir := filepath.Join(d.root, newDir, id)
	published := false
	defer func() {
		if !published {
			d.delete(dir)
		}
	}()
	rec, err := d.write(ctx, dir, parent, r, unpack)
	if err != nil {
		return nil, err
	}
	if err := compare(want, rec.DiffID); err != nil {
		return nil, err
	}
	if want == "" {
		// Two commits or imports of the same content at a time: one of them publishes.
		have, release, err := d.claim(ctx, rec.Chain)
		if err != nil {
			return nil, err
		}
		if have != nil {
			d.drop(parent)
			return &layer{Layer: *have}, nil
		}
		defer release()
	}
	data, err := json.Marshal(rec)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, layerRecord), data, 0o600)
	}
	if err == nil {
		err = d.flusher.sync()
	}
	if err == nil {
		err = os.Rename(dir, filepath.Join(d.root, layersDir, id))
	}
	if err == nil {
		published = true
		err = syncDir(filepath.Join(d.root, layersDir))
	}
	if err != nil {
		if published {
			err = also(err, d.discard(filepath.Join(d.root, layersDir, id)))
		}
		return nil, err
	}
	l := &layer{Layer: snapshot.Layer(rec), id: id}
	d.mu.Lock()
	d.layers[rec.Chain] = l
	d.mu.Unlock()
	return l, nil
}

// write unpacks into dir and digests on the way.
func (d *Depot) write(ctx context.Context, dir string, parent snapshot.ChainID, r io.Reader, unpack Unpack) (rec layerFile, err error) {
	if err := d.newLayerDir(dir, parent); err != nil {
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
	defer func() { err = also(err, meta.Close()) }()
	enc, err := zstd.NewWriter(meta, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10))
	if err != nil {
		return rec, err
	}
	h := sha256.New()
	var size byteCount
	stats, err := unpack(ctx, parent, tree, io.TeeReader(r, io.MultiWriter(h, &size)), tarfs.Options{Meta: enc, Kept: kept, Skipped: func(path, what string, err error) {
		d.log.Debug("left out of a layer", "path", path, "what", what, "error", err)
	}})
	if err != nil {
		_ = enc.Close() // only frees its memory: the file goes away with the layer
		return rec, err
	}
	if err := enc.Close(); err != nil {
		return rec, err
	}
	diff := digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(h.Sum(nil)))
	return layerFile{Chain: ChainOf(parent, diff), Parent: parent, DiffID: diff, Size: stats.Bytes, TarSize: int64(size)}, nil
}

type byteCount int64

func (n *byteCount) Write(p []byte) (int, error) {
	*n += byteCount(len(p))
	return len(p), nil
}

// newLayerDir makes the folders of a layer. The root of its files looks like the parent's: overlayfs shows the topmost one.
func (d *Depot) newLayerDir(dir string, parent snapshot.ChainID) error {
	for _, path := range []string{dir, filepath.Join(dir, keptDir)} {
		if err := os.Mkdir(path, 0o711); err != nil {
			return err
		}
	}
	return d.MakeRoot(filepath.Join(dir, TreeDir), parent)
}

// LayerTar is snapshot.Store's LayerTar.
func (d *Depot) LayerTar(ctx context.Context, chain snapshot.ChainID, w io.Writer) error {
	if err := d.hold(chain); err != nil {
		return err
	}
	defer d.drop(chain)
	d.mu.Lock()
	l := d.layers[chain]
	d.mu.Unlock()
	if l == nil {
		return noLayer(chain)
	}
	dir := filepath.Join(d.root, layersDir, l.id)
	tree, err := os.Open(filepath.Join(dir, TreeDir))
	if err != nil {
		return err
	}
	defer tree.Close()
	kept, err := os.Open(filepath.Join(dir, keptDir))
	if err != nil {
		return err
	}
	defer kept.Close()
	h := sha256.New()
	open := func() (io.ReadCloser, error) { return openFrames(filepath.Join(dir, frames)) }
	if err := tarfs.Assemble(ctx, tree, kept, open, io.MultiWriter(h, w)); err != nil {
		return fmt.Errorf("write layer %s: %w", l.DiffID, err)
	}
	if got := digest.NewDigest(digest.SHA256, h); got != l.DiffID {
		return fmt.Errorf("write layer %s: its files in %s were changed", l.DiffID, tree.Name())
	}
	return nil
}

type framesReader struct {
	io.Reader
	dec *zstd.Decoder
	f   *os.File
}

func openFrames(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(bufio.NewReader(f), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &framesReader{dec, dec, f}, nil
}

func (r *framesReader) Close() error {
	r.dec.Close()
	return r.f.Close()
}

// RemoveLayer is snapshot.Store's RemoveLayer.
func (d *Depot) RemoveLayer(_ context.Context, chain snapshot.ChainID) error {
	d.mu.Lock()
	l := d.layers[chain]
	if l == nil {
		d.mu.Unlock()
		return noLayer(chain)
	}
	if l.uses > 0 {
		d.mu.Unlock()
		return errs.New(errs.Conflict, "layer %s is in use", chain)
	}
	delete(d.layers, chain)
	d.mu.Unlock()
	if err := d.discard(filepath.Join(d.root, layersDir, l.id)); err != nil {
		d.mu.Lock()
		d.layers[chain] = l
		d.mu.Unlock()
		return fmt.Errorf("remove layer %s: %w", chain, err)
	}
	d.drop(l.Parent)
	return nil
}
