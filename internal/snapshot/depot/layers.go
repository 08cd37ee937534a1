package depot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
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

// Apply is snapshot.Store's Apply.
func (d *Depot) Apply(ctx context.Context, parent snapshot.ChainID, want digest.Digest, r io.Reader, unpack Unpack) (snapshot.Layer, error) {
	in := &incoming{d: d, parent: parent, want: want, unpack: unpack}
	if want != "" {
		if err := checkWant(want); err != nil {
			return snapshot.Layer{}, err
		}
		have, release, err := d.claim(ctx, snapshot.ChainOf(parent, want))
		if err != nil {
			return snapshot.Layer{}, err
		}
		if have != nil {
			return *have, errs.Also(drain(want, r), d.settle(have.Chain, false))
		}
		defer release()
	}
	defer in.letGo()
	if err := in.ready(ctx); err != nil {
		return snapshot.Layer{}, err
	}
	l, err := in.fresh(ctx, r)
	if err != nil {
		return snapshot.Layer{}, fmt.Errorf("apply layer: %w", err)
	}
	return l.Layer, nil
}

// Commit is snapshot.Store's Commit: diff writes what a tree has of its own, and unpack makes files of it on what the tree stands on.
func (d *Depot) Commit(ctx context.Context, key string, unpack Unpack, diff func(ctx context.Context, t Tree, w io.Writer) error) (snapshot.Layer, error) {
	t, err := d.Get(key)
	if err != nil {
		return snapshot.Layer{}, err
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(diff(ctx, t, pw)) }()
	l, err := d.Apply(ctx, t.Chain, "", pr, unpack)
	pr.CloseWithError(errors.New("commit has ended"))
	return l, err
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
		kept := l.uses == l.kept
		d.mu.Unlock()
		if kept {
			return errs.New(errs.Conflict, "layer %s is in use: %w", chain, snapshot.ErrKept)
		}
		return errs.New(errs.Conflict, "layer %s is in use", chain)
	}
	d.forget(l)
	d.mu.Unlock()
	if err := d.discard(filepath.Join(d.root, layersDir, l.id)); err != nil {
		d.mu.Lock()
		d.put(l)
		d.mu.Unlock()
		return fmt.Errorf("remove layer %s: %w", chain, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.layers[l.Parent]; p != nil {
		p.uses--
		p.kept--
	}
	return nil
}
