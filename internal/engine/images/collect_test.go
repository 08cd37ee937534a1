package images

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
)

type memCollector struct {
	calls chan image.Policy
	gone  []image.Collected
	bug   atomic.Bool
}

func (m *memCollector) Collect(_ context.Context, p image.Policy, space func() (int64, int64), inUse func(digest.Digest) bool) ([]image.Collected, error) {
	m.calls <- p
	if m.bug.Swap(false) {
		panic("a bug")
	}
	return m.gone, errors.New("some of it stays")
}

func TestCollection(t *testing.T) {
	m := &memCollector{calls: make(chan image.Policy, 10), gone: []image.Collected{{Image: digest.FromString("x"), Names: []string{"x:1"}, Bytes: 5, Why: "old"}, {Bytes: 3, Why: "a download"}}}
	m.bug.Store(true)
	var free, looks atomic.Int64
	free.Store(50)
	bus := &events.Bus{}
	store := newStore(newBlobs())
	s := New(Options{Store: store, Transfers: store, Blobs: newBlobs(), Registry: newRegistry(), Events: bus,
		Collection: Collection{Collector: m, Policy: image.Policy{High: 80, Low: 70}, Space: func() (int64, int64) { defer looks.Add(1); return free.Load(), 100 }, Every: time.Hour}})
	defer s.Close()
	_, listener := bus.Subscribe(time.Time{})
	defer listener.Close()
	s.grow() // space enough: nothing
	for looks.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	free.Store(10)
	for range 2 { // the first look meets a bug; the next one comes all the same
		s.grow()
		if p := <-m.calls; p.High != 80 {
			t.Error(p)
		}
	}
	for _, want := range []string{"untag", "delete", "prune"} {
		e := <-listener.C
		if e.Action != want || want != "prune" && e.Attributes["reason"] != "old" || want == "prune" && e.Attributes["reclaimed"] != "8" {
			t.Errorf("%+v", e)
		}
	}
	if len(m.calls) > 0 {
		t.Error("looked without need")
	}
}
