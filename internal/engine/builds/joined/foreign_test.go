package joined_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
)

// This program is also the frontend of an image that a test makes of it.
func TestMain(m *testing.M) {
	if os.Getenv("BE_A_FRONTEND") == "" {
		os.Exit(m.Run())
	}
	if err := grpcclient.RunFromEnvironment(context.Background(), foreign); err != nil {
		fmt.Fprintln(os.Stderr, "frontend:", err)
		os.Exit(1)
	}
}

// foreign builds the Dockerfile by BuildKit's packages; told so, it runs a program in a container of its own before, and gives what that said.
func foreign(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	if c.BuildOpts().Opts["build-arg:RUN_FIRST"] == "" {
		return builder.Build(ctx, c)
	}
	def, err := llb.Image("docker.io/library/busybox:latest").Marshal(ctx)
	if err != nil {
		return nil, err
	}
	base, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return nil, err
	}
	ctr, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: base.Ref}}, NetMode: pb.NetMode_NONE})
	if err != nil {
		return nil, err
	}
	defer ctr.Release(ctx)
	var out strings.Builder
	proc, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/bin/sh", "-c", "cat; echo said > /f"}, Stdin: reader{strings.NewReader("heard ")}, Stdout: writer{&out}})
	if err != nil {
		return nil, err
	}
	if err := proc.Wait(); err != nil {
		return nil, err
	}
	res := gateway.NewResult()
	res.AddMeta("result.txt", []byte(out.String()))
	return res, nil
}

type reader struct{ *strings.Reader }

func (reader) Close() error { return nil }

type writer struct{ *strings.Builder }

func (writer) Close() error { return nil }

// A frontend that comes as an image runs in a container, and is asked for the build; it may run containers of its own.
func TestForeignFrontend(t *testing.T) {
	h := newHost(t)
	self, err := os.Executable()
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY frontend /frontend\nENV BE_A_FRONTEND=1\nENTRYPOINT [\"/frontend\"]\n"), 0o644))
	data, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "frontend"), data, 0o755))
	if _, _, err := h.build(&build.Session{Contexts: folder{t, dir}}, "my/frontend:1", nil); err != nil {
		t.Fatal(err)
	}
	ses := h.context(map[string]string{"Dockerfile": "# syntax=my/frontend:1\nFROM busybox\nRUN echo by another > /result\n"})
	if _, out, err := h.build(ses, "by:another", nil); err != nil {
		t.Fatalf("%v\n%s", err, out.logs.String())
	}
	if got := h.cat("by:another", "/result"); got != "by another\n" {
		t.Errorf("got %q", got)
	}
	resp, out, err := h.build(ses, "", func(r *builds.Request) {
		r.Exports = nil
		r.FrontendAttrs["build-arg:RUN_FIRST"] = "1"
	})
	if err != nil || resp.Exporter["result.txt"] != "heard " {
		t.Errorf("%v, %q\n%s", err, resp.Exporter, out.logs.String())
	}
}
