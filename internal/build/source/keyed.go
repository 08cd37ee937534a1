package source

import (
	"context"
	"sync"
)

// keyed lets one at a time do something with a name. The zero value is ready.
type keyed struct {
	mu    sync.Mutex // guards what follows
	locks map[string]*keyedLock
}

type keyedLock struct {
	room  chan struct{}
	users int
}

// take waits for the name; give must be called.
func (k *keyed) take(ctx context.Context, name string) (give func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[name]
	if l == nil {
		l = &keyedLock{room: make(chan struct{}, 1)}
		k.locks[name] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, name)
		}
	}
	select {
	case l.room <- struct{}{}:
		return func() { <-l.room; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
