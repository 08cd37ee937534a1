// Package compressed reads archives and layers, whatever they are compressed with.
//
// It owns nothing. It promises that damage is errs.Invalid, whichever library finds it, that an error of the source is passed on as it is, and that what an archive asks for
// takes no more memory than its format's own bound.
package compressed

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"corten.dev/corten/internal/compressed/gunzip"
	"corten.dev/corten/internal/errs"
)

// Reader looks at the first bytes and undoes gzip, bzip2, zstd or xz. What is none of them is passed on as it is. errs.NotImplemented: this host has no xz.
func Reader(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	src := &noting{r: r}
	br := bufio.NewReaderSize(src, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF && len(head) == 0 {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return &kinded{gunzip.NewReader(br), src, nil}, nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return &kinded{bzip2.NewReader(br), src, nil}, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) > 3 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		// The window an archive asks for is memory that it makes us take: the usual bound of zstd itself.
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, errs.New(errs.Invalid, "zstd: %w", err)
		}
		return &kinded{zr, src, func() error { zr.Close(); return nil }}, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return unxz(ctx, br, src)
	}
	return io.NopCloser(br), nil
}

// unxz lets the host's xz do it, as Docker does: it is rare enough not to carry a library for it.
func unxz(ctx context.Context, r io.Reader, src *noting) (io.ReadCloser, error) {
	path, err := exec.LookPath("xz")
	if err != nil {
		return nil, errs.New(errs.NotImplemented, "archive is compressed with xz, and this host has no program xz: install xz-utils, or decompress the archive first")
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, path, "-d", "-c", "-q")
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = r, &said
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start xz: %w", err)
	}
	x := &xzReader{out: out, cmd: cmd, said: &said}
	return &kinded{x, src, func() error {
		cancel()
		x.wait() // killed when it was not read to its end; that is no error
		return nil
	}}, nil
}

// xzReader turns a bad end of the program into an error of the stream.
type xzReader struct {
	out  io.Reader
	cmd  *exec.Cmd
	said *bytes.Buffer
	done bool
	err  error
}

func (x *xzReader) Read(p []byte) (int, error) {
	n, err := x.out.Read(p)
	if err != nil { // whatever it is: only when the program has ended is it known what the source said
		if werr := x.wait(); werr != nil {
			err = werr
		}
	}
	return n, err
}

func (x *xzReader) wait() error {
	if !x.done {
		x.done = true
		if err := x.cmd.Wait(); err != nil {
			x.err = fmt.Errorf("xz: %s: %w", strings.TrimSpace(x.said.String()), err)
		}
	}
	return x.err
}

// noting remembers why its source ended.
type noting struct {
	r   io.Reader
	err error
}

func (n *noting) Read(p []byte) (int, error) {
	got, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		n.err = err
	}
	return got, err
}

// kinded gives damage in compressed data the kind Invalid, whichever library found it. What the source itself said is passed on.
type kinded struct {
	io.Reader
	src   *noting
	close func() error
}

func (k *kinded) Read(p []byte) (int, error) {
	n, err := k.Reader.Read(p)
	if err != nil && k.src.err != nil {
		return n, k.src.err
	}
	if err != nil && err != io.EOF {
		err = errs.New(errs.Invalid, "decompress: %w", err)
	}
	return n, err
}

func (k *kinded) Close() error {
	if k.close == nil {
		return nil
	}
	if err := k.close(); err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	return nil
}
