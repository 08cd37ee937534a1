package volume

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// How long things are when volumes are counted.
const (
	// recountAfter times what a count took is how long it is taken for new, at most maxFresh: what costs nothing is always counted anew, what costs minutes is not.
	recountAfter = 20
	maxFresh     = time.Minute
	// slotTime is how long a count keeps others from beginning, overdue from when on nobody is told to wait for it: its file system may never answer.
	slotTime = 2 * time.Second
	overdue  = 2 * time.Second
	// countSlots is how many counts there are at a time.
	countSlots = 2
	// closeTime is how long Close waits for counts to see that they are to end.
	closeTime = time.Second
)

// counts remembers what volumes hold. One count of a volume is under way at a time, in the background:
//
//	asked, and the last one old ──▶ waits for a slot ──▶ walks ──▶ known, new for a while
//	                                                       │ slotTime: gives the slot to others, goes on walking
//	                                                       ╳ a dead file server never answers: that volume's goroutine stands still, nothing else does
type counts struct {
	ctx   context.Context
	stop  context.CancelFunc
	log   *slog.Logger
	slots chan struct{}
	done  sync.WaitGroup

	mu    sync.Mutex // guards known and what it holds
	known map[string]*count
}

type count struct {
	bytes int64 // -1: not known
	at    time.Time
	took  time.Duration
	since time.Time // of the count that is under way; zero: none is
}

func newCounts(log *slog.Logger) *counts {
	c := &counts{log: log, slots: make(chan struct{}, countSlots), known: make(map[string]*count)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// close ends the counts; those that hang are left to their file systems.
func (c *counts) close() {
	c.mu.Lock() // so that none begins behind the Wait
	c.stop()
	c.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		c.done.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeTime):
	}
}

func (c *counts) last(name string, walk func(context.Context) (int64, error)) (bytes int64, counted time.Time, counting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.known[name]
	if n == nil {
		n = &count{bytes: -1}
		c.known[name] = n
	}
	if n.since.IsZero() && time.Since(n.at) > min(recountAfter*n.took, maxFresh) && c.ctx.Err() == nil {
		n.since = time.Now()
		c.done.Go(func() { c.run(name, n, walk) })
	}
	return n.bytes, n.at, !n.since.IsZero() && time.Since(n.since) < overdue
}

func (c *counts) run(name string, n *count, walk func(context.Context) (int64, error)) {
	select {
	case c.slots <- struct{}{}:
	case <-c.ctx.Done():
		return
	}
	leave := sync.OnceFunc(func() { <-c.slots })
	timer := time.AfterFunc(slotTime, leave)
	began := time.Now()
	bytes, err := walk(c.ctx)
	timer.Stop()
	leave()
	if err != nil {
		bytes = -1
		if !errors.Is(err, errs.NotFound) && c.ctx.Err() == nil {
			c.log.Warn("a volume cannot be counted", "volume", name, "error", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n.bytes, n.at, n.took, n.since = bytes, time.Now(), time.Since(began), time.Time{}
}

// forget drops what is known about a volume that is gone.
func (c *counts) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, name)
}
