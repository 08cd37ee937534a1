package solve

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// flight is a step that runs, for all nodes of all jobs that have its key.
//
//	board ── first ──▶ call: Lookup again ─▶ a slot, if heavy ─▶ Op.Run ─▶ Cache.Save ──▶ off the board ──▶ all who wait have it
//	   └── others: wait for the call; hear the tape from its beginning; their session is asked when the first one's is gone
type flight struct {
	id    flightID
	owner *node // whose inputs and op it runs with
	call  *call[flown]
	tape  tape
	trees leftovers

	mu   sync.Mutex // guards jobs
	jobs []*Job     // of those who wait, in the order they came
}

// flightID names a step by its key. Who wants it run is not content with one that takes what was kept.
type flightID struct {
	key     digest.Digest
	noCache bool
}

// flown is what a flight gives.
type flown struct {
	outputs  []build.Output
	cached   bool
	volatile bool
	taken    time.Duration
}

// fly gives res what the step makes, now or in a flight under way; nil when an input has become another, or another's flight is of no use here.
func (n *node) fly(ctx context.Context, res *result, in []build.Output) (*result, error) {
	s := n.job.solver
	id := flightID{res.key, n.noCache}
	f := s.board(id, n, nil)
	if f == nil {
		if !n.traits.Lazy {
			if err := n.bringInputs(ctx); err != nil {
				return nil, err
			}
			if n.changed(in) {
				return nil, nil
			}
		}
		f = s.board(id, n, func(ctx context.Context, f *flight) (flown, error) { return f.run(ctx, res, in) })
	}
	f.tape.join(n.voice)
	got, err := f.call.wait(ctx)
	f.tape.part(n.voice)
	f.leave(n.job)
	if ctx.Err() != nil && f.call.wasLeft() {
		n.job.leave(f.call.done)
	}
	if err != nil {
		return nil, n.landed(ctx, f, err)
	}
	f.trees.unref()
	if got.volatile && f.owner != n {
		return nil, nil
	}
	res.outputs, res.cached, res.loose, res.taken = got.outputs, got.cached, got.volatile, got.taken
	return res, nil
}

// landed is the error of a flight for one who waited; nil when it is to be tried again, with this job's own inputs and session: those of the one who began it may have ended with its
// build. A program that ran and failed would fail again.
func (n *node) landed(ctx context.Context, f *flight, err error) error {
	if ctx.Err() != nil {
		f.trees.unref()
		return context.Cause(ctx)
	}
	var step *build.StepError
	ran := errors.As(err, &step) && step.ExitCode >= 0
	if f.owner.job != n.job && (f.owner.job.ctx.Err() != nil || !ran && n.retried.CompareAndSwap(false, true)) {
		f.trees.unref()
		return nil
	}
	n.job.keepTrees(&f.trees)
	return n.failed(err)
}

// board enters the flight of id, or begins it with work; nil when there is none and no work.
func (s *Solver) board(id flightID, n *node, work func(context.Context, *flight) (flown, error)) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[id]; f != nil && f.call.enter() {
		f.join(n.job)
		return f
	}
	if work == nil {
		return nil
	}
	f := &flight{id: id, owner: n, trees: leftovers{refs: 1, remove: s.removeTrees}}
	f.join(n.job)
	s.flights[id] = f
	f.call = begin(context.Background(), &s.running, func(ctx context.Context) (flown, error) {
		defer f.trees.unref()
		defer s.clear(f)
		return work(ctx, f)
	})
	return f
}

// clear takes a flight off the board: who comes now finds its record.
func (s *Solver) clear(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights[f.id] == f {
		delete(s.flights, f.id)
	}
}

func (f *flight) join(j *Job) {
	f.trees.ref()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs = append(f.jobs, j)
}

func (f *flight) leave(j *Job) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.jobs, j); i >= 0 {
		f.jobs = slices.Delete(f.jobs, i, i+1)
	}
}

// session asks those who wait, the first come first.
func (f *flight) session(ctx context.Context, id string) (*build.Session, error) {
	f.mu.Lock()
	jobs := slices.Clone(f.jobs)
	f.mu.Unlock()
	gone := errs.New(errs.NotFound, "no session: nobody waits for the step any more")
	for _, j := range jobs {
		ses, err := j.session(ctx, id)
		if err == nil || !errors.Is(err, errs.NotFound) {
			return ses, err
		}
		gone = err
	}
	return nil, gone
}

// run does the work. What it stands on is held by itself: the job that began it may end before.
func (f *flight) run(ctx context.Context, res *result, in []build.Output) (flown, error) {
	n := f.owner
	s := n.job.solver
	defer s.opts.Cache.Use(context.WithoutCancel(ctx), append([]digest.Digest{res.key}, res.inputs...)...)()
	for _, i := range in {
		defer s.hold(i.Chain)()
	}
	if !f.id.noCache {
		if got, ok, err := s.landedBefore(ctx, n, res.key); ok || err != nil {
			return got, err
		}
	}
	if n.traits.Heavy {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-ctx.Done():
			return flown{}, context.Cause(ctx)
		}
	}
	began := time.Now()
	f.tape.begin(began)
	env := n.env(&f.tape)
	env.Session = f.session
	made, err := n.runOp(ctx, env, in)
	f.tape.end()
	if err != nil {
		f.trees.take(n.vertex, err)
		return flown{}, err
	}
	got := flown{outputs: made.Outputs, cached: made.Cached, volatile: made.Volatile, taken: time.Since(began)}
	return got, s.save(ctx, n, res, got)
}

// landedBefore finds the record of a flight that ended between the look-up of its key and now, with its layers.
func (s *Solver) landedBefore(ctx context.Context, n *node, key digest.Digest) (flown, bool, error) {
	rec, ok, err := s.opts.Cache.Lookup(ctx, key)
	if !ok || err != nil || len(rec.Outputs) < n.wide() {
		return flown{}, false, err
	}
	if ok, err = s.allHere(ctx, rec); !ok || err != nil {
		return flown{}, false, err
	}
	return flown{outputs: outputsOf(rec), cached: true, taken: rec.Taken}, true, nil
}

// save keeps what was made, unless it cannot be found again. It is done even when everybody has left: the work was.
func (s *Solver) save(ctx context.Context, n *node, res *result, got flown) error {
	if got.volatile {
		return nil
	}
	rec := build.Record{Key: res.key, Inputs: res.inputs, Description: n.vertex.Name, Kind: "regular", Created: time.Now(), Taken: got.taken}
	if strings.HasPrefix(n.vertex.Name, "[internal]") {
		rec.Kind = "internal"
	}
	for _, out := range got.outputs {
		if out.Files != nil {
			return nil
		}
		rec.Outputs = append(rec.Outputs, out.Chain)
	}
	if err := s.opts.Cache.Save(context.WithoutCancel(ctx), rec); err != nil {
		return fmt.Errorf("keep the result of %s: %w", n.vertex.Name, err)
	}
	return nil
}

// leftovers are the trees that a failed step left, for a look into them. They go with the last who may want that.
type leftovers struct {
	remove func(keys []string)

	mu   sync.Mutex // guards what follows
	refs int
	keys []string
}

func (l *leftovers) ref() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refs++
}

func (l *leftovers) unref() {
	l.mu.Lock()
	l.refs--
	keys := l.keys
	if l.refs > 0 {
		keys = nil
	}
	l.mu.Unlock()
	if len(keys) > 0 {
		l.remove(keys)
	}
}

// take takes over what a step left, by its error.
func (l *leftovers) take(v *build.Vertex, err error) {
	var step *build.StepError
	if errors.As(err, &step) && step.Vertex == v {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.keys = step.Mounts
	}
}
