package depot

import (
	"context"
	"errors"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// recountAfter is the age from which a count is renewed when somebody asks.
const recountAfter = time.Minute

// counts remembers what trees hold. One goroutine counts, one tree after the other, and lives only while there is something to count.
type counts struct {
	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup

	mu    sync.Mutex // guards what follows
	known map[string]counted
	queue []string
	asked map[string]bool // in queue, or being counted
	busy  bool
}

type counted struct {
	bytes int64
	at    time.Time
}

// LastUsage answers at once with what the tree held when it was counted last (the zero time: not yet), and has it counted again in the background when that is long
// ago. count is the driver's Usage.
func (d *Depot) LastUsage(key string, count func(ctx context.Context, key string) (int64, error)) (int64, time.Time) {
	c := &d.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.known[key]
	if time.Since(have.at) < recountAfter || c.asked[key] || c.ctx.Err() != nil {
		return have.bytes, have.at
	}
	c.asked[key] = true
	c.queue = append(c.queue, key)
	if !c.busy {
		c.busy = true
		c.done.Go(func() { d.countAll(count) })
	}
	return have.bytes, have.at
}

func (d *Depot) countAll(count func(ctx context.Context, key string) (int64, error)) {
	c := &d.counts
	for {
		c.mu.Lock()
		if len(c.queue) == 0 || c.ctx.Err() != nil {
			c.busy, c.queue = false, nil
			clear(c.asked)
			c.mu.Unlock()
			return
		}
		key := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		n, err := count(c.ctx, key)
		c.mu.Lock()
		delete(c.asked, key)
		if err == nil {
			c.known[key] = counted{n, time.Now()}
		}
		c.mu.Unlock()
		if err != nil && !errors.Is(err, errs.NotFound) && c.ctx.Err() == nil {
			d.log.Warn("a tree cannot be counted", "key", key, "error", err)
		}
	}
}

// forgetUsage drops what is known about a tree that is gone.
func (d *Depot) forgetUsage(key string) {
	d.counts.mu.Lock()
	defer d.counts.mu.Unlock()
	delete(d.counts.known, key)
}
