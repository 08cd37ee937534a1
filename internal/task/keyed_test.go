package task

import (
	"context"
	"sync"
	"testing"
)

func TestKeyed(t *testing.T) {
	var k Keyed
	var all sync.WaitGroup
	n := 0 // guarded by the name
	for range 50 {
		all.Go(func() {
			unlock, err := k.Lock(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			n++
		})
	}
	all.Wait()
	unlock, err := k.Lock(t.Context(), "a")
	if err != nil || n != 50 {
		t.Fatal(n, err)
	}
	other, err := k.Lock(t.Context(), "b")
	if err != nil {
		t.Fatal("another name waits: ", err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Lock(ctx, "a"); err == nil {
		t.Error("held twice")
	}
	unlock()
	if len(k.held) != 0 {
		t.Error("names stay: ", k.held)
	}
}
