package solve_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/build"
)

// watcher gathers what a job tells.
type watcher struct {
	mu   sync.Mutex
	st   build.Status
	told int
}

func (w *watcher) status(st build.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told++
	w.st.Vertexes = append(w.st.Vertexes, st.Vertexes...)
	w.st.Parts = append(w.st.Parts, st.Parts...)
	w.st.Logs = append(w.st.Logs, st.Logs...)
	w.st.Warnings = append(w.st.Warnings, st.Warnings...)
}

func (w *watcher) output() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, l := range w.st.Logs {
		b.Write(l.Data)
	}
	return b.String()
}

// hears waits until the job has heard that a step runs: from then on it waits for it, whoever began it.
func (w *watcher) hears(t testing.TB, name string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); w.last(name).Started == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("a job never heard of %s", name)
			return
		}
	}
}

// last is the newest state of a vertex.
func (w *watcher) last(name string) (v build.VertexStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.st.Vertexes {
		if s.Name == name {
			v = s
		}
	}
	return v
}
