package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

// A blob comes from the first endpoint that gives it; each goes on where the one before stopped:
//
//	        ┌────────── a break, 5xx, too slow: wait, then from dst.Size() ───────┐
//	        ▼                                                                      │
//	  open(range) ── 206, 200 ──▶ copy to dst ── all there ──▶ done                │
//	        │                         └────────────────────────────────────────────┘
//	        └── 4xx, a wrong size, retries used up ──▶ the next endpoint
//
// Big blobs come as several ranges at a time (ranges.go) when one stream is slow.

// Summer is what a Sink may offer besides: the digest of what it holds. Then Fetch compares it at the end, and a mirror that sent something
// else does not spoil the pull: the sink is restarted and the next endpoint asked.
type Summer interface {
	Sum() digest.Digest
}

// Fetch appends the rest of a blob to dst.
func (r *repository) Fetch(ctx context.Context, d ocispec.Descriptor, dst Sink) error {
	if err := manifest.Check(d); err != nil {
		return err
	}
	if dst.Size() > d.Size {
		if err := restart(dst); err != nil {
			return err
		}
	}
	if dst.Size() == d.Size {
		return nil
	}
	err := r.each(ctx, r.order(d.Digest), string(d.Digest), func(s *site) error {
		if err := s.fetch(ctx, d, dst); err != nil {
			return err
		}
		r.mu.Lock()
		r.gave[d.Digest] = s
		r.mu.Unlock()
		sum, ok := dst.(Summer)
		if !ok {
			return nil
		}
		if actual := sum.Sum(); actual != d.Digest {
			if err := restart(dst); err != nil {
				return err
			}
			return refuse(errs.Invalid, "filesystem layer verification failed for digest %s: registry %s sent %s", d.Digest, s.base.Host, actual)
		}
		return nil
	})
	return pullError(err, "", r.ref.FamiliarName())
}

// order is the endpoints' order for a blob. What is fetched again was not right the last time, so a mirror that gave it is passed over now.
func (r *repository) order(d digest.Digest) []*site {
	r.mu.Lock()
	defer r.mu.Unlock()
	bad := r.gave[d]
	if bad == nil || !bad.ep.Mirror || len(r.sites) == 1 {
		return r.sites
	}
	return slices.DeleteFunc(slices.Clone(r.sites), func(s *site) bool { return s == bad })
}

func restart(dst Sink) error {
	if err := dst.Restart(); err != nil {
		return fmt.Errorf("%w: begin anew: %w", errSink, err)
	}
	return nil
}

// Blob reads a small blob.
func (r *repository) Blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, errs.New(errs.Invalid, "blob %s has %d bytes, more than %d", d.Digest, d.Size, limit)
	}
	dst := &memory{}
	if err := r.Fetch(ctx, d, dst); err != nil {
		return nil, err
	}
	if dst.Sum() != d.Digest { // an empty blob is not fetched
		return nil, errs.New(errs.Invalid, "blob %s: an empty blob has another digest", d.Digest)
	}
	return dst.raw, nil
}

// memory is the sink of a small blob.
type memory struct{ raw []byte }

func (m *memory) Write(p []byte) (int, error) {
	m.raw = append(m.raw, p...)
	return len(p), nil
}
func (m *memory) Size() int64        { return int64(len(m.raw)) }
func (m *memory) Restart() error     { m.raw = nil; return nil }
func (m *memory) Sum() digest.Digest { return digest.FromBytes(m.raw) }

// fetch gets all that is missing from one endpoint.
func (s *site) fetch(ctx context.Context, d ocispec.Descriptor, dst Sink) error {
	if err := s.named(); err != nil {
		return err
	}
	try, mark := 0, dst.Size()
	for dst.Size() < d.Size {
		var err error
		if rest := d.Size - dst.Size(); rest >= s.c.opts.RangeSize && s.c.opts.Ranges > 1 && !s.noRanges.Load() {
			err = s.ranges(ctx, d, dst)
		} else {
			err = s.stream(ctx, d, dst)
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// A download that moves may break any number of times; one byte a connection does not count as moving.
		if dst.Size()-mark >= s.c.tuning.progress {
			try, mark = 0, dst.Size()
		}
		if !s.pause(ctx, try, err) {
			return err
		}
		try++
	}
	return nil
}

// stream gets the rest by one request.
func (s *site) stream(ctx context.Context, d ocispec.Descriptor, dst Sink) error {
	b, err := s.open(ctx, d, span{dst.Size(), d.Size, d.Size}, nil)
	if err != nil {
		return err
	}
	defer b.Close()
	return s.copy(b, dst, d.Size)
}

// copy moves a body to dst until dst has end bytes, and refuses a body that goes on.
func (s *site) copy(b *blobBody, dst Sink, end int64) error {
	buf := s.c.buffers.Get().(*[]byte)
	defer s.c.buffers.Put(buf)
	for dst.Size() < end {
		p := (*buf)[:min(copyBuffer, end-dst.Size())]
		n, err := b.Read(p)
		if n > 0 {
			if _, err := dst.Write(p[:n]); err != nil {
				return fmt.Errorf("%w: %w", errSink, err)
			}
		}
		if err != nil && dst.Size() < end {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return errs.New(errs.Unavailable, "%s after %d bytes: %w", b.where, dst.Size(), err)
		}
		if err == io.EOF {
			return nil
		}
	}
	if b.known {
		return nil
	}
	if n, _ := io.ReadFull(b, (*buf)[:1]); n > 0 {
		return refuse(errs.Invalid, "%s: sends more than the %d bytes that it has", b.where, end)
	}
	return nil
}

// span is a part of a blob: from the first byte to before the last; size is the whole blob's.
type span struct{ from, to, size int64 }

// blobBody is an answer that begins at the byte that was asked for.
type blobBody struct {
	*body
	where string
	known bool     // the server told the length, and it is right
	whole bool     // it goes on to the end of the blob, whatever was asked
	final *url.URL // where redirects led
}

// open asks for a part of a blob. Servers that know no Range send all of it, and what is there already is passed over. at is where an earlier
// redirect led, or nil.
func (s *site) open(ctx context.Context, d ocispec.Descriptor, want span, at *url.URL) (*blobBody, error) {
	c := &call{method: http.MethodGet, path: s.blob(d.Digest), url: at, header: http.Header{}, scopes: s.pull(), once: true, sealed: true}
	part := (want.from > 0 || want.to < want.size) && !s.noRanges.Load()
	switch {
	case part && want.to < want.size:
		c.header.Set("Range", fmt.Sprintf("bytes=%d-%d", want.from, want.to-1))
	case part:
		c.header.Set("Range", fmt.Sprintf("bytes=%d-", want.from))
	}
	resp, err := s.do(ctx, c)
	if err != nil {
		if e, ok := asError(err); ok && part && e.Status == http.StatusRequestedRangeNotSatisfiable {
			s.noRanges.Store(true)
			return s.open(ctx, d, want, at)
		}
		return nil, err
	}
	from, ok := resp.Body.(*body)
	if !ok {
		return nil, errs.New(errs.Unavailable, "%s: answer without a body", where(c.method, resp.Request.URL))
	}
	b := &blobBody{body: from, where: where(c.method, resp.Request.URL), final: resp.Request.URL, whole: want.to == want.size}
	length, skip := want.to-want.from, int64(0)
	switch {
	case resp.StatusCode == http.StatusPartialContent && part:
		r, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if ok && r.size >= 0 && r.size != want.size {
			drop(resp)
			return nil, refuse(errs.Invalid, "%s: has %d bytes, expected %d", b.where, r.size, want.size)
		}
		if !ok || r.from != want.from || r.to != want.to {
			// It means something else by Range: without it, everything is plain.
			drop(resp)
			s.noRanges.Store(true)
			return s.open(ctx, d, want, at)
		}
	case resp.StatusCode == http.StatusOK:
		length, skip, b.whole = want.size, want.from, true
	default:
		drop(resp)
		return nil, errs.New(errs.Unavailable, "%s: received unexpected HTTP status: %d %s", b.where, resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	if resp.ContentLength >= 0 && resp.ContentLength != length {
		drop(resp)
		return nil, refuse(errs.Invalid, "%s: promises %d bytes, expected %d", b.where, resp.ContentLength, length)
	}
	b.known = resp.ContentLength >= 0
	if err := s.skip(b, skip); err != nil {
		_ = b.Close() // what failed is told already
		return nil, errs.New(errs.Unavailable, "%s: %w", b.where, err)
	}
	return b, nil
}

func (s *site) skip(b *blobBody, n int64) error {
	if n == 0 {
		return nil
	}
	buf := s.c.buffers.Get().(*[]byte)
	defer s.c.buffers.Put(buf)
	got, err := io.CopyBuffer(onlyWriter{io.Discard}, io.LimitReader(b, n), *buf)
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// onlyWriter hides io.Discard's own, smaller buffer.
type onlyWriter struct{ io.Writer }

// parseContentRange reads "bytes 0-99/100"; the size is -1 for "*".
func parseContentRange(s string) (span, bool) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	part, total, ok2 := strings.Cut(rest, "/")
	first, last, ok3 := strings.Cut(part, "-")
	if !ok || !ok2 || !ok3 {
		return span{}, false
	}
	from, err1 := strconv.ParseUint(first, 10, 62)
	to, err2 := strconv.ParseUint(last, 10, 62)
	r := span{int64(from), int64(to) + 1, -1}
	if total != "*" {
		size, err := strconv.ParseUint(total, 10, 62)
		if err != nil || to >= size {
			return span{}, false
		}
		r.size = int64(size)
	}
	return r, err1 == nil && err2 == nil && from <= to
}

func asError(err error) (*Error, bool) {
	var e *Error
	ok := errors.As(err, &e)
	return e, ok
}
