package solve_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
)

// Everything is in the cache: what the solver itself costs a rebuild of six steps.
func BenchmarkCached6(b *testing.B) {
	w := newWorld(b)
	def := chain(6)
	w.mustBuild(def)
	for b.Loop() {
		j := w.s.Job(context.Background(), solve.JobOptions{Status: func(build.Status) {}})
		res, err := j.Solve(context.Background(), def)
		if err == nil {
			_, err = res.Bring(context.Background())
		}
		if err != nil {
			b.Fatal(err)
		}
		j.Close()
	}
}

// Twenty stages of which each works for a millisecond, four at a time: five at best.
func BenchmarkStages20(b *testing.B) {
	w := newWorld(b)
	g := newGraph()
	base := g.source("docker-image://base")
	join := base
	for i := range 20 {
		name := fmt.Sprint("stage ", i)
		w.on(name, act{traits: build.Traits{Heavy: true}, run: func(_ context.Context, _ build.Env, in []build.Output) (build.Made, error) {
			time.Sleep(time.Millisecond)
			return build.Made{Outputs: []build.Output{w.trees.put(name)}}, nil
		}})
		join = g.step("join", join, g.step(name, base))
	}
	def := g.end()
	for b.Loop() {
		j := w.s.Job(context.Background(), solve.JobOptions{NoCache: true, Status: func(build.Status) {}})
		res, err := j.Solve(context.Background(), def)
		if err == nil {
			_, err = res.Bring(context.Background())
		}
		if err != nil {
			b.Fatal(err)
		}
		j.Close()
	}
}
