package solve_test

import (
	"context"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
)

// A step that panics fails its own build, in the goroutine of whoever it runs in; the solver and the other builds go on, and nothing stays held or busy (newWorld looks).
func TestBug(t *testing.T) {
	for name, bug := range map[string]act{
		"run":   {run: func(context.Context, build.Env, []build.Output) (build.Made, error) { panic("oh") }},
		"heavy": {traits: build.Traits{Heavy: true}, run: func(context.Context, build.Env, []build.Output) (build.Made, error) { panic("oh") }},
		"key":   {key: func(context.Context, build.Env, []build.Output) (digest.Digest, error) { panic("oh") }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(o *solve.Options) { o.Parallelism = 1 })
			w.on("step 1", bug)
			for range 2 {
				if _, err := w.build(chain(3)); err == nil || !strings.Contains(err.Error(), "bug of the engine: oh") {
					t.Fatal(err)
				}
			}
			w.on("step 1", act{})
			w.mustBuild(chain(3), solve.JobOptions{Status: func(build.Status) { panic("oh") }})
		})
	}
}
