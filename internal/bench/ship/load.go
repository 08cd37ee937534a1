package ship

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// load is one kind of work for a registry: width clients at a time.
type load struct {
	what        string
	blobs, size int
	width       int
	push        bool
}

var registryLoads = []load{
	{what: "registry: push 2,000 blobs of 4 KB, 8 at a time", blobs: 2000, size: 4 << 10, width: 8, push: true},
	{what: "registry: pull them", blobs: 8000, size: 4 << 10, width: 8},
	{what: "registry: push 8 blobs of 64 MB, 4 at a time", blobs: 8, size: 64 << 20, width: 4, push: true},
	{what: "registry: pull them", blobs: 32, size: 64 << 20, width: 4},
}

// loads puts the same work on both registries, in turn, each started anew.
func loads(ctx context.Context, opts Options, out io.Writer) error {
	for i := 0; i < len(registryLoads); i += 2 {
		for _, reg := range []*Registry{Ours(opts.Bin), Debians()} {
			fmt.Fprintf(opts.Progress, "load on %s\n", reg.Label)
			if err := loadOne(ctx, opts, reg, registryLoads[i:i+2], out); err != nil {
				fmt.Fprintf(out, "not measured\t%s\t\t\t\t%v\n", reg.Label, err)
			}
		}
	}
	return nil
}

func loadOne(ctx context.Context, opts Options, reg *Registry, pair []load, out io.Writer) (err error) {
	dir := filepath.Join(opts.Dir, "load-"+reg.Label)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := reg.start(ctx, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.stop()) }()
	blobs := makeBlobs(pair[0])
	for _, l := range pair {
		start := time.Now()
		if err := l.run(ctx, reg.addr, blobs); err != nil {
			return err
		}
		took := time.Since(start).Seconds()
		mem, err := reg.peak()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s\t%s\t%.0f/s\t%.0f MB/s\t\tpeak memory %.1f MB\n", l.what, reg.Label, float64(l.blobs)/took, float64(l.blobs)*float64(l.size)/took/1e6, float64(mem)/1e6)
	}
	return nil
}

type blob struct {
	d    ocispec.Descriptor
	data []byte
}

func makeBlobs(l load) []blob {
	rng := rand.NewChaCha8([32]byte{1})
	blobs := make([]blob, l.blobs)
	for i := range blobs {
		data := make([]byte, l.size)
		_, _ = rng.Read(data) // never fails
		blobs[i] = blob{ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(l.size)}, data}
	}
	return blobs
}

func (l load) run(ctx context.Context, addr string, blobs []blob) error {
	to := newRepo(addr, "load/all", l.width)
	defer to.c.CloseIdleConnections()
	work := make(chan int)
	failures := make([]error, l.width)
	var wg sync.WaitGroup
	for w := range l.width {
		wg.Go(func() {
			for i := range work {
				if failures[w] != nil {
					continue // so that the sender is not left waiting
				}
				b := blobs[i%len(blobs)]
				if l.push {
					failures[w] = to.putBlob(ctx, b.d, bytes.NewReader(b.data))
				} else {
					failures[w] = to.getBlob(ctx, b.d)
				}
			}
		})
	}
	for i := range l.blobs {
		work <- i
	}
	close(work)
	wg.Wait()
	return errors.Join(failures...)
}
