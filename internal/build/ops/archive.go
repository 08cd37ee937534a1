package ops

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image/gunzip"
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
	r, err := decompress(ctx, raw)
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
	r, err := decompress(ctx, io.NewSectionReader(f, 0, 1<<62))
	if errors.Is(err, errs.NotImplemented) {
		return false, err
	}
	if err != nil {
		return false, nil
	}
	_, err = tar.NewReader(r).Next()
	return err == nil, r.Close()
}

// decompress looks at the first bytes and undoes gzip, bzip2, zstd or xz. What is none of them is passed on as it is.
func decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return io.NopCloser(gunzip.NewReader(br)), nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(br)), nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) > 3 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		// The window that an archive asks for is memory: the usual bound of zstd itself.
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, errs.New(errs.Invalid, "zstd: %w", err)
		}
		return zr.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return unxz(ctx, br)
	}
	return io.NopCloser(br), nil
}

// unxz lets the host's xz do it, as Docker does: it is rare enough not to carry a library for it.
func unxz(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	program, err := exec.LookPath("xz")
	if err != nil {
		return nil, errs.New(errs.NotImplemented, "archive is compressed with xz, and this host has no program xz: install xz-utils, or decompress the archive first")
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, program, "-d", "-c", "-q")
	x := &xz{cmd: cmd, cancel: cancel}
	cmd.Stdin, cmd.Stderr = r, &x.said
	cmd.WaitDelay = time.Second
	if x.out, err = cmd.StdoutPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start xz: %w", err)
	}
	return x, nil
}

// xz turns a bad end of the program into an error of the stream.
type xz struct {
	cmd    *exec.Cmd
	cancel context.CancelFunc
	out    io.Reader
	said   bytes.Buffer
	done   bool
	err    error
}

func (x *xz) Read(p []byte) (int, error) {
	n, err := x.out.Read(p)
	if err == io.EOF {
		if werr := x.wait(); werr != nil {
			err = werr
		}
	}
	return n, err
}

func (x *xz) wait() error {
	if !x.done {
		x.done = true
		if err := x.cmd.Wait(); err != nil {
			x.err = errs.New(errs.Invalid, "xz: %s: %w", strings.TrimSpace(x.said.String()), err)
		}
	}
	return x.err
}

// Close ends the program. Killed when it was not read to its end: that is no error.
func (x *xz) Close() error {
	x.cancel()
	_ = x.wait()
	return nil
}
