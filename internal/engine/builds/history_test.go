package builds

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

func historyOf(t *testing.T, dir string) *history {
	t.Helper()
	h, err := openHistory(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// A build that was under way when the engine was killed is one that failed, and says why.
func TestHistoryOfAKilledEngine(t *testing.T) {
	dir := t.TempDir()
	h := historyOf(t, dir)
	if _, err := h.begin(Build{Ref: "cut off", Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := h.close(); err != nil { // nothing of the build is ended by it, as after a kill
		t.Fatal(err)
	}
	h = historyOf(t, dir)
	defer h.close()
	all, _ := h.list()
	if len(all) != 1 || !strings.Contains(all[0].Error, "engine stopped") || all[0].Completed.IsZero() {
		t.Errorf("got %+v", all)
	}
	if err := h.replay(t.Context(), "cut off", func(build.Status) error { return nil }); err != nil {
		t.Errorf("replay: %v", err)
	}
}

// What a build names is there as long as the build is, with the next engine too.
func TestDocumentsOfHistory(t *testing.T) {
	dir := t.TempDir()
	h := historyOf(t, dir)
	text, none := []byte("{}\n"), digest.FromString("none")
	run, err := h.begin(Build{Ref: "one", Created: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	run.document(Document{Platform: "linux/amd64", Type: "x"}, text)
	run.end(nil, nil)
	check := func() {
		t.Helper()
		all, _ := h.list()
		if len(all) != 1 || len(all[0].Provenance) != 1 || all[0].Provenance[0] != (Document{"linux/amd64", "x", digest.FromBytes(text), 3}) {
			t.Fatalf("%+v", all)
		}
		if raw, err := h.document(all[0].Provenance[0].Digest); err != nil || string(raw) != string(text) {
			t.Errorf("%q %v", raw, err)
		}
		if _, err := h.document(none); !errors.Is(err, errs.NotFound) {
			t.Error(err)
		}
	}
	check()
	if err := h.close(); err != nil {
		t.Fatal(err)
	}
	h = historyOf(t, dir)
	defer h.close()
	check()
	if err := h.remove("one"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.document(digest.FromBytes(text)); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if left, err := h.documents.All(); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	dir := t.TempDir()
	h := historyOf(t, dir)
	for i := range maxHistory + 7 {
		run, err := h.begin(Build{Ref: fmt.Sprint(i), Created: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; i == 20 && n < 3; n++ {
			run.add(build.Status{Logs: []build.LogStatus{{Data: make([]byte, maxOutput/2+1)}}})
		}
		run.end(nil, nil)
	}
	if err := h.close(); err != nil {
		t.Fatal(err)
	}
	h = historyOf(t, dir)
	defer h.close()
	all, _ := h.list()
	if len(all) != maxHistory || all[0].Ref != "7" {
		t.Errorf("%d builds, the oldest is %s", len(all), all[0].Ref)
	}
	if kept, err := h.status.All(); err != nil || len(kept) != maxHistory {
		t.Errorf("%d outputs are kept, %v", len(kept), err)
	}
	bytes := 0
	if err := h.replay(t.Context(), "20", func(st build.Status) error {
		for _, l := range st.Logs {
			bytes += len(l.Data)
		}
		return nil
	}); err != nil || bytes > maxOutput || bytes < maxOutput/2 {
		t.Errorf("replay has %d bytes, %v", bytes, err)
	}
}

func TestHistoryTwice(t *testing.T) {
	h := historyOf(t, t.TempDir())
	defer h.close()
	run, err := h.begin(Build{Ref: "a", Created: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.begin(Build{Ref: "a"}); !errors.Is(err, errs.Conflict) {
		t.Errorf("twice at a time: %v", err)
	}
	if err := h.remove("a"); !errors.Is(err, errs.Conflict) {
		t.Errorf("removed while it is under way: %v", err)
	}
	run.end(nil, nil)
	if err := h.remove("a"); err != nil {
		t.Error(err)
	}
	if err := h.remove("a"); !errors.Is(err, errs.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
}
