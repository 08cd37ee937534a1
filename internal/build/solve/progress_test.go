package solve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
)

// Each vertex is told once, with its inputs and its name, before anything starts; then what becomes of it.
func TestStatusIsToldInOrder(t *testing.T) {
	w := newWorld(t)
	g := newGraph()
	base := g.source("docker-image://base")
	run := g.step("run", base)
	g.meta(run).Description["llb.customname"] = "[2/2] RUN run"
	g.meta(run).ProgressGroup = &pb.ProgressGroup{Id: "g", Name: "group", Weak: true}
	def := g.end()
	for round, cached := range []bool{false, true} {
		var seen watcher
		j := w.job(solve.JobOptions{Status: seen.status})
		res, err := j.Solve(t.Context(), def)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := j.Solve(t.Context(), def); err != nil {
			t.Fatal(err)
		}
		j.Flush()
		if len(seen.st.Vertexes) != 2 || seen.st.Vertexes[0].Started != nil || seen.st.Vertexes[1].Started != nil {
			t.Fatalf("announced: %+v", seen.st.Vertexes)
		}
		if _, err := res.Evaluate(t.Context()); err != nil {
			t.Fatal(err)
		}
		j.Close()
		v := seen.last("[2/2] RUN run")
		if v.Started == nil || v.Completed == nil || v.Cached != cached || len(v.Inputs) != 1 || v.Inputs[0] != seen.last("docker-image://base").Digest || v.Group.GetName() != "group" {
			t.Errorf("round %d: %+v", round, v)
		}
	}
}

// A step that never stops to write is told of within bounds: the beginning, the words that people know, and the end.
func TestEndlessOutputIsClipped(t *testing.T) {
	w := newWorld(t)
	w.on("yes", act{run: func(_ context.Context, env build.Env, _ []build.Output) (build.Made, error) {
		line := bytes.Repeat([]byte("y\n"), 4096)
		for range 8192 { // 64 MiB
			env.Progress.Log(1, line)
		}
		env.Progress.Log(1, []byte("the last line\n"))
		env.Progress.Log(2, []byte("an error\n"))
		return build.Made{Outputs: []build.Output{w.trees.put("yes")}}, nil
	}})
	g := newGraph()
	g.step("yes")
	var seen watcher
	w.mustBuild(g.end(), solve.JobOptions{Status: seen.status})
	out := seen.output()
	if len(out) < 2<<20 || len(out) > 3<<20 {
		t.Error("told ", len(out), " bytes")
	}
	if !strings.Contains(out, "\n[output clipped, log limit 2MiB reached]\n") || !strings.Contains(out, "the last line\n") || !strings.Contains(out, "an error\n") {
		t.Error("the words, the end or the other stream are not there")
	}
}

// Many small writes come in few batches, and nothing of them is lost.
func TestOutputComesInBatches(t *testing.T) {
	w := newWorld(t)
	var want strings.Builder
	w.on("lines", act{run: func(_ context.Context, env build.Env, _ []build.Output) (build.Made, error) {
		for i := range 20000 {
			line := fmt.Sprintln("line", i)
			want.WriteString(line)
			env.Progress.Log(1, []byte(line))
		}
		for i := range 1000 {
			env.Progress.Status("part", int64(i), 1000, i == 999)
		}
		return build.Made{Outputs: []build.Output{w.trees.put("lines")}}, nil
	}})
	g := newGraph()
	g.step("lines")
	var seen watcher
	w.mustBuild(g.end(), solve.JobOptions{Status: seen.status})
	if seen.output() != want.String() {
		t.Error("the output is not whole")
	}
	if seen.told > 50 || len(seen.st.Parts) > 50 {
		t.Error("told ", seen.told, " times, parts ", len(seen.st.Parts))
	}
	if last := seen.st.Parts[len(seen.st.Parts)-1]; last.Completed == nil || last.Current != 999 || last.Started == nil {
		t.Errorf("%+v", last)
	}
}

// While a step runs, what it says is told soon, not at its end.
func TestOutputIsToldSoon(t *testing.T) {
	w := newWorld(t)
	heard := make(chan struct{})
	w.on("slow", act{run: func(ctx context.Context, env build.Env, _ []build.Output) (build.Made, error) {
		env.Progress.Log(1, []byte("hello\n"))
		select {
		case <-heard:
		case <-time.After(time.Minute):
			return build.Made{}, errors.New("nobody heard")
		}
		return build.Made{Outputs: []build.Output{w.trees.put("slow")}}, nil
	}})
	g := newGraph()
	g.step("slow")
	once := false
	w.mustBuild(g.end(), solve.JobOptions{Status: func(st build.Status) {
		if len(st.Logs) > 0 && !once {
			once = true
			close(heard)
		}
	}})
}

// Work that is no vertex of a graph is told of all the same.
func TestProgressOfOtherWork(t *testing.T) {
	w := newWorld(t)
	var seen watcher
	j := w.job(solve.JobOptions{Status: seen.status})
	for name, err := range map[string]error{"good": nil, "bad": errors.New("no space"), "gone": context.Canceled} {
		p, done := j.Progress("sha256:x", name)
		p.Status("exporting layers", 1, 1, true)
		done(err)
	}
	j.Warn(build.Warning{Short: []byte("old syntax")})
	j.Close()
	if v := seen.last("good"); v.Completed == nil || v.Error != "" {
		t.Errorf("%+v", v)
	}
	if v := seen.last("bad"); v.Error != "no space" {
		t.Errorf("%+v", v)
	}
	if v := seen.last("gone"); v.Error != "context canceled" {
		t.Errorf("%+v", v)
	}
	if len(seen.st.Warnings) != 1 {
		t.Error("no warning")
	}
}
