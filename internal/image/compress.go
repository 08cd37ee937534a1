package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"corten.dev/corten/internal/errs"
)

// decompress looks at the first bytes and undoes gzip, bzip2 or zstd. What is none of them is passed on as it is.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF && len(head) == 0 {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, errs.New(errs.Invalid, "gzip: %w", err)
		}
		return &kinded{zr, zr.Close}, nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return &kinded{bzip2.NewReader(br), nil}, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) > 3 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		// The window an archive asks for is memory that it makes us take: the usual bound of zstd itself.
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, errs.New(errs.Invalid, "zstd: %w", err)
		}
		return &kinded{zr, func() error { zr.Close(); return nil }}, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return nil, errs.New(errs.NotImplemented, "archive is compressed with xz, which is not supported: decompress it first (xz -dc file | corten …)")
	}
	return io.NopCloser(br), nil
}

// kinded gives damage in compressed data the kind Invalid, whichever library found it.
type kinded struct {
	io.Reader
	close func() error
}

func (k *kinded) Read(p []byte) (int, error) {
	n, err := k.Reader.Read(p)
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
