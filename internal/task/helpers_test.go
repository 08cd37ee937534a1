package task

import (
	"errors"
	"sync/atomic"
	"testing"
)

// A tree of calls that all share two places is walked whole, never by more than three at a time, and the first error comes out.
func TestHelpers(t *testing.T) {
	h := NewHelpers(2)
	var now, most, done atomic.Int32
	odd := errors.New("odd")
	var walk func(depth int) error
	walk = func(depth int) error {
		if depth == 0 {
			n := now.Add(1)
			for {
				m := most.Load()
				if n <= m || most.CompareAndSwap(m, n) {
					break
				}
			}
			now.Add(-1)
			done.Add(1)
			return nil
		}
		g := h.Group()
		for range 3 {
			g.Do(func() error { return walk(depth - 1) })
		}
		g.Here(func() error { return walk(depth - 1) })
		return g.Wait()
	}
	if err := walk(5); err != nil || done.Load() != 4*4*4*4*4 || most.Load() > 3 {
		t.Error(err, done.Load(), most.Load())
	}
	g := NewHelpers(0).Group()
	g.Do(func() error { return odd })
	if !g.Failed() {
		t.Error("not failed")
	}
	g.Do(func() error { return errors.New("later") })
	if err := g.Wait(); !errors.Is(err, odd) {
		t.Error(err)
	}
}
