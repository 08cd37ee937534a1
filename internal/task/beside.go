package task

import (
	"context"
	"log/slog"
	"sync"
)

// SideBySide runs do for 0 to n-1 and gives the first error, after all have ended. With that error the others' context ends: it is their cause. Each has a wall (Contain); what names the work.
func SideBySide(ctx context.Context, log *slog.Logger, what string, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	var once sync.Once
	var first error
	one := func(i int) (err error) {
		defer Contain(log, what, &err)
		return do(ctx, i)
	}
	for i := range n {
		all.Go(func() {
			if err := one(i); err != nil {
				once.Do(func() { first = err; cancel(err) })
			}
		})
	}
	all.Wait()
	return first
}
