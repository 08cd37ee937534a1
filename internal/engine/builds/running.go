package builds

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/task"
)

// What history keeps of a build. Who follows a build while it is under way is told all of it.
const (
	maxOutput   = 4 << 20 // bytes of steps' output
	maxParts    = 20_000  // states of parts; beyond it only their ends
	maxWarnings = 1_000
	// For one who follows and does not read, so many bytes of output wait, and so many statuses before states of parts are left out.
	maxBehind  = 16 << 20
	maxWaiting = 10_000
)

// running is a build under way.
type running struct {
	hist *history
	line Build // as it was at the beginning
	// internal: it is not part of history, only what happens in it can be asked for.
	internal bool

	mu        sync.Mutex     // guards all below
	kept      []build.Status // for history
	output    int            // bytes of logs, as they came
	parts     int
	warned    int
	started   map[digest.Digest]bool
	cached    map[digest.Digest]bool
	followers map[*follower]bool
	ended     bool

	documents  documents // for history, and the lines that name them
	provenance []Document
}

func (h *history) newRunning(line Build) *running {
	return &running{hist: h, line: line, started: map[digest.Digest]bool{}, cached: map[digest.Digest]bool{}, followers: map[*follower]bool{}}
}

// add takes what happened.
func (r *running) add(st build.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range st.Vertexes {
		if v.Started != nil {
			r.started[v.Digest] = true
		}
		if v.Cached {
			r.cached[v.Digest] = true
		}
	}
	for f := range r.followers {
		f.add(st)
	}
	r.keep(st)
}

// keep keeps what is within the bounds. The caller holds mu.
func (r *running) keep(st build.Status) {
	before := r.output
	if r.output += size(st.Logs); r.output > maxOutput {
		st.Logs = nil
		if before <= maxOutput {
			st.Logs = left("more output than history keeps")
		}
	}
	if r.parts += len(st.Parts); r.parts > maxParts {
		st.Parts = slices.DeleteFunc(slices.Clone(st.Parts), func(p build.PartStatus) bool { return p.Completed == nil })
	}
	if r.warned += len(st.Warnings); r.warned > maxWarnings {
		st.Warnings = nil
	}
	if len(st.Vertexes)+len(st.Parts)+len(st.Logs)+len(st.Warnings) > 0 {
		r.kept = append(r.kept, st)
	}
}

func size(logs []build.LogStatus) (bytes int) {
	for _, l := range logs {
		bytes += len(l.Data)
	}
	return bytes
}

// left says in the place of output that it is not there.
func left(why string) []build.LogStatus {
	return []build.LogStatus{{Timestamp: time.Now(), Stream: 2, Data: []byte("[" + why + "]\n")}}
}

// finish lets those who follow go, and tells what history keeps: the line with its outcome, and what happened.
func (r *running) finish(response map[string]string, err error) (line Build, kept []build.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	line = r.line
	line.Completed, line.Response = time.Now(), response
	line.Steps, line.Cached, line.Warnings, line.Provenance = len(r.started), len(r.cached), r.warned, r.provenance
	if err != nil {
		line.Error = err.Error()
	}
	r.ended = true
	for f := range r.followers {
		f.end()
	}
	return line, r.kept
}

// end writes the outcome down.
func (r *running) end(response map[string]string, err error) {
	line, kept := r.finish(response, err)
	h := r.hist
	if r.internal {
		time.AfterFunc(lingers, func() { h.written(r) })
		return
	}
	h.mu.Lock()
	delete(h.running, line.Ref)
	h.ending[line.Ref] = r
	h.past = append(h.past, line)
	gone := h.trim()
	h.wake()
	h.mu.Unlock()
	h.writes.Go(func() {
		defer task.Contain(h.log, "write down build "+line.Ref, nil)
		if err := h.status.Put(historyKey(line.Ref), kept, false); err != nil {
			h.log.Warn("what happened in a build is not written down", "build", line.Ref, "err", err)
		}
		if len(line.Provenance) > 0 {
			if err := h.documents.Put(historyKey(line.Ref), r.documents, false); err != nil {
				h.log.Warn("provenance of a build is not written down", "build", line.Ref, "err", err)
			}
		}
		h.put(line)
		if !h.written(r) {
			gone = append(gone, line) // somebody forgot it, before it was there
		}
		h.forget(gone)
	})
}

// replay gives what happened in a build, and goes on as long as it is under way.
func (r *running) replay(ctx context.Context, log *slog.Logger, each func(build.Status) error) error {
	f := &follower{wake: make(chan struct{}, 1)}
	r.mu.Lock()
	f.next, f.ended = slices.Clone(r.kept), r.ended
	if !r.ended {
		r.followers[f] = true
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.followers, f)
		r.mu.Unlock()
		if f.lost > 0 {
			log.Warn("who followed a build was too slow for its output", "build", r.line.Ref, "bytes left out", f.lost)
		}
	}()
	for {
		next, ended := f.take()
		for _, st := range next {
			if err := each(st); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
		select {
		case <-f.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// follower is one who follows a build.
type follower struct {
	wake chan struct{} // there is something to take

	mu     sync.Mutex // guards all below
	next   []build.Status
	behind int // bytes of logs in next
	lost   int // bytes that were left out
	ended  bool
}

func (f *follower) add(st build.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := size(st.Logs)
	if f.behind += n; n > 0 && f.behind > maxBehind {
		st.Logs = nil
		if f.lost == 0 {
			st.Logs = left("output is left out: it is not read as fast as it comes")
		}
		f.behind, f.lost = f.behind-n, f.lost+n
	}
	if len(f.next) > maxWaiting {
		st.Parts = nil // the next state of each says the same
	}
	if len(st.Vertexes)+len(st.Parts)+len(st.Logs)+len(st.Warnings) > 0 {
		f.next = append(f.next, st)
		f.poke()
	}
}

func (f *follower) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.poke()
}

func (f *follower) poke() {
	select {
	case f.wake <- struct{}{}:
	default: // it has been told
	}
}

// take gives what came since, and whether that is all.
func (f *follower) take() (next []build.Status, ended bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next, f.next, f.behind = f.next, nil, 0
	return next, f.ended
}
