package solve_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
)

// A step reads the directory of the build that began it, and that asker goes away: for the other build, which waits for the step too, it is done again with its own.
func TestAnothersFailureIsTriedWithOnesOwn(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	w.on("copy", act{run: func(ctx context.Context, env build.Env, _ []build.Output) (build.Made, error) {
		if w.ran("copy") == 1 {
			if err := gate.pass(ctx); err != nil {
				return build.Made{}, err
			}
			return build.Made{}, errors.New("bad file descriptor")
		}
		return build.Made{Outputs: []build.Output{w.trees.put("copy")}}, nil
	}})
	g := newGraph()
	g.step("copy")
	def := g.end()
	ends := make([]error, 2)
	var all sync.WaitGroup
	for i := range ends {
		all.Go(func() { _, ends[i] = w.build(def) })
		if i == 0 {
			<-gate.entered
		}
	}
	time.Sleep(20 * time.Millisecond)
	close(gate.open)
	all.Wait()
	if ends[0] == nil || ends[1] != nil || w.ran("copy") != 2 {
		t.Error(ends, w.ran("copy"))
	}
}

// The session that a step asks for is gone with its build: that of the other who waits is as good.
func TestSessionOfWhoWaits(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	got := make(chan string, 1)
	w.on("secret", act{run: func(ctx context.Context, env build.Env, _ []build.Output) (build.Made, error) {
		if err := gate.pass(ctx); err != nil {
			return build.Made{}, err
		}
		ses, err := env.Session(ctx, "")
		if err != nil {
			return build.Made{}, err
		}
		got <- ses.ID
		return build.Made{Outputs: []build.Output{w.trees.put("secret")}}, nil
	}})
	g := newGraph()
	g.step("secret")
	def := g.end()
	sessions := []func(context.Context, string) (*build.Session, error){
		func(context.Context, string) (*build.Session, error) {
			return nil, errs.New(errs.NotFound, "session is gone")
		},
		func(context.Context, string) (*build.Session, error) { return &build.Session{ID: "second"}, nil },
	}
	var all sync.WaitGroup
	var watch [2]watcher
	for i, ses := range sessions {
		all.Go(func() {
			if _, err := w.build(def, solve.JobOptions{Session: ses, Status: watch[i].status}); err != nil {
				t.Error(i, err)
			}
		})
		if i == 0 {
			<-gate.entered
		}
	}
	watch[1].hears(t, "secret")
	close(gate.open)
	all.Wait()
	if id := <-got; id != "second" {
		t.Error(id)
	}
}

// A step was cancelled and failed with trees: nobody waits for them, so they go at once.
func TestTreesOfACancelledStepGo(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	w.on("bad", act{run: func(ctx context.Context, env build.Env, _ []build.Output) (build.Made, error) {
		err := gate.pass(ctx)
		return build.Made{}, &build.StepError{Vertex: env.Vertex, ExitCode: 137, Mounts: []string{"tree"}, Err: err}
	}})
	g := newGraph()
	g.step("bad")
	j := w.job()
	res, err := j.Solve(t.Context(), g.end())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-gate.entered
		cancel()
	}()
	if _, err := res.Evaluate(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	j.Close()
	if fmt.Sprint(w.trees.removed) != "[tree]" {
		t.Error("removed", w.trees.removed)
	}
}

// An op that needs no layers of its inputs leaves them where they are, and may have one brought while it runs.
func TestLazyOp(t *testing.T) {
	w := newWorld(t)
	w.on("lazy", act{traits: build.Traits{Lazy: true, Heavy: true}, run: func(ctx context.Context, env build.Env, in []build.Output) (build.Made, error) {
		out, err := env.Bring(ctx, 1)
		if err == nil && (!w.trees.has(out.Chain) || w.trees.has(in[0].Chain)) {
			err = errors.New("brought the wrong one")
		}
		return build.Made{Outputs: []build.Output{w.trees.put("lazy" + chainsOf(in))}}, err
	}})
	g := newGraph()
	a, b := g.step("a"), g.step("b")
	g.step("end", a, b)
	w.mustBuild(g.end())
	w.trees.drop(digest.FromString("a0"), digest.FromString("b0"))
	g = newGraph()
	g.step("lazy", g.step("a"), g.step("b"))
	w.mustBuild(g.end())
	if w.ran("a") != 1 || w.ran("b") != 2 {
		t.Error("ran", w.runs)
	}
}

// The job is closed while somebody still asks: who asks is told at once.
func TestCloseWhileSomebodyAsks(t *testing.T) {
	w := newWorld(t)
	gate := newGate()
	w.on("slow", w.waits(gate, "slow"))
	g := newGraph()
	g.step("slow")
	j := w.job()
	res, err := j.Solve(t.Context(), g.end())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := res.Bring(context.Background())
		ended <- err
	}()
	<-gate.entered
	j.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := res.Evaluate(t.Context()); !errors.Is(err, context.Canceled) {
		t.Error("after the end: ", err)
	}
	if _, err := j.Solve(t.Context(), chain(1)); !errors.Is(err, context.Canceled) {
		t.Error("a definition after the end: ", err)
	}
}
