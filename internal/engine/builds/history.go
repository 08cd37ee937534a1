package builds

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/record"
)

// maxHistory is how many builds are remembered.
const maxHistory = 50

// history is the builds that were, and those under way.
//
//	<dir>/<key>.json         a build: Build as JSON; key is the digest of its ref
//	<dir>/status/<key>.json  what happened in it: an array of build.Status
//	<dir>/documents/<key>.json  what its Provenance names: bytes by their digest
//
// Nothing is flushed: a crash of the machine may cost the last lines of history, and no build.
type history struct {
	log       *slog.Logger
	lines     *record.Dir[Build]
	status    *record.Dir[[]build.Status]
	documents *record.Dir[documents]
	writes    sync.WaitGroup // of builds that ended; waited for by close, when none begins or ends any more

	mu      sync.Mutex          // guards all below
	past    []Build             // the oldest first
	running map[string]*running // by ref
	ending  map[string]*running // ended, and not written down yet
	changed chan struct{}       // closed when past or running change
}

func openHistory(dir string, log *slog.Logger) (*history, error) {
	lines, err := record.Open[Build](dir, log)
	if err != nil {
		return nil, err
	}
	status, err := record.Open[[]build.Status](filepath.Join(dir, "status"), log)
	if err != nil {
		return nil, errors.Join(err, lines.Close())
	}
	papers, err := record.Open[documents](filepath.Join(dir, "documents"), log)
	if err != nil {
		return nil, errors.Join(err, lines.Close(), status.Close())
	}
	h := &history{log: log, lines: lines, status: status, documents: papers, running: map[string]*running{}, ending: map[string]*running{}, changed: make(chan struct{})}
	all, err := lines.All()
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	for name, line := range all {
		if line.Completed.IsZero() {
			line.Completed, line.Error = time.Now(), "engine stopped while the build was under way"
			if err := lines.Put(name, line, false); err != nil {
				return nil, errors.Join(err, h.close())
			}
		}
		h.past = append(h.past, line)
	}
	slices.SortFunc(h.past, func(a, b Build) int { return a.Created.Compare(b.Created) })
	h.forget(h.trim())
	return h, nil
}

func (h *history) close() error {
	h.writes.Wait()
	return errors.Join(h.lines.Close(), h.status.Close(), h.documents.Close())
}

func historyKey(ref string) string { return digest.FromString(ref).Encoded() }

// begin writes a build down, for the engine that comes after a kill.
func (h *history) begin(line Build) (*running, error) {
	run := h.newRunning(line)
	h.mu.Lock()
	if _, ok := h.running[line.Ref]; ok {
		h.mu.Unlock()
		return nil, errs.New(errs.Conflict, "build %s is under way already", line.Ref)
	}
	h.past = slices.DeleteFunc(h.past, func(b Build) bool { return b.Ref == line.Ref })
	h.running[line.Ref] = run
	h.wake()
	h.mu.Unlock()
	h.put(line)
	return run, nil
}

// lingers is how long what happened in an internal build can be asked for after its end: a client asks for the build and for its status at the same time, and a short build is over first.
const lingers = 10 * time.Second

// beginInternal begins a build that is not written down.
func (h *history) beginInternal(line Build) *running {
	run := h.newRunning(line)
	run.internal = true
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ending[line.Ref] = run
	return run
}

// written ends the time in which a build that is over is asked itself for what happened in it. It tells whether history still has the build.
func (h *history) written(r *running) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending[r.line.Ref] == r {
		delete(h.ending, r.line.Ref)
	}
	return h.running[r.line.Ref] != nil || slices.ContainsFunc(h.past, func(b Build) bool { return b.Ref == r.line.Ref })
}

// wake tells all who follow the list. The caller holds mu.
func (h *history) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// put is said in the log when it does not work: history is no reason to fail a build.
func (h *history) put(line Build) {
	if err := h.lines.Put(historyKey(line.Ref), line, false); err != nil {
		h.log.Warn("a build is not written down", "build", line.Ref, "err", err)
	}
}

// trim takes the oldest out of past. The caller holds mu, or is the only one.
func (h *history) trim() (gone []Build) {
	if n := len(h.past) - maxHistory; n > 0 {
		gone = slices.Clone(h.past[:n])
		h.past = slices.Delete(h.past, 0, n)
	}
	return gone
}

func (h *history) forget(gone []Build) {
	for _, b := range gone {
		key := historyKey(b.Ref)
		if err := errors.Join(h.lines.Delete(key, false), h.status.Delete(key, false), h.documents.Delete(key, false)); err != nil {
			h.log.Warn("a build of the past cannot be forgotten", "build", b.Ref, "err", err)
		}
	}
}

// list gives the lines, the newest last, and a channel that is closed when they are others.
func (h *history) list() ([]Build, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.Clone(h.past)
	for _, r := range h.running {
		all = append(all, r.line)
	}
	slices.SortStableFunc(all, func(a, b Build) int { return a.Created.Compare(b.Created) })
	return all, h.changed
}

// follow gives each line that is new or another than it was.
func (h *history) follow(ctx context.Context, follow bool, each func(Build) error) error {
	told := map[string]Build{}
	for {
		all, changed := h.list()
		for _, b := range all {
			if old, ok := told[b.Ref]; ok && old.Created.Equal(b.Created) && old.Completed.Equal(b.Completed) {
				continue
			}
			told[b.Ref] = b
			if err := each(b); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// replay gives what happened in a build, and goes on as long as it is under way.
func (h *history) replay(ctx context.Context, ref string, each func(build.Status) error) error {
	h.mu.Lock()
	run := h.running[ref]
	if run == nil {
		run = h.ending[ref]
	}
	known := slices.ContainsFunc(h.past, func(b Build) bool { return b.Ref == ref })
	h.mu.Unlock()
	switch {
	case run != nil:
		return run.replay(ctx, h.log, each)
	case !known:
		return errs.New(errs.NotFound, "no such build: %s", ref)
	}
	all, err := h.status.Get(historyKey(ref))
	if errors.Is(err, errs.NotFound) {
		return nil // the engine was killed during the build
	}
	for _, st := range all {
		if err := each(st); err != nil {
			return err
		}
	}
	return err
}

// remove forgets a build of the past.
func (h *history) remove(ref string) error {
	h.mu.Lock()
	_, running := h.running[ref]
	i := slices.IndexFunc(h.past, func(b Build) bool { return b.Ref == ref })
	var gone []Build
	if i >= 0 {
		gone = []Build{h.past[i]}
		h.past = slices.Delete(h.past, i, i+1)
		h.wake()
	}
	h.mu.Unlock()
	switch {
	case running:
		return errs.New(errs.Conflict, "build %s is under way", ref)
	case gone == nil:
		return errs.New(errs.NotFound, "no such build: %s", ref)
	}
	h.forget(gone)
	return nil
}
