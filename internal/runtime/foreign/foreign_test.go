package foreign

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/runtime"
)

// talker is a runtime that a shell script plays.
func talker(t *testing.T, script string) *Container {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nwhile [ \"$1\" != --log ]; do shift; done; log=$2; shift 4; verb=$1\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	r := New(Options{Root: filepath.Join(dir, "root"), Commands: []Command{{Name: "talk", Path: path, Args: []string{"--first"}}}})
	ctr := &Container{r: r, dir: filepath.Join(dir, "root", "c1"), rec: record{ID: "c1", Command: r.commands["talk"]}}
	if err := os.MkdirAll(ctr.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ctr.save(); err != nil {
		t.Fatal(err)
	}
	return ctr
}

// Why a runtime refuses is told in its own words, without what it puts before them, and callers can tell the reasons apart that matter to them.
func TestWhyItFailed(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		script, want string
		kind         error
	}{
		{`echo '{"level":"warning","msg":"x"}
{"level":"error","msg":"runc create failed: unable to start container process: exec: \"foo\": executable file not found in $PATH"}' >$log; exit 1`, `exec: "foo": executable file not found in $PATH`, errs.NoCommand},
		{"echo '{\"level\":\"error\",\"msg\":\"executable file `foo` not found in $PATH\"}' >$log; exit 1", "executable file not found: executable file `foo` not found in $PATH", errs.NoCommand},
		{`echo '{"level":"error","msg":"exec: \"/etc\": is a directory"}' >$log; exit 1`, `exec: "/etc": is a directory`, errs.NotExecutable},
		{`echo '{"level":"error","msg":"container not running"}' >$log; exit 1`, "container not running", errs.NotFound},
		{`echo first >&2; echo last >&2; exit 1`, "last", nil},
		{`exit 4`, "runtime talk: exit status 4", nil},
		{`echo junk >$log; kill -9 $$`, "runtime talk: signal: killed", nil},
	} {
		_, err := talker(t, c.script).call(ctx, nil, "kill")
		if err == nil || err.Error() != c.want || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %s", c.script, err, c.want)
		}
	}
}

// What is not there is not an error where it should not be there.
func TestGone(t *testing.T) {
	ctx := context.Background()
	ctr := talker(t, `echo '{"level":"error","msg":"container \"c1\" does not exist"}' >$log; exit 1`)
	if err := ctr.Signal(ctx, 9, true); !errors.Is(err, errs.NotFound) {
		t.Errorf("signal: %v", err)
	}
	if err := ctr.Resume(ctx); err != nil {
		t.Errorf("resume: %v", err)
	}
	if err := ctr.Delete(ctx); err != nil {
		t.Errorf("delete: %v", err)
	}
	if ids, err := ctr.r.List(); err != nil || len(ids) != 0 {
		t.Errorf("left %v, %v", ids, err)
	}
	if _, err := ctr.r.Load(ctx, "c1"); !errors.Is(err, errs.NotFound) {
		t.Errorf("load: %v", err)
	}
	if err := ctr.Signal(ctx, 9, true); !errors.Is(err, errs.NotFound) {
		t.Errorf("signal: %v", err)
	}
}

// An engine that was killed while it removed a container took the record first, or not: without it nobody asked for the rest, and the runtime's own state was in the way of the next container of that id.
func TestRemovedAtOnce(t *testing.T) {
	ctr := talker(t, "exit 0")
	state := filepath.Join(ctr.dir, "state", "c1")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	// As far as an engine came that was killed in between.
	left := filepath.Join(filepath.Dir(ctr.dir), ".c1")
	if err := os.MkdirAll(filepath.Join(left, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ctr.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(ctr.r.opts.Root); err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
	if err := os.MkdirAll(filepath.Join(left, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if ids, err := ctr.r.List(); err != nil || len(ids) != 0 {
		t.Errorf("listed %v, %v", ids, err)
	}
	ctr.r.Prepare()
	if entries, err := os.ReadDir(ctr.r.opts.Root); err != nil || len(entries) != 0 {
		t.Errorf("left by an engine that was killed: %v, %v", entries, err)
	}
}

// One that was made but never started has no process for the next engine: nobody would ever start it.
func TestNeverStarted(t *testing.T) {
	ctx := context.Background()
	start, err := runtime.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for status, want := range map[string]int{"created": 0, "running": os.Getpid()} {
		ctr := talker(t, `[ $verb = state ] && echo '{"status":"`+status+`"}'`)
		ctr.rec.PID, ctr.rec.Start = os.Getpid(), start
		if err := ctr.save(); err != nil {
			t.Fatal(err)
		}
		again, err := ctr.r.Load(ctx, "c1")
		if err != nil || again.PID() != want {
			t.Errorf("%s: process %d, %v; want %d", status, again.PID(), err, want)
		}
	}
}

// A runtime that does not say that it can is not asked for what it would leave out.
func TestWhatItCannotDo(t *testing.T) {
	ctx := context.Background()
	mapped := specs.Mount{Destination: "/data", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}}
	whole := specs.Mount{Destination: "/data", Options: []string{"rbind", "rro"}}
	old := &bundle{ctr: talker(t, "exit 1"), dir: t.TempDir()}
	for _, m := range []specs.Mount{mapped, whole} {
		if err := old.mount(ctx, &m); !errors.Is(err, errs.NotImplemented) || !strings.Contains(err.Error(), "the runtime talk does not say") {
			t.Errorf("%v", err)
		}
	}
	able := &bundle{ctr: talker(t, `echo '{"mountOptions":["rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}'`), dir: t.TempDir()}
	for _, m := range []specs.Mount{mapped, whole} {
		if err := able.mount(ctx, &m); err != nil {
			t.Error(err)
		}
	}
	if _, err := able.ctr.r.Create(ctx, "nosuch", runtime.RunOptions{}); err == nil || err.Error() != "unknown or invalid runtime name: nosuch" {
		t.Error(err)
	}
}

func FuzzLastError(f *testing.F) {
	f.Add([]byte("{\"level\":\"error\",\"msg\":\"x\"}\n{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		lastError(path)
	})
}
