package builds

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"corten.dev/corten/internal/build"
)

// Who follows a build is told all of its output, also what is more than history keeps: buildx, which hears of a build in no other way, showed nothing any more after the first 4 MB.
func TestFollowerHearsAll(t *testing.T) {
	h := historyOf(t, t.TempDir())
	defer h.close()
	run, err := h.begin(Build{Ref: "a", Created: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	const pieces, piece = 40, maxOutput / 10
	heard, parts, ready, done := 0, 0, make(chan struct{}), make(chan error)
	go func() {
		done <- h.replay(t.Context(), "a", func(st build.Status) error {
			if len(st.Warnings) > 0 {
				close(ready)
			}
			heard += size(st.Logs)
			parts += len(st.Parts)
			return nil
		})
	}()
	run.add(build.Status{Warnings: []build.Warning{{}}})
	<-ready
	now := time.Now()
	for i := range pieces {
		run.add(build.Status{Logs: []build.LogStatus{{Data: make([]byte, piece)}}})
		many := make([]build.PartStatus, maxParts/10)
		many[0].Completed = &now
		run.add(build.Status{Parts: many})
		if i%8 == 7 { // it reads as fast as that
			for waiting := true; waiting; time.Sleep(time.Millisecond) {
				run.mu.Lock()
				for f := range run.followers {
					f.mu.Lock()
					waiting = len(f.next) > 0
					f.mu.Unlock()
				}
				run.mu.Unlock()
			}
		}
	}
	run.end(nil, nil)
	if err := <-done; err != nil || heard != pieces*piece || parts != pieces*maxParts/10 {
		t.Error(heard, parts, err)
	}
	// Who comes later has what history keeps.
	heard, parts = 0, 0
	if err := h.replay(t.Context(), "a", func(st build.Status) error {
		heard += size(st.Logs)
		parts += len(st.Parts)
		return nil
	}); err != nil || heard < maxOutput/2 || heard > maxOutput+100 || parts < maxParts || parts > maxParts+pieces {
		t.Error(heard, parts, err)
	}
}

// One who does not read holds up nobody, and makes the engine keep no more than a bound for it.
func TestFollowerThatDoesNotRead(t *testing.T) {
	h := historyOf(t, t.TempDir())
	defer h.close()
	run, err := h.begin(Build{Ref: "a", Created: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	stuck, leave, done := make(chan struct{}), make(chan struct{}), make(chan error)
	heard := 0
	go func() {
		done <- h.replay(t.Context(), "a", func(st build.Status) error {
			if len(st.Warnings) > 0 {
				close(stuck)
				<-leave
			}
			heard += size(st.Logs)
			return nil
		})
	}()
	run.add(build.Status{Warnings: []build.Warning{{}}})
	<-stuck
	for range 3 * maxBehind >> 20 {
		run.add(build.Status{Logs: []build.LogStatus{{Data: make([]byte, 1<<20)}}})
	}
	for range 2 * maxWaiting {
		run.add(build.Status{Parts: make([]build.PartStatus, 1)})
	}
	for f := range run.followers {
		if f.behind > maxBehind || len(f.next) > maxWaiting+2 {
			t.Error(f.behind, len(f.next))
		}
	}
	run.end(nil, nil)
	close(leave)
	if err := <-done; err != nil || heard < maxBehind || heard > maxBehind+1000 {
		t.Error(heard, err)
	}
}

// A build that is forgotten while it is still being written down is not there for the next engine.
func TestForgetWhileItIsWritten(t *testing.T) {
	dir := t.TempDir()
	h := historyOf(t, dir)
	for i := range 100 {
		run, err := h.begin(Build{Ref: fmt.Sprint(i), Created: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		run.add(build.Status{Logs: []build.LogStatus{{Data: make([]byte, 10<<10)}}})
		run.end(nil, errors.New("failed"))
		if err := h.remove(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.close(); err != nil {
		t.Fatal(err)
	}
	h = historyOf(t, dir)
	defer h.close()
	lines, err := h.lines.All()
	statuses, serr := h.status.All()
	if len(lines)+len(statuses) > 0 || err != nil || serr != nil {
		t.Error(len(lines), len(statuses), err, serr)
	}
}
