package frontend_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// fakeJob solves nothing but the build context.
type fakeJob struct {
	dir  *os.File
	mu   sync.Mutex
	warn []string
	runs []string // names of what was asked for
}

// head is the op that a definition ends with.
func head(def *pb.Definition) (*pb.Op, error) {
	var last pb.Op
	if err := last.UnmarshalVT(def.Def[len(def.Def)-1]); err != nil {
		return nil, err
	}
	want := digest.Digest(last.Inputs[0].Digest)
	for _, raw := range def.Def {
		if digest.FromBytes(raw) == want {
			op := new(pb.Op)
			return op, op.UnmarshalVT(raw)
		}
	}
	return nil, errors.New("the definition has no head")
}

func (j *fakeJob) Solve(_ context.Context, def *pb.Definition) (frontend.Result, error) {
	op, err := head(def)
	if err != nil {
		return nil, err
	}
	if src := op.GetSource(); src != nil && strings.HasPrefix(src.Identifier, "local://") {
		return fakeResult{Files: &build.Files{Root: j.dir}}, nil
	}
	return fakeResult{Chain: "sha256:built"}, nil
}

type fakeResult build.Output

func (r fakeResult) Evaluate(context.Context) (build.Output, error) { return build.Output(r), nil }
func (r fakeResult) Bring(context.Context) (build.Output, error)    { return build.Output(r), nil }

func (j *fakeJob) Progress(_ digest.Digest, name string) (build.Progress, func(error)) {
	j.mu.Lock()
	j.runs = append(j.runs, name)
	j.mu.Unlock()
	return nil, func(error) {}
}

func (j *fakeJob) Warn(w build.Warning) {
	j.mu.Lock()
	j.warn = append(j.warn, string(w.Short))
	j.mu.Unlock()
}

func (j *fakeJob) Import(context.Context, []gateway.CacheOptionsEntry) error { return nil }

type fakeSources struct{}

func (fakeSources) Resolve(_ context.Context, op *pb.SourceOp, _ sourceresolver.Opt, _ build.Progress) (*sourceresolver.MetaResponse, error) {
	return &sourceresolver.MetaResponse{Op: op, Image: &sourceresolver.ResolveImageResponse{
		Digest: digest.FromString("base"),
		Config: []byte(`{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]}}`),
	}}, nil
}

type noTrees struct{}

func (noTrees) View(context.Context, snapshot.ChainID) (*snapshot.Mounted, error) {
	return nil, errors.New("no tree is needed here")
}

func newGateway(t testing.TB, dockerfile string) (*frontend.Gateway, *fakeJob) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	job := &fakeJob{dir: f}
	return frontend.New(frontend.Options{
		Job: job, Sources: fakeSources{}, Trees: noTrees{}, Session: "s", Platforms: []ocispec.Platform{{OS: "linux", Architecture: "amd64"}},
	}), job
}

type brokenSources struct{}

func (brokenSources) Resolve(context.Context, *pb.SourceOp, sourceresolver.Opt, build.Progress) (*sourceresolver.MetaResponse, error) {
	panic("oh")
}

// The Dockerfile language resolves its bases from goroutines of its own: a panic of ours in there would end the engine with all its builds.
func TestBug(t *testing.T) {
	gw, _ := newGateway(t, sixSteps)
	gw.Sources = brokenSources{}
	if _, err := gw.Run(t.Context(), frontend.Dockerfile, nil, nil); err == nil || !strings.Contains(err.Error(), "bug of the engine: oh") {
		t.Error(err)
	}
}

const sixSteps = `FROM busybox
RUN echo 1
RUN echo 2
COPY . /src
RUN echo 3
WORKDIR /src
RUN echo 4
`

func TestDockerfile(t *testing.T) {
	gw, job := newGateway(t, sixSteps)
	res, err := gw.Run(t.Context(), frontend.Dockerfile, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := res.SingleRef()
	if err != nil {
		t.Fatal(err)
	}
	out, err := ref.(*frontend.Ref).Result().Evaluate(t.Context())
	if err != nil || out.Chain != "sha256:built" {
		t.Fatalf("output %v, %v", out, err)
	}
	if cfg := string(res.Metadata["containerimage.config"]); !strings.Contains(cfg, `"WorkingDir":"/src"`) {
		t.Errorf("config: %s", cfg)
	}
	if len(job.runs) != 1 || job.runs[0] != "[internal] load metadata for docker.io/library/busybox:latest" {
		t.Errorf("tasks: %q", job.runs)
	}
}

func TestSyntaxLines(t *testing.T) {
	for _, test := range []struct{ line, warning, refused string }{
		{line: "# syntax=docker/dockerfile:1"},
		{line: "# syntax=docker/dockerfile:1.4-labs"},
		{line: "# syntax=docker.io/docker/dockerfile-upstream:master"},
		{line: "# syntax=docker/dockerfile:1@sha256:" + digest.FromString("x").Encoded()},
		{line: "# syntax=docker/dockerfile:1.99", warning: "newer Dockerfile language"},
		{line: "# syntax=example.org/other/frontend:1", refused: "example.org/other/frontend:1"},
	} {
		gw, job := newGateway(t, test.line+"\n"+sixSteps)
		_, err := gw.Run(t.Context(), frontend.Dockerfile, nil, nil)
		if test.refused != "" {
			if err == nil || !strings.Contains(err.Error(), test.refused) {
				t.Errorf("%s: got %v", test.line, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.line, err)
		}
		if warned := strings.Join(job.warn, "\n"); strings.Contains(warned, "newer") != (test.warning != "") || !strings.Contains(warned, test.warning) {
			t.Errorf("%s: warnings %q", test.line, warned)
		}
	}
}

func TestUnknownFrontend(t *testing.T) {
	gw, _ := newGateway(t, sixSteps)
	if _, err := gw.Run(t.Context(), "cobol.v0", nil, nil); !errors.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestSubrequests(t *testing.T) {
	gw, _ := newGateway(t, "FROM busybox AS one\nARG X=1\nFROM one as two\n")
	for _, id := range []string{"frontend.outline", "frontend.targets", "frontend.lint", "frontend.subrequests.describe"} {
		res, err := gw.Run(t.Context(), frontend.Dockerfile, map[string]string{"requestid": id, "frontend.caps": "moby.buildkit.frontend.subrequests"}, nil)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if len(res.Metadata["result.json"]) == 0 {
			t.Errorf("%s: no result.json in %v", id, res.Metadata)
		}
	}
}

// A context is read below its root: links that lead out of it end at the root, and what .dockerignore leaves out is not there.
func TestReferenceStaysInside(t *testing.T) {
	gw, job := newGateway(t, sixSteps)
	for name, target := range map[string]string{"abs": "/etc/passwd", "up": "../../../../../../etc/passwd", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(job.dir.Name(), name)); err != nil {
			t.Fatal(err)
		}
	}
	res, err := gw.Client(nil, nil).Solve(t.Context(), gateway.SolveRequest{Definition: localDef(t)})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"abs", "up", "loop", "../../../../../etc/passwd", "missing", "Dockerfile/x"} {
		if data, err := res.Ref.ReadFile(t.Context(), gateway.ReadRequest{Filename: name}); err == nil {
			t.Errorf("%s gave %d bytes", name, len(data))
		}
	}
	list, err := res.Ref.ReadDir(t.Context(), gateway.ReadDirRequest{Path: "/", IncludePattern: "D*"})
	if err != nil || len(list) != 1 || list[0].Path != "Dockerfile" || list[0].Size != int64(len(sixSteps)) {
		t.Errorf("list: %v, %v", list, err)
	}
	st, err := res.Ref.StatFile(t.Context(), gateway.StatRequest{Path: "/Dockerfile"})
	if err != nil || st.Path != "Dockerfile" {
		t.Errorf("stat: %v, %v", st, err)
	}
	part, err := res.Ref.ReadFile(t.Context(), gateway.ReadRequest{Filename: "Dockerfile", Range: &gateway.FileRange{Offset: 5, Length: 7}})
	if err != nil || string(part) != "busybox" {
		t.Errorf("range: %q, %v", part, err)
	}
}

func BenchmarkDockerfile(b *testing.B) {
	gw, _ := newGateway(b, sixSteps)
	for b.Loop() {
		if _, err := gw.Run(b.Context(), frontend.Dockerfile, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}
