package task

import "sync"

// Helpers are goroutines that one piece of work shares with all that it calls, however deep: as many as there are free places. Who asks for one and finds none does the work itself, so nobody ever waits for a
// place while it has one.
type Helpers chan struct{}

// NewHelpers gives n places.
func NewHelpers(n int) Helpers { return make(Helpers, max(n, 0)) }

// Group is what one caller has done side by side. It keeps the first error.
//
//	g := helpers.Group()
//	for _, piece := range pieces {
//		g.Do(func() error { … })
//	}
//	return g.Wait()
type Group struct {
	places Helpers
	wg     sync.WaitGroup
	mu     sync.Mutex // guards err
	err    error
}

// Group begins a group.
func (h Helpers) Group() *Group { return &Group{places: h} }

// Do runs fn in a helper if one is free, else in the caller. fn has a wall of its own (Contain).
func (g *Group) Do(fn func() error) {
	select {
	case g.places <- struct{}{}:
		g.wg.Go(func() {
			defer func() { <-g.places }()
			g.Here(fn)
		})
	default:
		g.Here(fn)
	}
}

// Here runs fn in the caller: for work that is too small to be given away.
func (g *Group) Here(fn func() error) {
	err := fn()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
}

// Failed tells whether something failed so far.
func (g *Group) Failed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err != nil
}

// Wait waits for the helpers and gives the first error.
func (g *Group) Wait() error {
	g.wg.Wait()
	return g.err
}
