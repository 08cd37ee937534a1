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
	select {
	case l.room <- struct{}{}:
		return func() { k.leave(name, l) }, nil
	case <-ctx.Done():
		k.drop(name, l)
		return nil, context.Cause(ctx)
	}
}

// taken tells whether somebody has a name.
func (k *keyed) taken(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.locks[name] != nil
}

// try takes a name if nobody has it.
func (k *keyed) try(name string) (give func(), ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks[name] != nil {
		return nil, false
	}
	l := &keyedLock{room: make(chan struct{}, 1), users: 1}
	l.room <- struct{}{}
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	k.locks[name] = l
	return func() { k.leave(name, l) }, true
}

// leave gives a name that was taken.
func (k *keyed) leave(name string, l *keyedLock) {
	<-l.room
	k.drop(name, l)
}

func (k *keyed) drop(name string, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, name)
	}
}
