package system

import (
	"context"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/events"
)

// `events --until 0s` ended at once without a line: a stream without a beginning had no past, though its end lies in the past as a whole.
func TestEventsOfThePast(t *testing.T) {
	bus := &events.Bus{}
	start := time.Now()
	for i, action := range []string{"create", "start", "die"} {
		bus.Publish(events.Event{Type: "container", Action: action, ID: "a", Time: start.Add(time.Duration(i) * time.Second)})
	}
	s := &Service{Options: Options{Events: bus}}
	for _, c := range []struct {
		since, until time.Time
		want         string
	}{
		{time.Time{}, start.Add(-time.Hour), ""},
		{time.Time{}, start, "create"},
		{time.Unix(0, 0), start, "create"},
		{start.Add(-time.Minute), start, "create"},
		{time.Time{}, time.Unix(0, 0), ""},
	} {
		var got []string
		err := s.Events(context.Background(), c.since, c.until, nil, func(e events.Event) error {
			got = append(got, e.Action)
			return nil
		})
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%v to %v: %q %v, want %q", c.since, c.until, got, err, c.want)
		}
	}
}
