package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"sync"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// source is what an upload reads, over all its attempts: it counts, and digests each byte once where the digest is not known. A transport may
// still read from the body of a failed attempt while the next one runs: what it reads no longer counts. Progress is told under mu, so never twice
// at a time.
type source struct {
	up Upload

	mu    sync.Mutex // guards what follows
	turn  int        // of the last attempt
	size  int64      // -1 until the end was seen
	hash  hash.Hash  // nil when the digest is known
	done  int64      // bytes in hash
	reach int64      // the furthest byte that was handed out
}

func newSource(up Upload) *source {
	b := &source{up: up, size: up.Size}
	if up.Size < 0 {
		b.size = -1
	}
	if up.Digest == "" {
		b.hash = sha256.New()
	}
	return b
}

// unknown tells whether size or digest are still to be found out by reading.
func (b *source) unknown() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size < 0 || b.hash != nil && b.done < b.size
}

func (b *source) total() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size
}

func (b *source) reached() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reach
}

func (b *source) digest() digest.Digest {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hash == nil {
		return b.up.Digest
	}
	return digest.Digest("sha256:" + hex.EncodeToString(b.hash.Sum(nil)))
}

// all tells the caller that everything has arrived (also when the registry did not want to see it).
func (b *source) all() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn++
	if b.up.Progress != nil {
		b.up.Progress(b.size)
	}
}

// open makes the body of a call: the bytes from an offset to an end (-1: the stream's).
func (b *source) open(from, to int64) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		body, err := b.up.Open(ctx, from)
		if err != nil {
			return nil, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.turn++
		return &sending{b: b, body: body, turn: b.turn, offset: from, end: to}, nil
	}
}

// sending is the body of one attempt.
type sending struct {
	b           *source
	body        io.ReadCloser
	turn        int
	offset, end int64
}

var errOver = errors.New("attempt is over")

func (r *sending) Read(p []byte) (int, error) {
	if r.end >= 0 {
		if r.offset == r.end {
			return 0, io.EOF
		}
		p = p[:min(int64(len(p)), r.end-r.offset)]
	}
	n, err := r.body.Read(p)
	if err := r.b.count(r, p[:n], err == io.EOF); err != nil {
		return 0, err
	}
	r.offset += int64(n)
	if err == io.EOF && r.end >= 0 && r.offset < r.end {
		err = errs.New(errs.Invalid, "content ends after %d of %d bytes", r.offset, r.end)
	}
	return n, err
}

func (r *sending) Close() error { return r.body.Close() }

func (b *source) count(r *sending, p []byte, last bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.turn != b.turn {
		return errOver
	}
	end := r.offset + int64(len(p))
	if b.hash != nil && b.done >= r.offset && b.done < end {
		b.hash.Write(p[b.done-r.offset:]) // a hash takes everything
		b.done = end
	}
	b.reach = max(b.reach, end)
	if len(p) > 0 && b.up.Progress != nil {
		b.up.Progress(end)
	}
	if last && r.end < 0 {
		if b.size >= 0 && b.size != end {
			return errs.New(errs.Invalid, "content has %d bytes, expected %d", end, b.size)
		}
		b.size = end
	}
	return nil
}

// pieceSize is what a piece has where a registry wants to know lengths beforehand; maxPiece what it may ask for at most.
const (
	pieceSize = 8 << 20
	maxPiece  = 64 << 20
)

// inPieces sends a stream of unknown length to a registry that takes none: each piece is read before it is sent.
func (u *upload) inPieces(ctx context.Context) error {
	if u.least > maxPiece {
		return refuse(errs.Unavailable, "registry %s wants pieces of at least %d bytes, more than %d", u.s.domain, u.least, maxPiece)
	}
	body, err := u.bytes.open(u.offset, -1)(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errSource, err)
	}
	defer body.Close()
	buf := make([]byte, max(pieceSize, u.least))
	for {
		n, err := io.ReadFull(body, buf)
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return fmt.Errorf("%w: %w", errSource, err)
		}
		if n > 0 {
			if err := u.piece(ctx, buf[:n]); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

func (u *upload) piece(ctx context.Context, p []byte) error {
	to := u.offset + int64(len(p))
	c := &call{method: http.MethodPatch, url: u.place, header: octets(), scopes: u.s.push(), once: true, size: int64(len(p))}
	c.body = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p)), nil }
	c.header.Set("Content-Range", contentRange(u.offset, to))
	return u.patched(ctx, c, to)
}
