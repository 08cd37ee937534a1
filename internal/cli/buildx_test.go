package cli_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
)

func TestCacheOfBuilds(t *testing.T) {
	c := newClient(t, &fakeBuilds{})
	if code := c.run("buildx", "du"); code != 0 {
		t.Fatal(c.err.String())
	}
	for _, want := range []string{"ID                           RECLAIMABLE   SIZE       LAST ACCESSED\n", "m1a7yqkv9zcsw5lhk1o0gscqu    true          12.35MB*   ", "vkr9g5cx4v3vzufpj8b5u8tuy*   false         1.024kB    \n",
		"Shared:\t\t12.35MB\nPrivate:\t1.024kB\nReclaimable:\t12.35MB\nTotal:\t\t12.35MB\n"} {
		if !strings.Contains(c.out.String(), want) {
			t.Errorf("%q is not in\n%s", want, c.out.String())
		}
	}
	if c.run("buildx", "du", "--verbose"); !strings.Contains(c.out.String(), "ID:\t\tvkr9g5cx4v3vzufpj8b5u8tuy\nParents:\tm1a7yqkv9zcsw5lhk1o0gscqu\nCreated at:\t") {
		t.Error(c.out.String())
	}
	if c.run("buildx", "prune", "-f"); !strings.HasSuffix(c.out.String(), "Total:\t12.35MB\n") || !strings.HasPrefix(c.out.String(), "ID\t\t\t\t\t\tRECLAIMABLE\tSIZE\t\tLAST ACCESSED\nm1a7yqkv9zcsw5lhk1o0gscqu               \ttrue ") {
		t.Errorf("%q", c.out.String())
	}
	if c.run("builder", "prune", "-af"); c.out.String() != "Deleted build cache objects:\nm1a7yqkv9zcsw5lhk1o0gscqu\n\nTotal reclaimed space: 12.35MB\n" {
		t.Errorf("%q", c.out.String())
	}
	if code := c.run("buildx", "prune", "--builder", "other"); code != 1 || !strings.HasPrefix(c.err.String(), `ERROR: no builder "other" found`) {
		t.Error(code, c.err.String())
	}
}

func TestHistoryOfBuilds(t *testing.T) {
	c := newClient(t, &fakeBuilds{})
	c.run("buildx", "history", "ls", "--format", "{{.Ref}} {{.Name}} {{.Status}} {{.Duration}}")
	if want := "x1brqcdpgikrszhzuswmp1mp0 Dockerfile Error 1.0s\nqsiifiuf1ad9pa9qvppc0z1l3 app Completed 2.5s\n"; c.out.String() != want {
		t.Errorf("%q", c.out.String())
	}
	if c.run("buildx", "history", "inspect", "^1"); !strings.Contains(c.out.String(), "Build Steps:\t6 (33% cached)\n") {
		t.Error(c.out.String(), c.err.String())
	}
	if c.run("buildx", "history", "logs", "x1b"); c.err.String() != "#1 [internal] load build definition from Dockerfile\n#1 DONE 0.0s\n" {
		t.Error(c.err.String())
	}
	if code := c.run("buildx", "history", "rm", "^1"); code != 0 || c.err.String() != "" {
		t.Error(code, c.err.String())
	}
	if code := c.run("buildx", "history", "rm"); code != 1 || c.err.String() != "ERROR: give the builds to forget, or --all\n" {
		t.Error(code, c.err.String())
	}
}

// A plan's targets are built side by side; the first error ends the others and names its target.
func TestBake(t *testing.T) {
	var mu sync.Mutex
	got := map[string]builds.Request{}
	var fail bool
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		target := req.FrontendAttrs["target"]
		mu.Lock()
		got[target] = req
		mu.Unlock()
		if fail && target == "db" {
			return builds.Response{}, errors.New("too bad")
		}
		if fail {
			<-ctx.Done()
			return builds.Response{}, ctx.Err()
		}
		req.Status(steps(2))
		return builds.Response{Exporter: map[string]string{"containerimage.digest": "sha256:" + target}}, nil
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	write(t, dir+"/docker-bake.hcl", "# TOKEN_FOR_BAKE\n")
	t.Chdir(dir)
	if code := c.run("buildx", "bake", "--print"); code != 0 || !strings.HasPrefix(c.out.String(), "{\n  \"group\": {\n    \"default\": {") {
		t.Fatal(code, c.err.String(), c.out.String())
	}
	if code := c.run("buildx", "bake", "--metadata-file", "meta"); code != 0 {
		t.Fatal(c.err.String())
	}
	if got["db"].FrontendAttrs["build-arg:V"] != "2" || got[""].Exports[0].Attrs["name"] != "docker.io/library/app:1" {
		t.Errorf("%+v", got)
	}
	for _, want := range []string{" [app internal] load build definition", " [db 1/2] FROM docker.io/library/busybox"} {
		if !strings.Contains(c.err.String(), want) && !strings.Contains(c.err.String(), strings.Replace(want, "app", "db", 1)) {
			t.Error(c.err.String())
		}
	}
	if meta, _ := os.ReadFile("meta"); !strings.Contains(string(meta), `"containerimage.digest": "sha256:db"`) {
		t.Errorf("%s", meta)
	}
	fail = true
	if code := c.run("buildx", "bake"); code != 1 || !strings.HasSuffix(c.err.String(), "ERROR: target db: failed to solve: too bad\n") {
		t.Error(code, c.err.String())
	}
}

// The check prints what the linter says, and its exit code tells whether it found something.
func TestBuildCheck(t *testing.T) {
	js := `{"warnings":[{"ruleName":"x"}]}`
	f := &fakeBuilds{do: func(_ context.Context, req builds.Request) (builds.Response, error) {
		if req.FrontendAttrs["requestid"] != "frontend.lint" || len(req.Exports) != 0 {
			return builds.Response{}, errors.New("no request of the linter")
		}
		return builds.Response{Exporter: map[string]string{"result.json": js, "result.txt": "\nWARNING: x\nwhy\n"}}, nil
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	if code := c.run("build", "--check", dir); code != 1 || c.out.String() != "Check complete, 1 warning has been found!\n\nWARNING: x\nwhy\n" {
		t.Errorf("%d %q %s", code, c.out.String(), c.err.String())
	}
	js = `{"warnings":[],"sources":[{"filename":"Dockerfile","data":"RlJPTQ=="}],"buildError":{"message":"no image","location":{"ranges":[{"start":{"line":1},"end":{"line":1}}]}}}`
	if code := c.run("build", "--check", dir); code != 1 || !strings.HasPrefix(c.err.String(), "ERROR: no image\nDockerfile:1\n") || !strings.Contains(c.err.String(), ">>> FROM\n") {
		t.Errorf("%d %q", code, c.err.String())
	}
	js = `{"warnings":[]}`
	if code := c.run("build", "--call", "check,format=json", dir); code != 0 || c.out.String() != js+"\n" {
		t.Errorf("%d %q", code, c.out.String())
	}
}

// What cannot be is refused with one line, before anything is asked of the engine.
func TestBuildRefusals(t *testing.T) {
	f := &fakeBuilds{do: func(context.Context, builds.Request) (builds.Response, error) {
		t.Error("the engine was asked")
		return builds.Response{}, nil
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	for _, args := range [][]string{{dir + "/none"}, {"--squash", dir}, {"-t", "Upper", dir}, {"--push", dir}, {"--network", "mine", dir}, {"-o", "type=oops", dir}, {"--secret", "src=x", dir},
		{"--progress", "tty", dir}, {"--progress", "x", dir}, {"--builder", "other", dir}, {"--policy", "x", dir}, {"--attest", "type=x", dir}, {"--annotation", "x", dir}, {"--allow", "all", dir},
		{"--memory", "much", dir}, {"--ulimit", "x", dir}, {"--add-host", "x", dir}, {"--cache-to", "type=local", dir}, {"--on-error", "x", dir}, {"-f", "-", "-"}, {"--isolation", "hyperv", dir},
		{"--build-context", "x", dir}, {"--build-context", "Upper=" + dir, dir}, {"--build-context", "x=" + dir + "/none", dir}, {"--no-cache", "--no-cache-filter", "x", dir}, {"--call", "x", dir}} {
		if code := c.run(append([]string{"build"}, args...)...); code != 1 || strings.Count(c.err.String(), "\n") != 1 {
			t.Errorf("%q: %d %q", args, code, c.err.String())
		}
	}
}

// A shell in the failed step: our input goes to it, its output comes back, and the build's error ends it all.
func TestBuildShell(t *testing.T) {
	f := &fakeBuilds{}
	f.do = func(ctx context.Context, req builds.Request) (builds.Response, error) {
		req.Status(steps(3))
		step := &build.StepError{Vertex: &build.Vertex{Name: "[2/2] RUN make"}, ExitCode: 2, Err: errors.New("exit code: 2")}
		req.OnError(ctx, &fakeFailed{t: t, step: step})
		return builds.Response{}, step
	}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	c.in = strings.NewReader("ls\n")
	if code := c.run("build", "--on-error", "shell", dir); code != 1 || c.out.String() != "you said: ls\n" || !strings.Contains(c.err.String(), "The step failed: [2/2] RUN make\n") {
		t.Errorf("%d %q %q", code, c.out.String(), c.err.String())
	}
}

type fakeFailed struct {
	t    *testing.T
	step *build.StepError
}

func (f *fakeFailed) Step() *build.StepError { return f.step }

func (f *fakeFailed) Shell(_ context.Context, args []string, stdio builds.Terminal) (int, error) {
	if len(args) != 0 || stdio.Sizes() != nil {
		f.t.Error("a terminal that nobody has")
	}
	buf := make([]byte, 100)
	n, err := stdio.Read(buf)
	if err != nil {
		return 0, err
	}
	_, err = stdio.Write(append([]byte("you said: "), buf[:n]...))
	return 3, err
}

// A build with provenance tells where its files came from; one without runs no git.
func TestBuildTellsItsSource(t *testing.T) {
	f := &fakeBuilds{do: func(context.Context, builds.Request) (builds.Response, error) { return builds.Response{}, nil }}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/sub/Dockerfile", "FROM busybox\n")
	for _, args := range [][]string{{"init", "-q"}, {"remote", "add", "origin", "https://me:secret@example.org/app.git"}, {"add", "."}, {"-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "-m", "x"}} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Skip("no git:", err, string(out))
		}
	}
	if code := c.run("build", "--provenance=mode=max", dir+"/sub"); code != 0 {
		t.Fatal(c.err.String())
	}
	at := f.request().FrontendAttrs
	if at["attest:provenance"] != "mode=max" || len(at["vcs:revision"]) != 40 || at["vcs:source"] != "https://example.org/app.git" || at["vcs:localdir:context"] != "sub" {
		t.Errorf("%v", at)
	}
	if c.run("build", dir+"/sub"); f.request().FrontendAttrs["vcs:revision"] != "" {
		t.Error("git was asked for nothing")
	}
}
