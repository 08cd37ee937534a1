package cli_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/cli"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/server"
)

// fakeBuilds is a service that does what a test says.
type fakeBuilds struct {
	mu   sync.Mutex
	last builds.Request
	do   func(ctx context.Context, req builds.Request) (builds.Response, error)
}

func (f *fakeBuilds) Build(ctx context.Context, req builds.Request) (builds.Response, error) {
	f.mu.Lock()
	f.last = req
	f.mu.Unlock()
	return f.do(ctx, req)
}

func (f *fakeBuilds) request() builds.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

func at(sec float64) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(sec * float64(time.Second)))
}

func (f *fakeBuilds) DiskUsage(context.Context, filter.Args) ([]builds.UsageRecord, error) {
	used := at(5)
	return []builds.UsageRecord{
		{ID: "m1a7yqkv9zcsw5lhk1o0gscqu", Kind: "regular", Description: "[2/6] RUN make", Size: 12_345_678, Created: at(0), LastUsed: &used, UsageCount: 3, Shared: true},
		{ID: "vkr9g5cx4v3vzufpj8b5u8tuy", Kind: "exec.cachemount", Description: "cached mount /root/.cache", Size: 1024, Created: at(1), Mutable: true, InUse: true, Parents: []string{"m1a7yqkv9zcsw5lhk1o0gscqu"}},
	}, nil
}

func (f *fakeBuilds) Prune(_ context.Context, _ builds.PruneOptions, each func(builds.UsageRecord)) (int64, error) {
	used := at(5)
	each(builds.UsageRecord{ID: "m1a7yqkv9zcsw5lhk1o0gscqu", Kind: "regular", Size: 12_345_678, Created: at(0), LastUsed: &used})
	return 12_345_678, nil
}

func (f *fakeBuilds) History(_ context.Context, _ bool, each func(builds.Build) error) error {
	for _, b := range []builds.Build{
		{Ref: "qsiifiuf1ad9pa9qvppc0z1l3", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"filename": "Dockerfile", "context": "https://example.org/app.git"}, Created: at(0), Completed: at(2.5), Steps: 6, Cached: 2},
		{Ref: "x1brqcdpgikrszhzuswmp1mp0", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"filename": "Dockerfile"}, Created: at(10), Completed: at(11), Error: "exit code: 1", Steps: 3},
	} {
		if err := each(b); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeBuilds) Status(_ context.Context, ref string, each func(build.Status) error) error {
	return each(steps(1))
}

func (f *fakeBuilds) Bake(_ context.Context, req builds.BakeRequest) ([]byte, []builds.BakeMissing, error) {
	if len(req.Files) == 0 {
		return nil, nil, errors.New("no files")
	}
	return []byte(`{"group":{"default":{"targets":["app","db"]}},"target":{"app":{"context":".","dockerfile":"Dockerfile","tags":["app:1"]},"db":{"context":".","dockerfile":"Dockerfile","target":"db","args":{"V":"2"}}}}`), nil, nil
}

func (f *fakeBuilds) PlatformNames() []string { return []string{"linux/amd64", "linux/arm64"} }

func (f *fakeBuilds) Fetch(context.Context, builds.FetchRequest) ([]builds.BakeFile, error) {
	return nil, errors.New("nothing is fetched")
}

func (f *fakeBuilds) Document(context.Context, digest.Digest) ([]byte, error) {
	return nil, errs.NotFound
}
func (f *fakeBuilds) Forget(context.Context, string) error { return nil }

var sum = digest.FromString

// steps is a little build that has got as far as n.
func steps(n int) build.Status {
	times := func(f float64) *time.Time { t := at(f); return &t }
	all := []build.VertexStatus{
		{Digest: sum("1"), Name: "[internal] load build definition from Dockerfile", Started: times(0), Completed: times(0.01)},
		{Digest: sum("2"), Name: "[1/2] FROM docker.io/library/busybox", Started: times(0.01), Completed: times(0.01), Cached: true},
		{Digest: sum("3"), Name: "[2/2] RUN make", Started: times(0.02), Completed: times(1.5)},
	}
	return build.Status{Vertexes: all[:n]}
}

// client runs the command line against a server with the fake service.
type client struct {
	t      *testing.T
	socket string
	out    bytes.Buffer
	err    bytes.Buffer
	in     io.Reader
}

func newClient(t *testing.T, f *fakeBuilds) *client {
	t.Helper()
	return newClientOn(t, f, "")
}

// newClientOn serves on an address, or on a socket of its own.
func newClientOn(t *testing.T, f *fakeBuilds, addr string) *client {
	t.Helper()
	dir, err := os.MkdirTemp("", "bld")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", dir)
	host := "unix://" + dir + "/s"
	if addr != "" {
		host = addr
	}
	l, err := server.Listen(host, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if addr != "" {
		host = "tcp://" + l.Addr().String()
	}
	mirrors, err := mirror.New(mirror.Options{Root: dir + "/mirrors"})
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Options{Builds: f, BuildMirrors: mirrors})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-done
		os.RemoveAll(dir)
	})
	return &client{t: t, socket: host, in: strings.NewReader("")}
}

func (c *client) run(args ...string) int {
	c.out.Reset()
	c.err.Reset()
	return cli.Main(c.t.Context(), append([]string{"-H", c.socket}, args...), cli.Streams{In: c.in, Out: &c.out, Err: &c.err})
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// readIn reads a file of a context that was handed over.
func readIn(ctx context.Context, s *build.Session, context, name string) (string, error) {
	files, release, err := s.Contexts.Open(ctx, context, build.ContextOptions{})
	if err != nil {
		return "", err
	}
	defer release()
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", files.Root.Fd(), name))
	return string(data), err
}

// The directory is read in place; the result's id goes to the files that were asked for.
func TestBuild(t *testing.T) {
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		text, err := readIn(ctx, req.Session, "dockerfile", "Dockerfile")
		if err != nil {
			return builds.Response{}, err
		}
		if text != "FROM busybox\n" {
			return builds.Response{}, fmt.Errorf("Dockerfile is %q", text)
		}
		if _, _, err := req.Session.Contexts.Open(ctx, "other", build.ContextOptions{}); err == nil {
			return builds.Response{}, errors.New("a context that was not given")
		}
		req.Status(steps(2))
		req.Status(build.Status{Logs: []build.LogStatus{}})
		req.Status(build.Status{Vertexes: steps(3).Vertexes[2:], Logs: []build.LogStatus{{Vertex: sum("3"), Stream: 1, Data: []byte("cc -o a a.c\n"), Timestamp: at(0.5)}}})
		return builds.Response{Exporter: map[string]string{"containerimage.config.digest": "sha256:abc", "containerimage.descriptor": "eyJhIjoxfQ=="}}, nil
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	write(t, os.Getenv("DOCKER_CONFIG")+"/config.json", `{"proxies":{"default":{"httpProxy":"http://proxy:1"}}}`)
	if code := c.run("build", "-t", "app", "--build-arg", "V=2", "--label", "a=b", "--iidfile", dir+"/iid", "--metadata-file", dir+"/meta", "--pull", "--shm-size", "1m",
		"--ulimit", "nofile=10:20", "--add-host", "a:1.2.3.4", "--network", "none", "--platform", "linux/amd64,linux/arm64", "--target", "x", dir); code != 0 {
		t.Fatal(code, c.err.String())
	}
	want := `#1 [internal] load build definition from Dockerfile
#1 DONE 0.0s

#2 [1/2] FROM docker.io/library/busybox
#2 CACHED

#3 [2/2] RUN make
#3 0.480 cc -o a a.c
#3 DONE 1.5s
`
	if c.err.String() != want {
		t.Errorf("progress:\n%s", c.err.String())
	}
	req := f.request()
	for key, value := range map[string]string{"build-arg:V": "2", "build-arg:http_proxy": "http://proxy:1", "label:a": "b", "image-resolve-mode": "pull", "shm-size": "1048576", "ulimit": "nofile=10:20", "add-hosts": "a=1.2.3.4",
		"force-network-mode": "none", "platform": "linux/amd64,linux/arm64", "target": "x", "filename": "Dockerfile"} {
		if got := req.FrontendAttrs[key]; got != value {
			t.Errorf("%s is %q, want %q", key, got, value)
		}
	}
	if len(req.Exports) != 1 || req.Exports[0].Type != "image" || req.Exports[0].Attrs["name"] != "docker.io/library/app:latest" {
		t.Errorf("exports: %+v", req.Exports)
	}
	if code := c.run("build", "-q", "-t", "app", "-t", "app:2", "-o", "type=image,name=other", dir); code != 0 || f.request().Exports[0].Attrs["name"] != "docker.io/library/app:latest,docker.io/library/app:2" {
		t.Errorf("tags beside a named output: %d %+v", code, f.request().Exports)
	}
	if iid, _ := os.ReadFile(dir + "/iid"); string(iid) != "sha256:abc" {
		t.Errorf("iidfile: %q", iid)
	}
	if meta, _ := os.ReadFile(dir + "/meta"); !strings.Contains(string(meta), "\"containerimage.descriptor\": {\n    \"a\": 1\n  }") {
		t.Errorf("metadata: %s", meta)
	}
	if code := c.run("build", "-q", dir); code != 0 || c.out.String() != "sha256:abc\n" || c.err.Len() != 0 {
		t.Error(code, c.out.String(), c.err.String())
	}
	if code := c.run("build", "--progress", "rawjson", dir); code != 0 || !strings.HasPrefix(c.err.String(), `{"vertexes":[{"digest":"sha256:`) {
		t.Error(code, c.err.String())
	}
}

// A failed step ends with what it said, the lines of the Dockerfile and the error.
func TestBuildFails(t *testing.T) {
	f := &fakeBuilds{do: func(_ context.Context, req builds.Request) (builds.Response, error) {
		st := steps(3)
		err := errors.New(`process "/bin/sh -c make" did not complete successfully: exit code: 2`)
		st.Vertexes[2].Error = err.Error()
		st.Logs = []build.LogStatus{{Vertex: sum("3"), Data: []byte("make: no rule\n"), Timestamp: at(1)}}
		req.Status(st)
		src := &errdefs.Source{Info: &pb.SourceInfo{Filename: "Dockerfile", Data: []byte("FROM busybox\nRUN true\nRUN make\nRUN x\nRUN y\nRUN z\n")},
			Ranges: []*pb.Range{{Start: &pb.Position{Line: 3}, End: &pb.Position{Line: 3}}}}
		return builds.Response{}, errdefs.WithSource(&build.StepError{ExitCode: 2, Err: err}, src)
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	if code := c.run("build", dir); code != 1 {
		t.Error(code)
	}
	want := `#3 [2/2] RUN make
#3 0.980 make: no rule
#3 ERROR: process "/bin/sh -c make" did not complete successfully: exit code: 2
------
 > [2/2] RUN make:
0.980 make: no rule
------
Dockerfile:3
--------------------
   1 |     FROM busybox
   2 |     RUN true
   3 | >>> RUN make
   4 |     RUN x
   5 |     RUN y
--------------------
ERROR: failed to build: failed to solve: process "/bin/sh -c make" did not complete successfully: exit code: 2
`
	if !strings.HasSuffix(c.err.String(), want) {
		t.Errorf("got:\n%s", c.err.String())
	}
}

// Standard input is a Dockerfile, an archive with everything, or the Dockerfile of a directory.
func TestBuildFromStdin(t *testing.T) {
	var got []string
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		got = nil
		for _, where := range []string{"dockerfile/" + req.FrontendAttrs["filename"], "context/sub/file"} {
			context, name, _ := strings.Cut(where, "/")
			text, err := readIn(ctx, req.Session, context, name)
			if err != nil {
				text = "none"
			}
			got = append(got, text)
		}
		return builds.Response{}, nil
	}}
	c := newClient(t, f)
	check := func(want ...string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %q, want %q: %s", got, want, c.err.String())
		}
	}
	c.in = strings.NewReader("FROM a\n")
	if code := c.run("build", "-"); code != 0 {
		t.Error(c.err.String())
	}
	check("FROM a\n", "none")

	dir := t.TempDir()
	write(t, dir+"/sub/file", "x")
	c.in = strings.NewReader("FROM b\n")
	if code := c.run("build", "-f", "-", dir); code != 0 {
		t.Error(c.err.String())
	}
	check("FROM b\n", "x")

	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range []tar.Header{{Name: "Dockerfile", Mode: 0o644, Size: 7}, {Name: "../sub/file", Mode: 0o600, Size: 1}, {Name: "evil", Typeflag: tar.TypeSymlink, Linkname: "/"}} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(tw, map[string]string{"Dockerfile": "FROM c\n", "../sub/file": "y"}[h.Name])
	}
	tw.Close()
	c.in = &buf
	if code := c.run("build", "-"); code != 0 {
		t.Error(c.err.String())
	}
	check("FROM c\n", "y")
}

// Secrets and agents are asked for; they are in no request.
func TestBuildAsksForSecrets(t *testing.T) {
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		value, err := req.Session.Secrets.Secret(ctx, "token")
		if err != nil || string(value) != "s3cret" {
			return builds.Response{}, fmt.Errorf("%q %v", value, err)
		}
		if value, err = req.Session.Secrets.Secret(ctx, "file"); err != nil || string(value) != "in a file" {
			return builds.Response{}, fmt.Errorf("%q %v", value, err)
		}
		if _, err = req.Session.Secrets.Secret(ctx, "none"); err == nil || err.Error() != "secret none: not found" {
			return builds.Response{}, err
		}
		user, secret, err := req.Session.Credentials.Credentials(ctx, "example.org:5000")
		if user != "me" || secret != "pw" || err != nil {
			return builds.Response{}, fmt.Errorf("credentials %s %v", user, err)
		}
		return builds.Response{}, nil
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	write(t, dir+"/secret", "in a file")
	write(t, os.Getenv("DOCKER_CONFIG")+"/config.json", `{"auths":{"example.org:5000":{"auth":"bWU6cHc="}}}`)
	t.Setenv("TOKEN", "s3cret")
	if code := c.run("build", "--secret", "id=token,env=TOKEN", "--secret", "id=file,src="+dir+"/secret", dir); code != 0 {
		t.Error(c.err.String())
	}
}

// What comes out: a folder, archives, standard output. A failed build leaves no half of one.
func TestBuildOutputs(t *testing.T) {
	var fail error
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		for _, e := range req.Exports {
			switch e.Type {
			case "local":
				var buf bytes.Buffer
				tw := tar.NewWriter(&buf)
				tw.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o500})
				tw.WriteHeader(&tar.Header{Name: "d/file", Mode: 0o640, Size: 3, ModTime: at(0)})
				io.WriteString(tw, "abc")
				tw.Close()
				if err := req.Session.Outputs.Tree(ctx, e.ID, &buf); err != nil {
					return builds.Response{}, err
				}
			case "tar", "oci", "docker":
				w, err := req.Session.Outputs.File(ctx, e.ID, nil)
				if err != nil {
					return builds.Response{}, err
				}
				if _, err := w.Write(bytes.Repeat([]byte("tar "), 500_000)); err != nil {
					return builds.Response{}, err
				}
				if err := w.Close(); err != nil {
					return builds.Response{}, err
				}
			}
		}
		return builds.Response{}, fail
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	if code := c.run("build", "-o", dir+"/out", "-o", "type=oci,dest="+dir+"/image.tar", "-o", "type=tar", dir); code != 0 {
		t.Fatal(c.err.String())
	}
	if data, err := os.ReadFile(dir + "/out/d/file"); err != nil || string(data) != "abc" {
		t.Error(string(data), err)
	}
	if st, err := os.Stat(dir + "/out/d/file"); err != nil || st.Mode().Perm() != 0o640 || !st.ModTime().Equal(at(0)) {
		t.Error(st, err)
	}
	if st, err := os.Stat(dir + "/image.tar"); err != nil || st.Size() != 2_000_000 {
		t.Error(st, err)
	}
	if c.out.Len() != 2_000_000 {
		t.Error(c.out.Len())
	}
	fail = errors.New("too bad")
	if code := c.run("build", "-o", "type=oci,dest="+dir+"/broken.tar", dir); code != 1 {
		t.Error(code)
	}
	left, _ := filepath.Glob(dir + "/*broken*")
	hidden, _ := filepath.Glob(dir + "/.tmp*")
	if len(left)+len(hidden) != 0 {
		t.Error(left, hidden)
	}
	os.Chmod(dir+"/out/d", 0o700)
}

// A build whose client goes is cancelled.
func TestBuildIsCancelled(t *testing.T) {
	ended := make(chan error, 1)
	began := make(chan struct{})
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		close(began)
		<-ctx.Done()
		ended <- ctx.Err()
		return builds.Response{}, ctx.Err()
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() {
		code <- cli.Main(ctx, []string{"-H", c.socket, "build", dir}, cli.Streams{In: c.in, Out: &c.out, Err: &c.err})
	}()
	<-began
	cancel()
	if got := <-code; got != 130 {
		t.Error(got, c.err.String())
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the build goes on")
	}
}
