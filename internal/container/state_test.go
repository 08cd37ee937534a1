package container_test

import (
	"encoding/json"
	"errors"
	"testing"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
)

var all = []container.Status{
	container.Created, container.Starting, container.Running, container.Paused, container.Restarting, container.Exited, container.Removing, container.Dead,
}

// The whole table, one line per status: what it may become.
func TestMoves(t *testing.T) {
	want := map[container.Status]string{
		container.Created: "starting exited removing ", container.Starting: "created running restarting exited ", container.Running: "paused restarting exited ",
		container.Paused: "running restarting exited ", container.Restarting: "starting exited removing ", container.Exited: "starting removing ",
		container.Removing: "created exited dead ", container.Dead: "removing ",
	}
	for _, from := range all {
		got := ""
		for _, to := range all {
			err := container.Move(from, to)
			if err == nil {
				got += string(to) + " "
			} else if !errors.Is(err, errs.Conflict) {
				t.Errorf("%s to %s: %v is not a conflict", from, to, err)
			}
		}
		if got != want[from] {
			t.Errorf("%s may become %q, want %q", from, got, want[from])
		}
	}
}

func TestLive(t *testing.T) {
	for _, s := range all {
		if s.Live() != (s == container.Running || s == container.Paused) {
			t.Errorf("%s: %v", s, s.Live())
		}
	}
}

// FuzzRecord: whatever stands in a record file, reading it and writing it again is stable.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"ID":"a","Name":"b","Host":{"DNS":["1.2.3.4"],"Ports":[{"Proto":"tcp","HostIP":""}]},"State":{"Status":"running"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var rec container.Record
		if json.Unmarshal(b, &rec) != nil {
			return
		}
		first, err := json.Marshal(rec)
		if err != nil {
			t.Skip() // times beyond the year 9999 cannot be written
		}
		var again container.Record
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatalf("%v in %s", err, first)
		}
		second, err := json.Marshal(again)
		if err != nil || string(second) != string(first) {
			t.Fatalf("%s became %s (%v)", first, second, err)
		}
	})
}
