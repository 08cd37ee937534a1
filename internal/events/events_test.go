package events

import (
	"testing"
	"time"
)

func TestSubscribeHasNoGap(t *testing.T) {
	var b Bus
	start := time.Now()
	for range history + 10 {
		b.Publish(Event{Type: "container", Action: "start"})
	}
	past, l := b.Subscribe(start)
	defer l.Close()
	if len(past) != history {
		t.Fatalf("history: got %d events, want %d", len(past), history)
	}
	for i := 1; i < len(past); i++ {
		if past[i].Time.Before(past[i-1].Time) {
			t.Fatalf("event %d is older than its predecessor", i)
		}
	}
	b.Publish(Event{Type: "container", Action: "die"})
	if e := <-l.C; e.Action != "die" {
		t.Fatalf("got %q", e.Action)
	}
}

// A listener that never reads must not stop anyone: it is ended and told so.
func TestLaggingListenerIsEnded(t *testing.T) {
	var b Bus
	_, slow := b.Subscribe(time.Time{})
	for range queue + 1 {
		b.Publish(Event{})
	}
	n := 0
	for range slow.C {
		n++
	}
	if n != queue || !slow.Lagged() {
		t.Fatalf("got %d events, lagged %v", n, slow.Lagged())
	}
	slow.Close()
}
