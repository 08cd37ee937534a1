// Package recipe finds out how a layer was compressed, so that the same bytes can be made again from the plain ones and the compressed blob need not
// be kept; and it is the compressor for layers that nobody compressed yet.
//
// It owns the list of compressors that it can imitate bit for bit: Go's own gzip (docker's push and builder, buildkit, kaniko, crane, ko), klauspost's gzip,
// the block-parallel gzip of pgzip (podman, buildah, skopeo, umoci), and klauspost's zstd (all of them, when asked for zstd). What zlib made (GNU gzip, pigz,
// Debian's tools) is not among them.
//
// It promises: a Recipe gives the same bytes wherever and whenever it is used by this program; a test holds the bytes of each compressor, so that a new version of a
// library that gives others is noticed before it is built in, and Compressors tells one version from the other, so that who uses a recipe looks again. What Find returns is a guess from the beginning of a stream: the caller compares the whole before it
// relies on it.
package recipe

import (
	"bytes"
	stdflate "compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"corten.dev/corten/internal/errs"
)

// The compressors.
const (
	Plain     = "plain"     // none: the blob is the tar itself
	Go        = "go"        // compress/flate
	Klauspost = "klauspost" // klauspost/compress/flate, one stream
	Blocks    = "blocks"    // klauspost/compress/flate as pgzip uses it: blocks that know the end of the one before, each flushed
	Zstd      = "zstd"      // klauspost/compress/zstd
)

// Version grows with the list of compressors: blobs for which none was found are looked at again by a program that knows more.
const Version = 1

// Compressors names the versions of the compressors in this program. A recipe that was compared with its blob by other versions is to be compared again: neither Go nor klauspost promise to give
// the same bytes for ever.
func Compressors() string {
	const module = "github.com/klauspost/compress"
	name := runtime.Version() + " " + runtime.GOARCH
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			for ; dep != nil && dep.Path == module; dep = dep.Replace {
				name += " " + dep.Version
			}
		}
	}
	return name
}

// Recipe is how to compress. It is kept as JSON: fields are only ever added.
type Recipe struct {
	Algo  string
	Level int
	Block int `json:",omitempty"` // bytes of a block, for Blocks
	// Header is the gzip header as it was: names, times and flags say nothing about the compressor, but they are part of the blob.
	Header []byte `json:",omitempty"`
	// NoCheck: the zstd frame has no checksum.
	NoCheck bool `json:",omitempty"`
}

// blockSize and blockTail are pgzip's.
const (
	blockSize = 1 << 20
	blockTail = 16 << 10
)

var plainHeader = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}

// For is the recipe for layers that were never compressed: "gzip" (or empty) or "zstd".
func For(compression string) (Recipe, error) {
	switch compression {
	case "", "gzip":
		return Recipe{Algo: Blocks, Level: 5, Block: blockSize, Header: plainHeader}, nil
	case "zstd":
		return Recipe{Algo: Zstd, Level: int(zstd.SpeedDefault)}, nil
	}
	return Recipe{}, errs.New(errs.Invalid, "compression %q is not known: gzip or zstd", compression)
}

// Custom is the recipe for layers that were never compressed, in a compression that somebody asked for: "gzip" (or empty), "zstd" or "uncompressed". A level is gzip's 0 to 9 or zstd's 0 to 22; nil
// is the usual one.
func Custom(compression string, level *int) (Recipe, error) {
	if compression == "uncompressed" {
		return Recipe{Algo: Plain}, nil
	}
	rec, err := For(compression)
	if err != nil {
		return rec, errs.New(errs.Invalid, "compression %q is not known: gzip, zstd or uncompressed", compression)
	}
	if level == nil {
		return rec, nil
	}
	top := 9
	if rec.Algo == Zstd {
		top = 22
	}
	if *level < 0 || *level > top {
		return rec, errs.New(errs.Invalid, "compression level %d is not one of 0 to %d", *level, top)
	}
	if rec.Level = *level; rec.Algo == Zstd {
		rec.Level = int(zstd.EncoderLevelFromZstd(*level))
	}
	return rec, nil
}

// Same tells whether two recipes give the same bytes of everything.
func (rec Recipe) Same(other Recipe) bool {
	return rec.Algo == other.Algo && rec.Level == other.Level && rec.Block == other.Block && bytes.Equal(rec.Header, other.Header) && rec.NoCheck == other.NoCheck
}

// NewWriter compresses what is written to w; Close ends the stream. parallel is how many processors it may use; the bytes do not depend on it.
func (rec Recipe) NewWriter(w io.Writer, parallel int) (io.WriteCloser, error) {
	switch rec.Algo {
	case Plain:
		return nopCloser{w}, nil
	case Go, Klauspost, Blocks:
		if len(rec.Header) < len(plainHeader) {
			return nil, errs.New(errs.Invalid, "recipe %s has no gzip header", rec.Algo)
		}
		g := &gzipWriter{w: w, header: rec.Header}
		if err := g.open(rec, parallel); err != nil {
			return nil, err
		}
		return g, nil
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevel(rec.Level)), zstd.WithEncoderConcurrency(max(parallel, 1)), zstd.WithEncoderCRC(!rec.NoCheck))
	}
	return nil, errs.New(errs.Invalid, "recipe %q is not known to this version", rec.Algo)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// gzipWriter is header, deflate stream, checksum and length.
type gzipWriter struct {
	w      io.Writer
	header []byte // until it is written
	body   io.WriteCloser
	crc    uint32
	size   uint32
}

func (g *gzipWriter) open(rec Recipe, parallel int) (err error) {
	switch rec.Algo {
	case Go:
		g.body, err = stdflate.NewWriter(g.w, rec.Level)
	case Klauspost:
		g.body, err = flate.NewWriter(g.w, rec.Level)
	default:
		if rec.Block <= blockTail || rec.Block > 64<<20 {
			return errs.New(errs.Invalid, "recipe has blocks of %d bytes", rec.Block)
		}
		g.body, err = newBlocks(g.w, rec.Level, rec.Block, parallel)
	}
	if err != nil {
		return fmt.Errorf("recipe %s: %w", rec.Algo, err)
	}
	return nil
}

func (g *gzipWriter) begin() error {
	if g.header == nil {
		return nil
	}
	_, err := g.w.Write(g.header)
	g.header = nil
	return err
}

func (g *gzipWriter) Write(p []byte) (int, error) {
	if err := g.begin(); err != nil {
		return 0, err
	}
	g.crc = crc32.Update(g.crc, crc32.IEEETable, p)
	g.size += uint32(len(p))
	return g.body.Write(p)
}

func (g *gzipWriter) Close() error {
	if err := g.begin(); err != nil {
		return errors.Join(err, g.body.Close())
	}
	if err := g.body.Close(); err != nil {
		return err
	}
	end := binary.LittleEndian.AppendUint32(nil, g.crc)
	_, err := g.w.Write(binary.LittleEndian.AppendUint32(end, g.size))
	return err
}

// gzipHeader cuts the header off. nil: it is none, or goes on for longer than b.
func gzipHeader(b []byte) []byte {
	const fhcrc, fextra, fname, fcomment = 2, 4, 8, 16
	if len(b) < 10 || b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return nil
	}
	n := 10
	if b[3]&fextra != 0 {
		if len(b) < n+2 {
			return nil
		}
		n += 2 + int(binary.LittleEndian.Uint16(b[n:]))
	}
	for _, flag := range []byte{fname, fcomment} {
		if b[3]&flag == 0 {
			continue
		}
		if n > len(b) {
			return nil
		}
		end := bytes.IndexByte(b[n:], 0)
		if end < 0 {
			return nil
		}
		n += end + 1
	}
	if b[3]&fhcrc != 0 {
		n += 2
	}
	if n > len(b) || n > maxHeader {
		return nil
	}
	return b[:n]
}

const maxHeader = 64 << 10
