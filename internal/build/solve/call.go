package solve

import (
	"context"
	"sync"

	"corten.dev/corten/internal/task"
)

// call is work that goes on for those who wait for it:
//
//	begin ──▶ running, one waits ──work returns──▶ ended: val and err are there for good
//	              │ enter: one more waits
//	              └─the last leaves──▶ left: the work is cancelled, nobody can enter any more
type call[T any] struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when ended, or when the work that was left has returned
	val    T             // from done on
	err    error         // from done on

	mu      sync.Mutex // guards what follows
	waiting int
	ended   bool
	left    bool
}

// begin starts work under base for its first waiter, who entered by this. A bug in it is its error.
func begin[T any](base context.Context, on *crew, work func(context.Context) (T, error)) *call[T] {
	ctx, cancel := context.WithCancel(base)
	c := &call[T]{cancel: cancel, done: make(chan struct{}), waiting: 1}
	on.spawn(func() {
		defer cancel()
		c.val, c.err = contained(ctx, on, work)
		c.mu.Lock()
		c.ended = true
		c.mu.Unlock()
		close(c.done)
	})
	return c
}

func contained[T any](ctx context.Context, on *crew, work func(context.Context) (T, error)) (val T, err error) {
	defer task.Contain(on.log, "solve a build", &err)
	return work(ctx)
}

// enter counts one more who waits; false when the work was left, and has to be begun anew.
func (c *call[T]) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left {
		return false
	}
	c.waiting++
	return true
}

// wait gives what the work gave, or the cause of ctx' end, at once. It is called once by each who entered.
func (c *call[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-c.done:
		return c.val, c.err
	default:
	}
	select {
	case <-c.done:
		return c.val, c.err
	case <-ctx.Done():
		c.leave()
		var none T
		return none, context.Cause(ctx)
	}
}

func (c *call[T]) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting--
	if c.waiting == 0 && !c.ended {
		c.left = true
		c.cancel()
	}
}

// wasLeft tells whether nobody waits for the work any more although it has not ended by itself.
func (c *call[T]) wasLeft() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// future is a call that the first who waits begins, and the next one begins anew when all had left it. The zero value is ready.
type future[T any] struct {
	mu  sync.Mutex // guards now
	now *call[T]
}

// wait waits for the work, which base and on are for when it has to be begun.
func (f *future[T]) wait(ctx, base context.Context, on *crew, work func(context.Context) (T, error)) (T, error) {
	f.mu.Lock()
	c := f.now
	if c == nil || !c.enter() {
		c = begin(base, on, work)
		f.now = c
	}
	f.mu.Unlock()
	return c.wait(ctx)
}
