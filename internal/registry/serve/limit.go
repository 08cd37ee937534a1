package serve

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"corten.dev/corten/internal/registry/server/access"
	"corten.dev/corten/internal/registry/server/config"
)

// limiter bounds what one user, or one address without a proven user, may take: requests by a token bucket (429 with Retry-After when it is empty),
// bytes by waiting.
type limiter struct {
	now     func() time.Time
	refused atomic.Int64

	mu      sync.Mutex // guards what follows
	rate    float64    // requests a second; 0 is no limit
	burst   float64
	bytes   float64 // a second; 0 is no limit
	buckets map[string]*bucket
}

// bucket is what one asker has left. full is when it would be full again if nothing more came: an empty bucket is a time far ahead.
type bucket struct {
	requests time.Time // the bucket of requests is full at
	bytes    time.Time // that of bytes is full at
}

const (
	maxBuckets = 50000
	pieceSize  = 64 << 10
)

func newLimiter(l config.Limits, now func() time.Time) *limiter {
	lim := &limiter{now: now, buckets: map[string]*bucket{}}
	lim.set(l)
	return lim
}

func (l *limiter) set(c config.Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.burst, l.bytes = c.Requests, float64(c.Burst), float64(c.Bandwidth)
	if l.burst < 1 {
		l.burst = max(1, 2*l.rate) // two seconds' worth: a pull begins with a handful at once
	}
}

// of finds or makes the bucket of an asker; the lock is held.
func (l *limiter) of(key string, now time.Time) *bucket {
	b := l.buckets[key]
	if b != nil {
		return b
	}
	if len(l.buckets) >= maxBuckets {
		for k, old := range l.buckets { // full ones say nothing
			if !old.requests.After(now) && !old.bytes.After(now) {
				delete(l.buckets, k)
			}
		}
		if len(l.buckets) >= maxBuckets {
			clear(l.buckets)
		}
	}
	b = &bucket{}
	l.buckets[key] = b
	return b
}

// take counts one request; a wait above zero means no.
func (l *limiter) take(key string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate <= 0 {
		return 0
	}
	now := l.now()
	b := l.of(key, now)
	full := b.requests
	if full.Before(now) {
		full = now
	}
	full = full.Add(time.Duration(float64(time.Second) / l.rate))
	if over := full.Sub(now) - time.Duration(l.burst/l.rate*float64(time.Second)); over > 0 {
		return over
	}
	b.requests = full
	return 0
}

// spend counts bytes and tells how long to wait before going on.
func (l *limiter) spend(key string, n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes <= 0 {
		return 0
	}
	now := l.now()
	b := l.of(key, now)
	if b.bytes.Before(now) {
		b.bytes = now
	}
	b.bytes = b.bytes.Add(time.Duration(float64(n) / l.bytes * float64(time.Second)))
	return b.bytes.Sub(now) - time.Second // one second's worth is free
}

func (l *limiter) shaping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes > 0
}

// asker is whom a request is counted for.
func asker(user string, addr netip.Addr) string {
	if user != "" {
		return "u " + user
	}
	return access.Network(addr)
}

// wrap puts the limits before a handler.
func (l *limiter) wrap(next http.Handler, who func(*http.Request) string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		key := who(req)
		if wait := l.take(key); wait > 0 {
			l.refused.Add(1)
			w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
			writeProblem(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "too many requests: slow down")
			return
		}
		if l.shaping() {
			ctx := req.Context()
			w = &shapedWriter{w, l, key, ctx}
			req.Body = &shapedBody{req.Body, l, key, ctx}
		}
		next.ServeHTTP(w, req)
	})
}

func (l *limiter) pause(ctx context.Context, key string, n int) error {
	wait := l.spend(key, n)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shapedWriter and shapedBody wait where bytes come faster than allowed. They read and write in small pieces, so that nobody waits long at once and is
// taken for dead.
type shapedWriter struct {
	http.ResponseWriter
	l   *limiter
	key string
	ctx context.Context // of the request this lives in
}

func (s *shapedWriter) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		piece := p[:min(len(p), pieceSize)]
		if err := s.l.pause(s.ctx, s.key, len(piece)); err != nil {
			return sent, err
		}
		n, err := s.ResponseWriter.Write(piece)
		sent += n
		if err != nil {
			return sent, err
		}
		p = p[n:]
	}
	return sent, nil
}

// Unwrap lets http.ResponseController reach deadlines and flushes.
func (s *shapedWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

type shapedBody struct {
	io.ReadCloser
	l   *limiter
	key string
	ctx context.Context // of the request this lives in
}

func (s *shapedBody) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p[:min(len(p), pieceSize)])
	if perr := s.l.pause(s.ctx, s.key, n); perr != nil && err == nil {
		err = perr
	}
	return n, err
}
