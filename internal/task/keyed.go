package task

import (
	"context"
	"sync"
)

// Keyed locks names within this process: who is about to look at something and then change it holds its name, others wait for that or for their own end. The zero value is
// ready.
type Keyed struct {
	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

// Lock waits for a name; unlock must be called once.
func (k *Keyed) Lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		wait, busy := k.held[name]
		if !busy {
			if k.held == nil {
				k.held = map[string]chan struct{}{}
			}
			done := make(chan struct{})
			k.held[name] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, name)
				k.mu.Unlock()
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
