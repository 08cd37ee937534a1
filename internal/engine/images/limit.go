package images

import "context"

// limit bounds how many do something at a time. Nil does not.
type limit chan struct{}

func newLimit(n int) limit {
	if n <= 0 {
		return nil
	}
	return make(limit, n)
}

// take waits for a place. waiting is called before, if there is none at once.
func (l limit) take(ctx context.Context, waiting func()) error {
	if l == nil {
		return nil
	}
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	waiting()
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l limit) give() {
	if l != nil {
		<-l
	}
}
