package images

import (
	"context"
	"log/slog"

	"corten.dev/corten/internal/task"
)

// reports are what a pull or push tells, on their way to who listens. That one may be slow; the work is not to wait for it longer than it must.
type reports chan Report

func newReports() reports { return make(reports, 64) }

// say tells, unless nobody listens any more.
func (rs reports) say(ctx context.Context, r Report) {
	select {
	case rs <- r:
	case <-ctx.Done():
	}
}

// during runs work in a goroutine of its own while what it says is handed to report.
func (rs reports) during(ctx context.Context, log *slog.Logger, what string, report Reporter, work func(ctx context.Context) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(rs)
		defer task.Contain(log, what, &err)
		err = work(ctx)
	}()
	for r := range rs {
		report(r)
	}
	return err
}
