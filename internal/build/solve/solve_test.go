package solve_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
)

func TestChainTwice(t *testing.T) {
	w := newWorld(t)
	def := chain(5)
	first := w.mustBuild(def)
	if w.total() != 6 || w.cache.count() != 5 {
		t.Fatal("ran", w.total(), "kept", w.cache.count())
	}
	second := w.mustBuild(def)
	if second.Chain != first.Chain {
		t.Error("another result from the cache")
	}
	if w.total() != 7 { // the source again
		t.Error("ran", w.total())
	}
}

func TestDiamondRunsOnce(t *testing.T) {
	w := newWorld(t)
	g := newGraph()
	base := g.step("base")
	g.step("join", g.step("left", base), g.step("right", base), base)
	w.mustBuild(g.end())
	for _, name := range []string{"base", "left", "right", "join"} {
		if w.ran(name) != 1 {
			t.Error(name, "ran", w.ran(name))
		}
	}
}

func TestSidesRunSideBySideWithinTheLimit(t *testing.T) {
	w := newWorld(t, func(o *solve.Options) { o.Parallelism = 2 })
	gate := newGate()
	g := newGraph()
	a := g.step("a")
	heavy := w.waits(gate, "x")
	heavy.traits.Heavy = true
	for _, name := range []string{"b", "c", "d"} {
		w.on(name, heavy)
	}
	g.step("end", g.step("b", a), g.step("c", a), g.step("d", a))
	go func() {
		<-gate.entered
		<-gate.entered
		time.Sleep(20 * time.Millisecond)
		close(gate.open)
	}()
	w.mustBuild(g.end())
	if got := gate.most.Load(); got != 2 {
		t.Error("side by side:", got)
	}
}

// Two jobs that need the same step wait for one run; the one that comes later hears it from its beginning.
func TestSingleFlightOverJobs(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	w.on("slow", act{run: func(ctx context.Context, env build.Env, in []build.Output) (build.Made, error) {
		env.Progress.Log(1, []byte("at the beginning\n"))
		env.Progress.Status("layer", 1, 2, false)
		if err := gate.pass(ctx); err != nil {
			return build.Made{}, err
		}
		env.Progress.Log(1, []byte("at the end\n"))
		return build.Made{Outputs: []build.Output{w.trees.put("slow")}}, nil
	}})
	g := newGraph()
	g.step("slow", g.step("base"))
	def := g.end()
	var watch [3]watcher
	var all sync.WaitGroup
	for i := range watch {
		if i == 1 {
			<-gate.entered
		}
		all.Go(func() {
			if _, err := w.build(def, solve.JobOptions{Status: watch[i].status}); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range watch {
		watch[i].hears(t, "slow")
	}
	close(gate.open)
	all.Wait()
	if w.ran("slow") != 1 {
		t.Error("ran", w.ran("slow"))
	}
	for i := range watch {
		if got := watch[i].output(); got != "at the beginning\nat the end\n" {
			t.Errorf("job %d heard %q", i, got)
		}
		if v := watch[i].last("slow"); v.Completed == nil || v.Cached || v.Error != "" {
			t.Errorf("job %d: %+v", i, v)
		}
		if len(watch[i].st.Parts) == 0 {
			t.Errorf("job %d heard nothing of parts", i)
		}
	}
}

// The job that began a run is cancelled while another waits: the run goes on for that one.
func TestRunOutlivesItsBeginner(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	w.on("slow", w.waits(gate, "slow"))
	g := newGraph()
	g.step("slow", g.step("base"))
	def := g.end()
	ctx, cancel := context.WithCancel(t.Context())
	first := w.s.Job(ctx, solve.JobOptions{})
	res, err := first.Solve(ctx, def)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() {
		_, err := res.Evaluate(ctx)
		gone <- err
	}()
	<-gate.entered
	second := make(chan error, 1)
	var watch watcher
	go func() {
		_, err := w.build(def, solve.JobOptions{Status: watch.status})
		second <- err
	}()
	watch.hears(t, "slow")
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	first.Close()
	close(gate.open)
	if err := <-second; err != nil {
		t.Error(err)
	}
	if w.ran("slow") != 1 {
		t.Error("ran", w.ran("slow"))
	}
}

// Nobody waits any more: the run is cancelled at once, and the end of the job waits for it.
func TestCancel(t *testing.T) {
	for _, phase := range []string{"key", "run", "source", "deaf"} {
		t.Run(phase, func(t *testing.T) {
			w := newWorld(t)
			gate := newGate()
			g := newGraph()
			in := g.source("docker-image://base")
			over, deaf := make(chan struct{}), make(chan struct{})
			switch phase {
			case "key":
				w.on("slow", act{key: func(ctx context.Context, _ build.Env, _ []build.Output) (digest.Digest, error) {
					defer close(over)
					return "", gate.pass(ctx)
				}})
			case "run":
				w.on("slow", act{run: func(ctx context.Context, _ build.Env, _ []build.Output) (build.Made, error) {
					defer close(over)
					return build.Made{}, gate.pass(ctx)
				}})
			case "source":
				w.on("docker-image://base", act{run: func(ctx context.Context, _ build.Env, _ []build.Output) (build.Made, error) {
					defer close(over)
					return build.Made{}, gate.pass(ctx)
				}})
			case "deaf": // what does not heed its end is waited for by Close, not by who asked
				w.on("slow", act{run: func(ctx context.Context, _ build.Env, _ []build.Output) (build.Made, error) {
					defer close(over)
					gate.entered <- struct{}{}
					<-deaf
					return build.Made{}, errors.New("late")
				}})
			}
			g.step("slow", in)
			var seen watcher
			j := w.job(solve.JobOptions{Status: seen.status})
			ctx, cancel := context.WithCancel(t.Context())
			res, err := j.Solve(ctx, g.end())
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				<-gate.entered
				cancel()
			}()
			if _, err := res.Bring(ctx); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			begun := time.Now()
			if phase == "deaf" {
				select {
				case <-over:
					t.Error("the asker waited for the step")
				default:
				}
				close(deaf)
			}
			j.Close()
			select {
			case <-over:
			default:
				t.Error("the step goes on after the end of its job")
			}
			if took := time.Since(begun); took > 30*time.Second {
				t.Error("took", took)
			}
			name := "slow"
			if phase == "source" {
				name = "docker-image://base"
			}
			if v := seen.last(name); phase != "key" && v.Error != "context canceled" {
				t.Errorf("%+v", v)
			}
		})
	}
}

// The first vertex that fails ends the others, and is the one that is told.
func TestFirstFailureEndsTheRest(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	boom := errors.New("boom")
	w.on("slow", w.waits(gate, "slow"))
	w.on("bad", act{run: func(ctx context.Context, env build.Env, in []build.Output) (build.Made, error) {
		<-gate.entered
		return build.Made{}, &build.StepError{Vertex: env.Vertex, ExitCode: 3, Mounts: []string{"tree-1"}, Err: boom}
	}})
	g := newGraph()
	base := g.step("base")
	g.step("end", g.step("slow", base), g.step("bad", base))
	var seen watcher
	j := w.job(solve.JobOptions{Status: seen.status})
	res, err := j.Solve(t.Context(), g.end())
	if err != nil {
		t.Fatal(err)
	}
	_, err = res.Evaluate(t.Context())
	var step *build.StepError
	if !errors.Is(err, boom) || !errors.As(err, &step) || step.ExitCode != 3 || step.Vertex.Name != "bad" || err.Error() != "boom" {
		t.Fatalf("%v %+v", err, step)
	}
	if len(w.trees.removed) > 0 {
		t.Error("what the step left is gone before the build has ended")
	}
	j.Close()
	if fmt.Sprint(w.trees.removed) != "[tree-1]" {
		t.Error("removed", w.trees.removed)
	}
	if v := seen.last("slow"); v.Error != "context canceled" {
		t.Errorf("slow: %+v", v)
	}
	if v := seen.last("bad"); v.Error != "boom" {
		t.Errorf("bad: %+v", v)
	}
	if v := seen.last("end"); v.Started != nil {
		t.Errorf("end: %+v", v)
	}
}

// Two jobs wait for a step that fails: what it left stays until both have ended.
func TestLeftTreesStayForAll(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	w.on("bad", act{run: func(ctx context.Context, env build.Env, in []build.Output) (build.Made, error) {
		gate.entered <- struct{}{}
		<-gate.open
		return build.Made{}, &build.StepError{Vertex: env.Vertex, ExitCode: 1, Mounts: []string{"tree"}, Err: errors.New("exit code: 1")}
	}})
	g := newGraph()
	g.step("bad")
	def := g.end()
	var watch [2]watcher
	jobs := []*solve.Job{w.job(solve.JobOptions{Status: watch[0].status}), w.job(solve.JobOptions{Status: watch[1].status})}
	var all sync.WaitGroup
	for i, j := range jobs {
		res, err := j.Solve(t.Context(), def)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			<-gate.entered
		}
		all.Go(func() {
			if _, err := res.Evaluate(t.Context()); err == nil {
				t.Error("no error")
			}
		})
	}
	watch[1].hears(t, "bad")
	close(gate.open)
	all.Wait()
	jobs[0].Close()
	if len(w.trees.removed) > 0 {
		t.Error("removed while the other may look into it")
	}
	jobs[1].Close()
	if len(w.trees.removed) != 1 || w.ran("bad") != 1 {
		t.Error("removed", w.trees.removed, "ran", w.ran("bad"))
	}
}

// Layers are gone, the records are there: a hit needs none of them, but who stands on them has them made again.
func TestMissingLayersAreMadeAgain(t *testing.T) {
	w := newWorld(t)
	def := chain(3)
	first := w.mustBuild(def)
	w.trees.drop()
	w.on("docker-image://base", act{})
	j := w.job()
	res, err := j.Solve(t.Context(), def)
	if err != nil {
		t.Fatal(err)
	}
	before := w.total()
	if out, err := res.Evaluate(t.Context()); err != nil || out.Chain != first.Chain {
		t.Fatal(out, err)
	}
	if w.total() != before+1 {
		t.Error("a hit ran", w.total()-before)
	}
	if out, err := res.Bring(t.Context()); err != nil || out.Chain != first.Chain || !w.trees.has(out.Chain) {
		t.Fatal(out, err)
	}
	for i := range 3 {
		if n := w.ran(fmt.Sprint("step ", i)); n != 2 {
			t.Error("step", i, "ran", n)
		}
	}
}

// A step that is run again makes something else than before. Who stands on it must not take what was kept for the old.
func TestChangedIdentityMakesANewKey(t *testing.T) {
	w := newWorld(t)
	version := "1"
	w.on("clock", act{run: func(context.Context, build.Env, []build.Output) (build.Made, error) {
		return build.Made{Outputs: []build.Output{w.trees.put("clock " + version)}}, nil
	}})
	g := newGraph()
	g.step("reader", g.step("clock"))
	def := g.end()
	w.mustBuild(def)
	version = "2"
	w.trees.drop()
	out := w.mustBuild(def)
	if want := digest.FromString("reader0" + " " + string(digest.FromString("clock 2"))); out.Chain != want {
		t.Error("made of the old content")
	}
	if w.ran("reader") != 2 || w.ran("clock") != 2 {
		t.Error("reader ran", w.ran("reader"), "clock", w.ran("clock"))
	}
	if w.cache.count() != 3 { // the clock's was replaced
		t.Error(w.cache.count(), "records")
	}
}

// A key that reads an input has it brought first, and only then.
func TestKeyBringsWhatItReads(t *testing.T) {
	w := newWorld(t)
	content := act{key: func(ctx context.Context, env build.Env, in []build.Output) (digest.Digest, error) {
		out, err := env.Bring(ctx, 0)
		if err != nil {
			return "", err
		}
		if !w.trees.has(out.Chain) {
			return "", errors.New("not brought")
		}
		return digest.FromString("of the content" + string(out.Chain)), nil
	}}
	w.on("copy", content)
	g := newGraph()
	g.step("copy", g.step("a"), g.step("b"))
	def := g.end()
	w.mustBuild(def)
	w.trees.drop(digest.FromString("a0"), digest.FromString("b0"))
	w.mustBuild(def)
	if w.ran("a") != 2 || w.ran("b") != 1 || w.ran("copy") != 1 {
		t.Error("ran", w.ran("a"), w.ran("b"), w.ran("copy"))
	}
}

func TestFetchIsLazy(t *testing.T) {
	w := newWorld(t)
	fetched := 0
	chainID := digest.FromString("base layers")
	w.on("docker-image://base", act{run: func(context.Context, build.Env, []build.Output) (build.Made, error) {
		return build.Made{Outputs: []build.Output{{Chain: chainID, Fetch: func(ctx context.Context, p build.Progress) error {
			fetched++
			p.Status("sha256:abc", 10, 10, true)
			w.trees.put("base layers")
			return nil
		}}}}, nil
	}})
	var held atomic.Int32
	w.on("step 1", act{run: func(context.Context, build.Env, []build.Output) (build.Made, error) {
		w.trees.mu.Lock()
		held.Store(int32(w.trees.held[chainID]))
		w.trees.mu.Unlock()
		return build.Made{Outputs: []build.Output{w.trees.put("step 1")}}, nil
	}})
	def := chain(2)
	var seen watcher
	w.mustBuild(def, solve.JobOptions{Status: seen.status})
	if held.Load() != 1 {
		t.Error("the base is held", held.Load(), "times while a step above runs")
	}
	if fetched != 1 {
		t.Error("fetched", fetched)
	}
	if v := seen.last("docker-image://base"); v.Completed == nil || len(seen.st.Parts) != 1 || seen.st.Parts[0].Vertex != v.Digest {
		t.Errorf("the pull is not told of at the image: %+v %+v", v, seen.st.Parts)
	}
	w.trees.drop(chainID)
	w.mustBuild(def)
	if fetched != 1 {
		t.Error("a cached build fetched its base")
	}
}

func TestVolatile(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	w.on("copy", act{run: func(ctx context.Context, _ build.Env, _ []build.Output) (build.Made, error) {
		if err := gate.pass(ctx); err != nil {
			return build.Made{}, err
		}
		return build.Made{Outputs: []build.Output{w.trees.put(fmt.Sprint("copy ", w.ran("copy")))}, Volatile: true}, nil
	}})
	g := newGraph()
	g.step("copy")
	def := g.end()
	var outs [2]build.Output
	var all sync.WaitGroup
	for i := range outs {
		all.Go(func() {
			var err error
			if outs[i], err = w.build(def); err != nil {
				t.Error(err)
			}
		})
		if i == 0 {
			<-gate.entered
		}
	}
	time.Sleep(20 * time.Millisecond)
	close(gate.open)
	all.Wait()
	if w.cache.count() != 0 || w.ran("copy") != 2 || outs[0].Chain == outs[1].Chain {
		t.Error("kept", w.cache.count(), "ran", w.ran("copy"))
	}
}

func TestNoCache(t *testing.T) {
	w := newWorld(t)
	def := chain(3)
	w.mustBuild(def)
	var told bool
	w.on("step 1", act{run: func(_ context.Context, env build.Env, in []build.Output) (build.Made, error) {
		told = env.NoCache
		return build.Made{Outputs: []build.Output{w.trees.put("new" + chainsOf(in))}}, nil
	}})
	w.mustBuild(def, solve.JobOptions{NoCache: true})
	if w.ran("step 0") != 2 || w.ran("step 1") != 2 || w.ran("step 2") != 2 || !told {
		t.Error("ran", w.ran("step 0"), w.ran("step 1"), w.ran("step 2"), told)
	}
	w.mustBuild(def)
	if w.ran("step 1") != 2 || w.ran("step 2") != 2 {
		t.Error("the record was not replaced")
	}
	// one vertex only
	g := newGraph()
	in := g.source("docker-image://base")
	s0 := g.step("step 0", in)
	g.step("step 1", s0)
	g.meta(s0).IgnoreCache = true
	w.mustBuild(g.end())
	if w.ran("step 0") != 3 || w.ran("step 1") != 2 {
		t.Error("ran", w.ran("step 0"), w.ran("step 1"))
	}
}

// A job has one definition with, and one without the cache for a vertex that they share.
func TestNoCacheIsPerDefinition(t *testing.T) {
	w := newWorld(t)
	def := chain(2)
	w.mustBuild(def)
	g := newGraph()
	in := g.source("docker-image://base")
	s0 := g.step("step 0", in)
	g.meta(s0).IgnoreCache = true
	g.step("step 1", s0)
	fresh := g.end()
	j := w.job()
	for i, d := range []*struct {
		want int
	}{{1}, {2}} {
		use := def
		if i == 1 {
			use = fresh
		}
		res, err := j.Solve(t.Context(), use)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := res.Evaluate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.ran("step 0") != d.want {
			t.Error("step 0 ran", w.ran("step 0"))
		}
	}
}

// The definitions of two builds are the same, what they read is not: neither has the other's.
func TestSameDefinitionOtherInputs(t *testing.T) {
	w := newWorld(t)
	w.on("local://context", act{
		key: func(ctx context.Context, env build.Env, _ []build.Output) (digest.Digest, error) {
			ses, err := env.Session(ctx, "")
			return digest.FromString("context of " + ses.ID), err
		},
		run: func(ctx context.Context, env build.Env, _ []build.Output) (build.Made, error) {
			ses, err := env.Session(ctx, "")
			return build.Made{Outputs: []build.Output{w.trees.put("context of " + ses.ID)}}, err
		},
	})
	g := newGraph()
	g.step("compile", g.source("local://context"))
	def := g.end()
	var outs [8]build.Output
	var all sync.WaitGroup
	for i := range outs {
		all.Go(func() {
			var err error
			outs[i], err = w.build(def, solve.JobOptions{Session: func(context.Context, string) (*build.Session, error) {
				return &build.Session{ID: fmt.Sprint(i / 2)}, nil
			}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i, out := range outs {
		if want := digest.FromString("compile0 " + string(digest.FromString("context of "+fmt.Sprint(i/2)))); out.Chain != want {
			t.Error(i, "has another's result")
		}
	}
	if w.ran("compile") != 4 {
		t.Error("ran", w.ran("compile"))
	}
}

func TestManyVerticesAndJobs(t *testing.T) {
	w := newWorld(t)
	g := newGraph()
	in := g.source("docker-image://base")
	last := in
	for r := range 100 {
		a := g.step(fmt.Sprint("row ", r, " 0"), last)
		b := a
		for c := 1; c < 9; c++ {
			b = g.step(fmt.Sprint("row ", r, " ", c), last, a)
			a = b
		}
		last = g.step(fmt.Sprint("end ", r), a, b)
	}
	def := g.end()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := w.build(def); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := w.total(); n != 1000+4 {
		t.Error("ran", n)
	}
}

func TestLookupFailureFailsTheBuild(t *testing.T) {
	w := newWorld(t)
	w.cache.fail = errors.New("the disk is on fire")
	if _, err := w.build(chain(1)); err == nil || !strings.Contains(err.Error(), "disk is on fire") {
		t.Error(err)
	}
}
