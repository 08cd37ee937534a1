package drivers

import (
	"sync/atomic"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
)

// A plugin that took a call and never answers kept `volume ls`, and whoever looked for a volume that nobody knew, for five seconds each time it had rested. Now the first caller waits for a second,
// nobody else waits, its volumes are known from what it told last, and it is asked again in the background until it answers.
func TestHungPluginKeepsNobody(t *testing.T) {
	h := newHost(t, "net", "hung")
	s, _ := h.engine("")
	ctx := t.Context()
	create(t, s, "here", "")
	create(t, s, "vol", "hung")
	must(t, h.drivers["hung"].Create(ctx, "behind", nil)) // and no record of it here
	if list, warnings, err := s.ListWarned(ctx); err != nil || len(list) != 3 || len(warnings) != 0 {
		t.Fatalf("%+v, %q, %v", list, warnings, err)
	}
	free := make(chan struct{})
	var hanging atomic.Bool
	hanging.Store(true)
	h.drivers["hung"].Fail(false, func(string, string) error {
		if hanging.Load() {
			<-free
		}
		return nil
	})
	if _, _, err := s.ListWarned(ctx); err != nil { // who finds out
		t.Fatal(err)
	}
	asked := len(h.drivers["hung"].Calls())
	start := time.Now()
	for range 50 {
		list, warnings, err := s.ListWarned(ctx)
		if err != nil || len(list) != 3 || len(warnings) != 1 {
			t.Fatalf("%+v, %q, %v", list, warnings, err)
		}
		if vol, err := s.Get(ctx, "behind"); err != nil || vol.Driver != "hung" {
			t.Fatalf("%+v, %v", vol, err)
		}
		_, err = s.Get(ctx, "nowhere")
		wants(t, err, errs.NotFound, "nowhere")
		wants(t, s.Remove(ctx, "nowhere", false), errs.NotFound, "nowhere")
	}
	if took := time.Since(start); took > 25*time.Second { // 150 questions: with a second each, minutes
		t.Errorf("others waited for %s", took)
	}
	if n := len(h.drivers["hung"].Calls()) - asked; n > 2 {
		t.Errorf("the plugin has %d more calls to answer", n)
	}
	hanging.Store(false)
	close(free)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, warnings, err := s.ListWarned(ctx); err == nil && len(warnings) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a plugin that answers again is still taken for one that does not")
		}
	}
}
