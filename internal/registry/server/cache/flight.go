package cache

import (
	"context"
	"sync"
)

// flights do one thing once for all who want it at the same time. It goes on for as long as one of them still waits.
type flights[T any] struct {
	mu    sync.Mutex // guards under and the waiters of each
	under map[string]*flightOf[T]
}

type flightOf[T any] struct {
	done    chan struct{}
	value   T
	waiters int
	cancel  context.CancelFunc
}

func (f *flights[T]) do(ctx context.Context, key string, work func(ctx context.Context) T) (value T, err error) {
	f.mu.Lock()
	one := f.under[key]
	if one == nil {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		one = &flightOf[T]{done: make(chan struct{}), cancel: cancel}
		if f.under == nil {
			f.under = map[string]*flightOf[T]{}
		}
		f.under[key] = one
		go func() {
			defer cancel()
			one.value = work(own)
			f.mu.Lock()
			if f.under[key] == one {
				delete(f.under, key)
			}
			f.mu.Unlock()
			close(one.done)
		}()
	}
	one.waiters++
	f.mu.Unlock()
	select {
	case <-one.done:
		return one.value, nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if one.waiters--; one.waiters == 0 {
		one.cancel()
		if f.under[key] == one { // who comes now begins anew, instead of getting a cancelled answer
			delete(f.under, key)
		}
	}
	return value, ctx.Err()
}
