package steps_test

import (
	"context"
	"os"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/buildtest"
	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/build/ops"
	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/snapshot"
)

// A build context is mounted as what it was when the key was made: without what its patterns leave out, writable without consequences, made layers once, and let go when it changed meanwhile.
func TestMountedContext(t *testing.T) {
	h := newHost(t)
	sums, err := checksum.New(checksum.Options{Dir: h.dir + "/checksums", Trees: h.trees})
	must(t, err)
	t.Cleanup(func() { must(t, sums.Close()) })
	files, err := ops.New(t.Context(), ops.Options{Trees: h.trees, Sums: sums, Log: h.log})
	must(t, err)
	made, held := 0, 0
	kept := new(buildtest.Records)
	h.steps, err = step.New(t.Context(), step.Options{
		Executor: h.exec, Trees: h.trees, Checksums: files, Cache: kept, Log: h.log,
		Layers: func(ctx context.Context, _ build.Env, in build.Output, path string) (snapshot.ChainID, error) {
			made++
			out, _, err := files.Tree(ctx, in.Files, pick.Selection{Path: path, Follow: true})
			return out.Chain, err
		},
		Hold: func(snapshot.ChainID) func() { held++; return func() { held-- } },
	})
	must(t, err)
	dir := t.TempDir()
	write := func(text string) {
		must(t, os.MkdirAll(dir+"/src", 0o755))
		must(t, os.WriteFile(dir+"/src/file", []byte(text), 0o644))
		must(t, os.WriteFile(dir+"/secret", []byte("left out"), 0o644))
	}
	write("one\n")
	root, err := os.Open(dir)
	must(t, err)
	defer root.Close()
	ctx := build.Output{Files: &build.Files{Root: root, Exclude: []string{"secret"}, Key: "test", Owner: &[2]uint32{}}}
	run := func(script string, change func()) (build.Made, string) {
		t.Helper()
		r := h.sh(script, &pb.Mount{Dest: "/ctx", Input: 1, Output: -1})
		r.in = append(r.in, ctx)
		op, err := h.steps.Make(h.vertex(r))
		must(t, err)
		_, err = op.Key(t.Context(), r.env(nil), r.in)
		must(t, err)
		if change != nil {
			change()
		}
		var p progress
		got, err := op.Run(t.Context(), r.env(&p), r.in)
		if err != nil {
			t.Fatal(err, p.String())
		}
		return got, p.String()
	}
	if got, out := run("cat /ctx/src/file; ls /ctx; stat -c %u:%g /ctx/src/file; echo x >/ctx/src/file", nil); out != "one\nsrc\n0:0\n" || got.Volatile {
		t.Errorf("%q %v", out, got.Volatile)
	}
	if got, out := run("cat /ctx/src/file", nil); out != "one\n" || got.Volatile || made != 1 {
		t.Errorf("%q %v, made layers %d times", out, got.Volatile, made)
	}
	write("two\n")
	if got, out := run("cat /ctx/src/file", nil); out != "two\n" || got.Volatile || made != 2 {
		t.Errorf("%q %v, made layers %d times", out, got.Volatile, made)
	}
	write("three\n")
	if got, out := run("cat /ctx/src/file", func() { write("four\n") }); out != "four\n" || !got.Volatile || kept.Len() != 2 {
		t.Errorf("%q %v, %d records", out, got.Volatile, kept.Len())
	}
	if held != 0 {
		t.Errorf("%d layers are still held", held)
	}
	data, err := os.ReadFile(dir + "/src/file")
	if string(data) != "four\n" || err != nil {
		t.Errorf("the step changed the asker's file: %q %v", data, err)
	}
}
