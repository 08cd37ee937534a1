package solve_test

import (
	"context"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
)

// archive is an imported cache: the records of another world, whose layers can be fetched.
type archive struct {
	recs    map[digest.Digest]build.Record
	w       *world
	err     error // of a look-up
	broken  error // of a fetch
	asked   int
	fetched int
}

func (a *archive) Lookup(_ context.Context, key digest.Digest) (build.Record, []build.Output, bool, error) {
	a.asked++
	rec, ok := a.recs[key]
	var outs []build.Output
	for _, chain := range rec.Outputs {
		outs = append(outs, build.Output{Chain: chain, Fetch: func(_ context.Context, p build.Progress) error {
			if a.broken != nil {
				return a.broken
			}
			a.fetched++
			p.Status("sha256:x", 1, 1, true)
			a.w.trees.mu.Lock()
			defer a.w.trees.mu.Unlock()
			for _, below := range a.recs { // the layers below come with it
				a.w.trees.there[below.Outputs[0]] = true
			}
			return nil
		}})
	}
	return rec, outs, ok, a.err
}

func newArchive(t *testing.T, w *world) (*archive, build.Output) {
	other := newWorld(t)
	out := other.mustBuild(chain(3))
	return &archive{recs: other.cache.recs, w: w}, out
}

// What another engine built is not built here: it is fetched, and kept as one's own, so that the next build needs no import.
func TestImport(t *testing.T) {
	w := newWorld(t)
	a, want := newArchive(t, w)
	if out := w.mustBuild(chain(3), solve.JobOptions{Imports: []solve.Import{a}}); out.Chain != want.Chain || !w.trees.has(out.Chain) {
		t.Error("another result")
	}
	if w.total() != 1 || a.fetched != 1 || w.cache.count() != 3 {
		t.Error("ran", w.runs, "fetched", a.fetched, "kept", w.cache.count())
	}
	w.mustBuild(chain(3))
	if w.total() != 2 {
		t.Error("ran", w.runs)
	}
}

// A step of an imported cache ended as DONE: it was told as cached when it was found, and as done when its layers were here. People took it for a step that was run.
func TestImportedStepsStayCached(t *testing.T) {
	w := newWorld(t)
	a, _ := newArchive(t, w)
	var seen watcher
	w.mustBuild(chain(3), solve.JobOptions{Imports: []solve.Import{a}, Status: seen.status})
	last := map[string]build.VertexStatus{}
	for _, v := range seen.st.Vertexes {
		last[v.Name] = v
	}
	if a.fetched == 0 || !last["step 2"].Cached || last["step 2"].Completed == nil || last["step 2"].Error != "" {
		t.Errorf("fetched %d, %+v", a.fetched, last)
	}
}

// The own record has lost its layers: the import has them.
func TestImportInsteadOfRunningAgain(t *testing.T) {
	w := newWorld(t)
	a, _ := newArchive(t, w)
	w.mustBuild(chain(3))
	w.trees.drop()
	w.on("docker-image://base", act{})
	w.mustBuild(chain(3), solve.JobOptions{Imports: []solve.Import{a}})
	if w.ran("step 2") != 1 || a.fetched != 1 {
		t.Error("ran", w.runs, "fetched", a.fetched)
	}
}

// The layers of an import cannot be had: the steps are run.
func TestBrokenImport(t *testing.T) {
	w := newWorld(t)
	a, want := newArchive(t, w)
	a.broken = errors.New("no such blob")
	if out := w.mustBuild(chain(3), solve.JobOptions{Imports: []solve.Import{a}}); out.Chain != want.Chain || w.ran("step 2") != 1 {
		t.Error("ran", w.runs)
	}
	w = newWorld(t)
	a.w, a.broken, a.err, a.asked = w, nil, errors.New("the registry is away"), 0
	var seen watcher
	w.mustBuild(chain(3), solve.JobOptions{Imports: []solve.Import{a}, Status: seen.status})
	if a.asked != 1 || len(seen.st.Warnings) != 1 || w.ran("step 2") != 1 {
		t.Error("asked", a.asked, "warnings", len(seen.st.Warnings), "ran", w.runs)
	}
}
