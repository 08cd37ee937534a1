package ops

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/compressed"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/tarfs"
)

// unpack extracts a match that is an archive (tar, also compressed with gzip, bzip2, xz or zstd) into the destination, as ADD does; done is false when it is none.
func (c *copier) unpack(ctx context.Context, m *pick.Match) (sum checksum.Sum, done bool, err error) {
	if m.Stat.Mode&unix.S_IFMT != unix.S_IFREG || !m.At.Included {
		return sum, false, nil
	}
	fd, err := unix.Openat(m.Parent, m.Base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return sum, false, &os.PathError{Op: "open", Path: path.Join("/", m.Path), Err: err}
	}
	f := os.NewFile(uintptr(fd), m.Path)
	defer f.Close()
	e, st, err := c.describe(fd)
	if err != nil {
		return sum, false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return sum, false, errs.New(errs.Unavailable, "/%s was replaced by something that is no file while it was read", m.Path)
	}
	if is, err := isArchive(ctx, f); err != nil || !is {
		return sum, false, err
	}
	real, err := c.w.inTree(c.a.Dest)
	if err != nil {
		return sum, false, err
	}
	made, err := c.w.mkdirAll(real, fresh{mode: defaultDir, own: c.own, time: c.time})
	if err != nil {
		return sum, false, err
	}
	// All of the file is digested, also what stands behind the archive's end.
	h := sha256.New()
	raw := &counter{r: io.TeeReader(io.NewSectionReader(f, 0, 1<<62), h)}
	opts := tarfs.Options{}
	if c.own != nil {
		opts.Owner = &tarfs.Owner{UID: c.own.uid, GID: c.own.gid}
	}
	opts.Skipped = func(p, what string, err error) {
		c.w.o.log.Debug("left out of an unpacked archive", "archive", m.Path, "path", p, "what", what, "error", err)
	}
	r, err := compressed.Reader(ctx, raw)
	if err != nil {
		return sum, false, err
	}
	err = tarfs.ExtractTo(ctx, c.w.m.Root, "/"+real, r, opts)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		_, err = io.Copy(io.Discard, raw)
	}
	if err != nil {
		return sum, false, fmt.Errorf("unpack /%s: %w", m.Path, err)
	}
	e.Size = raw.n
	h.Sum(e.Content[:0])
	return e.Sum(), true, c.w.settle(made, c.time)
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// isArchive tells whether a file is one, by its first entry. A host that cannot know is an error.
func isArchive(ctx context.Context, f io.ReaderAt) (bool, error) {
	r, err := compressed.Reader(ctx, io.NewSectionReader(f, 0, 1<<62))
	if errors.Is(err, errs.NotImplemented) {
		return false, err
	}
	if err != nil {
		return false, nil
	}
	_, err = tar.NewReader(r).Next()
	return err == nil, r.Close()
}
