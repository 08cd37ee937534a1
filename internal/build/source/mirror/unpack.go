package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/compressed"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/tarfs"
)

// Unpack makes a context of a tar (plain, gzip, bzip2 or zstd), as the classic API and "build -" send it. It is gone after release. req.SharedKey means nothing here.
func (m *Mirrors) Unpack(ctx context.Context, r io.Reader, req Request) (_ *build.Files, release func(), err error) {
	dir, err := os.MkdirTemp(m.opts.Root, freshPrefix)
	if err != nil {
		return nil, nil, fmt.Errorf("context: %w", err)
	}
	remove := func() {
		if err := os.RemoveAll(dir); err != nil {
			m.opts.Log.Warn("context stays until the next start", "folder", dir, "err", err)
		}
	}
	f, err := os.Open(dir)
	if err == nil {
		err = m.extract(ctx, f, r)
	}
	if err == nil {
		err = f.Chmod(0o755) // a build sees it; whoever is not root does not get here
	}
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		remove()
		return nil, nil, fmt.Errorf("context: %w", err)
	}
	var once sync.Once
	release = func() {
		once.Do(func() {
			_ = f.Close() // a folder that was read
			remove()
		})
	}
	opts := req.Context
	// No Key: the folder is another one each time, there is nothing to remember of it.
	return &build.Files{Root: directory{f}, Include: opts.Include, Exclude: opts.Exclude, Follow: opts.Follow, Owner: &[2]uint32{}}, release, nil
}

func (m *Mirrors) extract(ctx context.Context, dir *os.File, r io.Reader) error {
	plain, err := compressed.Reader(ctx, r)
	if err != nil {
		return err
	}
	defer plain.Close()
	_, err = tarfs.Extract(ctx, dir, &atMost{plain, m.opts.MaxBytes, m.opts.MaxBytes}, tarfs.Options{Owner: &tarfs.Owner{}, MaxEntries: m.opts.MaxEntries})
	return err
}

// atMost refuses what is larger than a bound, also when it was small before it was decompressed.
type atMost struct {
	r         io.Reader
	left, max int64
}

func (a *atMost) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if a.left -= int64(n); a.left < 0 {
		return 0, errs.New(errs.Invalid, "the context is larger than %d bytes", a.max)
	}
	return n, err
}
