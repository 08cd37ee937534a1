// Package events is the stream of what happened: a bounded history and any number of listeners.
//
// It owns the last events in memory. It promises that Publish never waits for a listener: a listener that does not keep up is ended, and told so.
package events

import (
	"sync"
	"time"
)

// Event is one thing that happened to one actor. Names are Docker's ("container", "start").
type Event struct {
	Type       string
	Action     string
	ID         string
	Attributes map[string]string
	Time       time.Time
}

const (
	history = 1024 // events kept for --since
	queue   = 4096 // events a listener may lag behind
)

// Bus carries events. The zero value is ready.
type Bus struct {
	mu        sync.Mutex // guards all below
	past      []Event    // ring, oldest at next once full
	count     uint64     // published so far
	next      int
	listeners map[*Listener]struct{}
}

// Listener receives events on C until Close; C is closed early when it lagged too far behind (Lagged is then true).
type Listener struct {
	C      <-chan Event
	c      chan Event
	bus    *Bus
	lagged bool
}

// Publish records e and hands it to every listener. It stamps e.Time when it is zero.
func (b *Bus) Publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	b.count++
	if len(b.past) < history {
		b.past = append(b.past, e)
	} else {
		b.past[b.next] = e
		b.next = (b.next + 1) % history
	}
	for l := range b.listeners {
		select {
		case l.c <- e:
		default:
			l.lagged = true
			delete(b.listeners, l)
			close(l.c)
		}
	}
}

// Count is how many events were published.
func (b *Bus) Count() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// Subscribe returns the remembered events since a moment (none for the zero time) and a listener for all that follow, without a gap between them.
func (b *Bus) Subscribe(since time.Time) ([]Event, *Listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var past []Event
	if !since.IsZero() {
		for i := range b.past {
			if e := b.past[(b.next+i)%len(b.past)]; !e.Time.Before(since) {
				past = append(past, e)
			}
		}
	}
	c := make(chan Event, queue)
	l := &Listener{C: c, c: c, bus: b}
	if b.listeners == nil {
		b.listeners = map[*Listener]struct{}{}
	}
	b.listeners[l] = struct{}{}
	return past, l
}

// Lagged tells whether the bus ended this listener.
func (l *Listener) Lagged() bool {
	l.bus.mu.Lock()
	defer l.bus.mu.Unlock()
	return l.lagged
}

// Close ends the listener. Safe to call twice.
func (l *Listener) Close() {
	l.bus.mu.Lock()
	defer l.bus.mu.Unlock()
	if _, ok := l.bus.listeners[l]; ok {
		delete(l.bus.listeners, l)
		close(l.c)
	}
}
