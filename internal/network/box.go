package network

import (
	"context"

	"corten.dev/corten/internal/errs"
)

// newBox makes the live side of a sandbox.
func newBox(req JoinRequest, sb Sandbox) *box {
	bx := &box{req: req, sb: sb, turn: make(chan struct{}, 1)}
	bx.life, bx.end = context.WithCancelCause(context.Background())
	return bx
}

// change begins a change of a sandbox: one at a time, and none after its container's end, which does not wait for plugins but ends the context. done must be called.
func (l *Local) change(ctx context.Context, owner string) (bx *box, _ context.Context, done func(), err error) {
	l.mu.Lock()
	bx = l.boxes[owner]
	l.mu.Unlock()
	gone := errs.New(errs.NotFound, "sandbox of %s not found", short(owner))
	if bx == nil {
		return nil, ctx, nil, gone
	}
	select {
	case bx.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx, nil, context.Cause(ctx)
	}
	l.mu.Lock()
	there := bx.ready && !bx.leaving && l.boxes[owner] == bx
	l.mu.Unlock()
	if !there {
		<-bx.turn
		return nil, ctx, nil, gone
	}
	ctx, stop := bx.during(ctx)
	return bx, ctx, func() { stop(); <-bx.turn }, nil
}

// during ends a context with the sandbox, too.
func (bx *box) during(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(bx.life, func() { cancel(context.Cause(bx.life)) })
	return ctx, func() { stop(); cancel(nil) }
}
