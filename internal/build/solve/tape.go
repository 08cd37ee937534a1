package solve

import (
	"sync"
	"time"

	"corten.dev/corten/internal/build"
)

// tape keeps what a flight tells, for those who listen to it now and, from its beginning, for those who come later. What it keeps is bounded by the bound on output.
type tape struct {
	mu       sync.Mutex // guards what follows
	started  time.Time
	process  string
	logs     []build.LogStatus
	parts    []build.PartStatus // the newest of each
	index    map[string]int     // where in parts
	warnings []build.Warning
	clips    clips
	voices   map[*voice]int
}

// join plays the tape to a voice, and keeps it told. A voice that joins twice hears once.
func (t *tape) join(v *voice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.voices == nil {
		t.voices = map[*voice]int{}
	}
	t.voices[v]++
	if t.voices[v] > 1 || t.started.IsZero() {
		return
	}
	v.begin(t.started)
	if t.process != "" {
		v.Running(t.process)
	}
	for _, l := range t.logs {
		v.log(l.Stream, l.Data, l.Timestamp)
	}
	for _, p := range t.parts {
		v.part(p)
	}
	for _, w := range t.warnings {
		v.Warn(w)
	}
}

// part ends it for a voice.
func (t *tape) part(v *voice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.voices[v]--; t.voices[v] == 0 {
		delete(t.voices, v)
	}
}

// begin tells that the step has started.
func (t *tape) begin(at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.started = at
	for v := range t.voices {
		v.begin(at)
	}
}

// end tells what was held back.
func (t *tape) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for stream, data := range t.clips.rest() {
		t.keep(stream, data, time.Now())
	}
}

// keep adds output, with t.mu held.
func (t *tape) keep(stream int, data []byte, at time.Time) {
	if n := len(t.logs); n > 0 && t.logs[n-1].Stream == stream && len(t.logs[n-1].Data)+len(data) <= piece && at.Sub(t.logs[n-1].Timestamp) < beat {
		t.logs[n-1].Data = append(t.logs[n-1].Data, data...)
	} else {
		t.logs = append(t.logs, build.LogStatus{Stream: stream, Data: append([]byte(nil), data...), Timestamp: at})
	}
	for v := range t.voices {
		v.log(stream, data, at)
	}
}

// Running implements build.Runs.
func (t *tape) Running(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.process = id
	for v := range t.voices {
		v.Running(id)
	}
}

// Log implements build.Progress.
func (t *tape) Log(stream int, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if data = t.clips.take(stream, data); len(data) > 0 {
		t.keep(stream, data, time.Now())
	}
}

// Status implements build.Progress.
func (t *tape) Status(id string, current, total int64, done bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.index[id]
	if !ok {
		if t.index == nil {
			t.index = map[string]int{}
		}
		i = len(t.parts)
		t.index[id] = i
		t.parts = append(t.parts, build.PartStatus{Started: &now})
	}
	t.parts[i] = partOf(id, current, total, done, *t.parts[i].Started, now)
	for v := range t.voices {
		v.part(t.parts[i])
	}
}

// Warn implements build.Progress.
func (t *tape) Warn(w build.Warning) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.warnings = append(t.warnings, w)
	for v := range t.voices {
		v.Warn(w)
	}
}
