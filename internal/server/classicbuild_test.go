package server

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/engine/builds"
)

// classicBuilds is a service whose builds are what a test says.
type classicBuilds struct {
	builds.API
	build func(ctx context.Context, req builds.Request) (builds.Response, error)
}

func (f *classicBuilds) Build(ctx context.Context, req builds.Request) (builds.Response, error) {
	return f.build(ctx, req)
}

// Fetch has one address.
func (f *classicBuilds) Fetch(_ context.Context, req builds.FetchRequest) ([]builds.BakeFile, error) {
	if req.Address != "http://example.org/app.git" || len(req.Names) != 1 || req.Session == nil {
		return nil, fmt.Errorf("nothing at %s", req.Address)
	}
	return []builds.BakeFile{{Name: req.Names[0], Data: []byte("FROM busybox\nENV A=b\nRUN make\n")}}, nil
}

func (f *classicBuilds) Prune(_ context.Context, _ builds.PruneOptions, each func(builds.UsageRecord)) (int64, error) {
	each(builds.UsageRecord{ID: "r1"})
	return 7, nil
}

func classicServer(t *testing.T, build func(ctx context.Context, req builds.Request) (builds.Response, error)) *Server {
	t.Helper()
	mirrors, err := mirror.New(mirror.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Builds: &classicBuilds{build: build}, BuildMirrors: mirrors})
}

func contextTar(t *testing.T) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	text := "FROM busybox\nENV A=b\nRUN echo hi\nCMD [\"x\"]\n"
	if err := w.WriteHeader(&tar.Header{Name: "Dockerfile", Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func TestClassicBuild(t *testing.T) {
	now := time.Now()
	a, b := digest.FromString("a"), digest.FromString("b")
	s := classicServer(t, func(ctx context.Context, req builds.Request) (builds.Response, error) {
		files, release, err := req.Session.Contexts.Open(ctx, "dockerfile", build.ContextOptions{})
		if err != nil {
			return builds.Response{}, err
		}
		defer release()
		if names, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", files.Root.Fd())); err != nil || len(names) != 1 {
			return builds.Response{}, errors.Join(err, errors.New("the context lacks its file"))
		}
		for key, want := range map[string]string{"build-arg:A": "1", "label:l": "x", "no-cache": "", "add-hosts": "db=10.0.0.1", "target": "app"} {
			if got, ok := req.FrontendAttrs[key]; !ok || got != want {
				t.Errorf("%s is %q", key, got)
			}
		}
		if user, secret, err := req.Session.Credentials.Credentials(ctx, "docker.io"); user != "me" || secret != "pw" || err != nil {
			t.Error(user, secret, err)
		}
		// The second step says something before the first is done.
		req.Status(build.Status{Vertexes: []build.VertexStatus{
			{Digest: digest.FromString("i"), Name: "[internal] load build definition", Started: &now, Completed: &now},
			{Digest: a, Name: "[1/2] FROM busybox", Started: &now}, {Digest: b, Name: "[2/2] RUN echo hi", Started: &now},
		}, Logs: []build.LogStatus{{Vertex: b, Stream: 1, Data: []byte("hi\n")}}})
		req.Status(build.Status{Vertexes: []build.VertexStatus{{Digest: b, Process: "step-fedcba98765432100", Started: &now}}})
		req.Status(build.Status{Vertexes: []build.VertexStatus{{Digest: a, Completed: &now, Cached: true, Result: "sha256:aaaaaaaaaaaaaaa"}, {Digest: b, Completed: &now, Result: "sha256:bbbbbbbbbbbbbbb"}}})
		return builds.Response{Exporter: map[string]string{"containerimage.config.digest": "sha256:0123456789abcdef"}}, nil
	})
	r := httptest.NewRequest("POST", `/v1.48/build?t=app&t=h:5/x:2&buildargs={"A":"1","B":null}&labels={"l":"x"}&nocache=1&extrahosts=db:10.0.0.1&target=app&version=1`, contextTar(t))
	r.Header.Set("Content-Type", "application/x-tar")
	r.Header.Set("X-Registry-Config", "eyJodHRwczovL2luZGV4LmRvY2tlci5pby92MS8iOnsidXNlcm5hbWUiOiJtZSIsInBhc3N3b3JkIjoicHcifX0=")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	want := `{"stream":"Step 1/4 : FROM busybox\n"}
{"stream":" ---> aaaaaaaaaaaa\n"}
{"stream":"Step 2/4 : ENV A=b\n"}
{"stream":" ---> aaaaaaaaaaaa\n"}
{"stream":"Step 3/4 : RUN echo hi\n"}
{"stream":" ---> Running in fedcba987654\n"}
{"stream":"hi\n"}
{"stream":"Removing intermediate container fedcba987654\n"}
{"stream":" ---> bbbbbbbbbbbb\n"}
{"stream":"Step 4/4 : CMD [\"x\"]\n"}
{"stream":" ---> 0123456789ab\n"}
{"aux":{"ID":"sha256:0123456789abcdef"}}
{"stream":"Successfully built 0123456789ab\n"}
{"stream":"Successfully tagged app:latest\n"}
{"stream":"Successfully tagged h:5/x:2\n"}
`
	if got := strings.ReplaceAll(w.Body.String(), "\r\n", "\n"); got != want {
		t.Errorf("%d\n%s", w.Code, got)
	}
}

// A context at an address has its instructions numbered like one that came with the request; only steps of the graph were counted.
func TestClassicBuildOfAnAddress(t *testing.T) {
	now := time.Now()
	s := classicServer(t, func(_ context.Context, req builds.Request) (builds.Response, error) {
		if req.Session.Contexts != nil {
			t.Error("a context that nobody sent")
		}
		req.Status(build.Status{Vertexes: []build.VertexStatus{
			{Digest: digest.FromString("g"), Name: "[internal] load git source", Started: &now, Completed: &now},
			{Digest: digest.FromString("a"), Name: "[1/2] FROM busybox", Started: &now, Completed: &now, Result: "sha256:aaaaaaaaaaaaaaa"},
			{Digest: digest.FromString("b"), Name: "[2/2] RUN make", Started: &now, Completed: &now, Result: "sha256:bbbbbbbbbbbbbbb"},
		}})
		return builds.Response{Exporter: map[string]string{"containerimage.config.digest": "sha256:0123456789abcdef"}}, nil
	})
	for address, steps := range map[string]string{"http://example.org/app.git": "Step 1/3 : FROM busybox, Step 2/3 : ENV A=b, Step 3/3 : RUN make", "http://example.org/gone": "Step 1/2 : FROM busybox, Step 2/2 : RUN make"} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("POST", "/v1.48/build?remote="+address, nil))
		var got []string
		for line := range strings.Lines(w.Body.String()) {
			if _, step, ok := strings.Cut(line, `"Step `); ok {
				got = append(got, "Step "+strings.TrimSuffix(strings.TrimSpace(step), `\n"}`))
			}
		}
		if strings.Join(got, ", ") != steps {
			t.Errorf("%s: %q\n%s", address, got, w.Body)
		}
	}
}

// An ADD of addresses is one step, though each of them is fetched by a vertex of its own: it was numbered twice.
func TestClassicBuildAddsAddresses(t *testing.T) {
	now := time.Now()
	const add = "[1/2] ADD http://a http://b /"
	one, two, put, run := digest.FromString("1"), digest.FromString("2"), digest.FromString("put"), digest.FromString("run")
	c, w := classic{imageOf: func(string) string { return "" }}, httptest.NewRecorder()
	c.out = newProgress(w, false)
	c.plan = parsePlan([]byte("FROM scratch\nADD http://a http://b /\nRUN x\n"), "")
	c.update(build.Status{Vertexes: []build.VertexStatus{{Digest: one, Name: add}, {Digest: two, Name: add}, {Digest: put, Name: add}, {Digest: run, Name: "[2/2] RUN x"}}})
	c.update(build.Status{Vertexes: []build.VertexStatus{{Digest: one, Name: add, Started: &now, Completed: &now, Result: "sha256:111111111111111"}}})
	c.update(build.Status{Vertexes: []build.VertexStatus{{Digest: two, Name: add, Started: &now, Completed: &now, Result: "sha256:222222222222222"}}})
	c.update(build.Status{Vertexes: []build.VertexStatus{{Digest: put, Name: add, Started: &now, Completed: &now, Cached: true, Result: "sha256:333333333333333"}}})
	c.update(build.Status{Vertexes: []build.VertexStatus{{Digest: run, Name: "[2/2] RUN x", Started: &now, Completed: &now}}})
	c.finish("sha256:444444444444444", nil)
	if err := c.out.finish(nil); err != nil {
		t.Fatal(err)
	}
	want := `{"stream":"Step 1/3 : FROM scratch\n"}
{"stream":" ---> \n"}
{"stream":"Step 2/3 : ADD http://a http://b /\n"}
{"stream":" ---> Using cache\n"}
{"stream":" ---> 333333333333\n"}
{"stream":"Step 3/3 : RUN x\n"}
{"stream":" ---> 444444444444\n"}
`
	if got := strings.ReplaceAll(w.Body.String(), "\r\n", "\n"); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestClassicBuildFails(t *testing.T) {
	now := time.Now()
	v := &build.Vertex{Op: &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"/bin/sh", "-c", "false"}}}}}}
	s := classicServer(t, func(_ context.Context, req builds.Request) (builds.Response, error) {
		req.Status(build.Status{Vertexes: []build.VertexStatus{{Digest: digest.FromString("a"), Name: "[1/1] RUN false", Started: &now, Completed: &now, Error: "x"}}})
		return builds.Response{}, &build.StepError{Vertex: v, ExitCode: 1, Err: errors.New("process failed")}
	})
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("POST", "/v1.48/build", contextTar(t)))
	if !strings.Contains(w.Body.String(), `"errorDetail":{"code":1,"message":"The command '/bin/sh -c false' returned a non-zero code: 1"}`) {
		t.Error(w.Body)
	}
	for query, part := range map[string]string{
		"squash=1": "squash is not supported", "version=2": "without the service for builds", "version=3": "2 is BuildKit", "networkmode=container:x": "is not supported for builds", "buildargs={": "invalid buildargs",
		"memory=lots": "invalid value for memory", "isolation=hyperv": "Unsupported isolation", "securityopt=x": "security options on build", // both were read by nobody
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("POST", "/v1.48/build?"+query, contextTar(t)))
		if w.Code < 400 || !strings.Contains(w.Body.String(), part) {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
}

// Programs that read docker's stream look for ids: scripts that debug a build take the last "--->", others the id of the container, and rm and forcerm decide what is told of that.
func TestClassicIDs(t *testing.T) {
	now := time.Now()
	base, run, copied := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	tell := func(query string, failing bool) string {
		s := classicServer(t, func(_ context.Context, req builds.Request) (builds.Response, error) {
			req.Status(build.Status{Vertexes: []build.VertexStatus{
				{Digest: base, Name: "[one 1/2] FROM busybox", Started: &now, Completed: &now, Result: "sha256:1111111111111111"},
				{Digest: run, Name: "[one 2/2] RUN a", Started: &now, Process: "step-5555555555555555"},
			}})
			if failing {
				req.Status(build.Status{Vertexes: []build.VertexStatus{{Digest: run, Completed: &now, Error: "no"}}})
				return builds.Response{}, errors.New("no")
			}
			req.Status(build.Status{Vertexes: []build.VertexStatus{
				{Digest: copied, Name: "[two 1/1] COPY x /", Started: &now, Completed: &now, Cached: true, Result: "sha256:3333333333333333"}, {Digest: run, Completed: &now, Result: "sha256:2222222222222222"},
			}})
			return builds.Response{Exporter: map[string]string{"containerimage.config.digest": "sha256:9999999999999999"}}, nil
		})
		var tree bytes.Buffer
		w := tar.NewWriter(&tree)
		text := "FROM busybox AS one\nRUN a\nENV A=b\nFROM one AS two\nUSER 5\nCOPY x /\n"
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: "Dockerfile", Mode: 0o644, Size: int64(len(text))}), func() error { _, err := io.WriteString(w, text); return err }(), w.Close()); err != nil {
			t.Fatal(err)
		}
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, httptest.NewRequest("POST", "/v1.48/build?"+query, &tree))
		var out strings.Builder
		for dec := json.NewDecoder(rec.Body); ; {
			var m struct{ Stream string }
			if dec.Decode(&m) != nil {
				return out.String()
			}
			out.WriteString(m.Stream)
		}
	}
	begin := "Step 1/6 : FROM busybox AS one\n ---> 111111111111\nStep 2/6 : RUN a\n ---> Running in 555555555555\n"
	end := " ---> 222222222222\nStep 3/6 : ENV A=b\n ---> 222222222222\nStep 4/6 : FROM one AS two\n ---> 222222222222\nStep 5/6 : USER 5\n ---> 222222222222\n" +
		"Step 6/6 : COPY x /\n ---> Using cache\n ---> 999999999999\nSuccessfully built 999999999999\n"
	removed := "Removing intermediate container 555555555555\n"
	for query, want := range map[string]string{"": begin + removed + end, "rm=1": begin + removed + end, "rm=0": begin + end} {
		if got := tell(query, false); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", query, got, want)
		}
	}
	for query, want := range map[string]string{"rm=1": begin, "forcerm=1": begin + removed} {
		if got := tell(query, true); got != want {
			t.Errorf("failing, %s:\n%s\nwant\n%s", query, got, want)
		}
	}
}

// Every instruction is a step, as with docker's builder: ENV and CMD, too, and those of stages that are needed.
func TestClassicPlan(t *testing.T) {
	p := parsePlan([]byte("ARG V=1\nFROM base:$V AS one\nENV A=b\nRUN a\nFROM base AS unused\nRUN u\nFROM one\nWORKDIR /w\nCOPY --from=one /x /y\nCMD [\"x\"]\nFROM one AS after\nRUN z\n"), "2")
	at := func(stage string, i, of int, text string) *classicStep {
		full := fmt.Sprintf("[%s %d/%d] %s", stage, i, of, text)
		return &classicStep{name: text, full: full}
	}
	for _, step := range []*classicStep{
		at("one", 1, 3, "FROM docker.io/library/base:1"), at("one", 2, 3, "ONBUILD RUN t"), at("one", 3, 3, "RUN a"),
		at("stage-2", 1, 2, "WORKDIR /w"), at("linux/amd64 stage-2", 2, 2, "COPY --from=one /x /y"),
	} {
		p = p.join(step)
	}
	var got []string
	for i, one := range p {
		n, of := p.numbers(i)
		what := ""
		if one.step != nil {
			what = one.step.full
		}
		got = append(got, fmt.Sprintf("%d/%d %s | %s", n, of, one.text, what))
	}
	want := `1/10 ARG V=1 | 
2/10 FROM base:$V AS one | [one 1/3] FROM docker.io/library/base:1
2/10  | [one 2/3] ONBUILD RUN t
3/10 ENV A=b | 
4/10 RUN a | [one 3/3] RUN a
5/10 FROM base AS unused | 
6/10 RUN u | 
7/10 FROM one | 
8/10 WORKDIR /w | [stage-2 1/2] WORKDIR /w
9/10 COPY --from=one /x /y | [linux/amd64 stage-2 2/2] COPY --from=one /x /y
10/10 CMD ["x"] | `
	if strings.Join(got, "\n") != want || !p.left("unused") || p.left("one") {
		t.Error(strings.Join(got, "\n"))
	}
}

func TestBuildPrune(t *testing.T) {
	s := classicServer(t, nil)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("POST", "/v1.48/build/prune?all=1", nil))
	if w.Code != 200 || strings.TrimSpace(w.Body.String()) != `{"CachesDeleted":["r1"],"SpaceReclaimed":7}` {
		t.Error(w.Code, w.Body)
	}
}
