package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/task"
)

// Several ranges at a time: each worker has one segment of the blob in memory, the sink gets them in order, while they fill:
//
//	sink ◀── segment k (filling) │ segment k+1 (filling) │ segment k+2 (full, its worker waits for a buffer)
//
// A buffer is free again when the sink has all of its segment, so a blob never holds more than the workers' number of them; and all blobs
// together no more than the client's room. The first segment goes straight to the sink and is timed: where one stream is fast, it stays one.
type ranges struct {
	s    *site
	d    ocispec.Descriptor
	free chan []byte
	stop context.CancelFunc
	next int64 // first byte that is in no segment yet; only the one who hands them out looks at it

	mu    sync.Mutex // guards place
	place *url.URL   // where redirects led, so that each range need not ask the registry
}

// segment is a part of the blob that fills up. filled and err are guarded by mu; more is told after each change.
type segment struct {
	span
	buf    []byte
	mu     sync.Mutex
	filled int
	err    error
	more   chan struct{}
}

func (g *segment) add(n int, err error) {
	g.mu.Lock()
	g.filled += n
	g.err = err
	g.mu.Unlock()
	select {
	case g.more <- struct{}{}:
	default:
	}
}

func (g *segment) state() (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.filled, g.err
}

// ranges gets the rest of a blob by several requests, or by one where that is as good.
func (s *site) ranges(ctx context.Context, d ocispec.Descriptor, dst Sink) error {
	from := dst.Size()
	first := span{from, min(from+s.c.tuning.segment, d.Size), d.Size}
	b, err := s.open(ctx, d, first, nil)
	if err != nil {
		return err
	}
	defer b.Close()
	if b.whole {
		return s.copy(b, dst, d.Size)
	}
	if err := s.copy(b, dst, first.to); err != nil {
		return err
	}
	// Only the waiting for the network counts: where the sink is what is slow, more connections do not help.
	if speed := float64(first.to-first.from) / b.waited.Seconds(); speed >= float64(s.c.tuning.fast) || first.to == d.Size {
		return s.rest(ctx, d, dst)
	}
	workers := s.c.takeRoom(s.c.opts.Ranges)
	defer s.c.giveRoom(workers)
	if workers < 2 {
		return s.rest(ctx, d, dst)
	}
	own, stop := context.WithCancel(ctx)
	r := &ranges{s: s, d: d, free: make(chan []byte, workers), stop: stop, next: first.to}
	if !s.own(b.final) {
		r.place = b.final
	}
	return r.run(own, dst, workers)
}

func (s *site) rest(ctx context.Context, d ocispec.Descriptor, dst Sink) error {
	if dst.Size() == d.Size {
		return nil
	}
	return s.stream(ctx, d, dst)
}

func (r *ranges) run(ctx context.Context, dst Sink, workers int) error {
	order := make(chan *segment, workers)
	var group sync.WaitGroup
	defer group.Wait()
	defer r.stop()
	for range workers {
		r.free <- make([]byte, r.s.c.tuning.segment)
	}
	// One goroutine hands out segments in order, so that order is the sink's; each segment has a goroutine of its own.
	group.Go(func() {
		defer close(order)
		for r.next < r.d.Size {
			var buf []byte
			select {
			case buf = <-r.free:
			case <-ctx.Done():
				return
			}
			g := &segment{span: span{r.next, min(r.next+r.s.c.tuning.segment, r.d.Size), r.d.Size}, buf: buf, more: make(chan struct{}, 1)}
			r.next = g.to
			group.Go(func() { r.fill(ctx, g) })
			order <- g // never blocks: there are no more segments than buffers
		}
	})
	for g := range order {
		if err := r.deliver(ctx, g, dst); err != nil {
			return err
		}
		r.free <- g.buf
	}
	return ctx.Err()
}

// deliver writes a segment while it fills.
func (r *ranges) deliver(ctx context.Context, g *segment, dst Sink) error {
	for written := 0; written < len(g.buf[:g.to-g.from]); {
		filled, err := g.state()
		if filled > written {
			if _, err := dst.Write(g.buf[written:filled]); err != nil {
				return fmt.Errorf("%w: %w", errSink, err)
			}
			written = filled
			continue
		}
		if err != nil {
			return err
		}
		select {
		case <-g.more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// fill gets one segment, with attempts of its own.
func (r *ranges) fill(ctx context.Context, g *segment) {
	for try := 0; ; try++ {
		err := r.fillOnce(ctx, g)
		if filled, _ := g.state(); int64(filled) == g.to-g.from {
			return
		}
		if errors.Is(err, errNoRanges) || !r.s.pause(ctx, try, err) {
			g.add(0, err)
			return
		}
	}
}

var errNoRanges = errors.New("the server stopped giving ranges")

func (r *ranges) fillOnce(ctx context.Context, g *segment) (err error) {
	defer task.Contain(r.s.c.log, "download of "+r.d.Digest.String(), &err)
	filled, _ := g.state()
	want := span{g.from + int64(filled), g.to, g.size}
	place := r.at()
	if r.s.noRanges.Load() {
		return errNoRanges
	}
	b, err := r.s.open(ctx, r.d, want, place)
	if e, ok := asError(err); ok && place != nil && e.Status < 500 {
		r.moved(nil) // the link has run out: the registry gives another
		b, err = r.s.open(ctx, r.d, want, nil)
	}
	if err != nil {
		return err
	}
	defer b.Close()
	if b.whole && want.to < want.size {
		r.s.noRanges.Store(true)
		return errNoRanges
	}
	if !r.s.own(b.final) {
		r.moved(b.final)
	}
	for want.from < want.to {
		n, err := b.Read(g.buf[want.from-g.from : g.to-g.from])
		want.from += int64(n)
		g.add(n, nil)
		if err != nil && want.from < want.to {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%s: %w", b.where, err)
		}
	}
	return nil
}

func (r *ranges) at() *url.URL {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.place
}

func (r *ranges) moved(u *url.URL) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.place = u
}

// takeRoom gives up to n places, without waiting for any.
func (c *Client) takeRoom(n int) int {
	for i := range n {
		select {
		case c.room <- struct{}{}:
		default:
			return i
		}
	}
	return n
}

func (c *Client) giveRoom(n int) {
	for range n {
		<-c.room
	}
}
