package joined_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

type secrets map[string]string

func (s secrets) Secret(_ context.Context, id string) ([]byte, error) {
	if v, ok := s[id]; ok {
		return []byte(v), nil
	}
	return nil, errs.New(errs.NotFound, "no secret %s", id)
}

// Each file is a Dockerfile whose last stage leaves /result, and what that must be.
func TestLanguage(t *testing.T) {
	h := newHost(t)
	for name, test := range map[string]struct {
		dockerfile, want string
		files            map[string]string
		attrs            map[string]string
	}{
		"stages":   {dockerfile: "FROM busybox AS one\nRUN echo from one > /a\nFROM busybox\nCOPY --from=one /a /result\n", want: "from one\n"},
		"scratch":  {dockerfile: "FROM scratch\nCOPY text /result\n", files: map[string]string{"text": "x"}, want: "x"},
		"heredoc":  {dockerfile: "FROM busybox\nRUN <<EOF\necho a > /result\necho b >> /result\nEOF\n", want: "a\nb\n"},
		"copydoc":  {dockerfile: "FROM busybox\nCOPY <<EOF /result\nhello $HOME\nEOF\n", want: "hello \n"},
		"args":     {dockerfile: "ARG BASE=busybox\nFROM $BASE\nARG X=1\nENV Y=$X\nRUN echo $X $Y > /result\n", attrs: map[string]string{"build-arg:X": "2"}, want: "2 2\n"},
		"shell":    {dockerfile: "FROM busybox\nSHELL [\"/bin/sh\", \"-ec\"]\nRUN false || echo ok > /result\n", want: "ok\n"},
		"bind":     {dockerfile: "FROM busybox\nRUN --mount=target=/ctx cat /ctx/sub/text > /result\n", files: map[string]string{"sub/text": "bound"}, want: "bound"},
		"cache":    {dockerfile: "FROM busybox\nRUN --mount=type=cache,target=/c echo kept > /c/f\nRUN --mount=type=cache,target=/c cat /c/f > /result\n", want: "kept\n"},
		"tmpfs":    {dockerfile: "FROM busybox\nRUN --mount=type=tmpfs,target=/t echo x > /t/f && ls /t > /result\n", want: "f\n"},
		"secret":   {dockerfile: "FROM busybox\nRUN --mount=type=secret,id=key wc -c < /run/secrets/key > /result\n", want: "6\n"},
		"chown":    {dockerfile: "FROM busybox\nCOPY --chown=5:6 --chmod=640 text /t\nRUN stat -c '%u %g %a' /t > /result\n", files: map[string]string{"text": "x"}, want: "5 6 640\n"},
		"link":     {dockerfile: "FROM busybox\nCOPY --link text /d/t\nRUN cat /d/t > /result\n", files: map[string]string{"text": "linked"}, want: "linked"},
		"exclude":  {dockerfile: "FROM busybox\nCOPY --exclude=*.md . /d/\nRUN ls /d > /result\n", files: map[string]string{"a.md": "", "b.txt": "", ".dockerignore": "Dockerfile\n.dockerignore"}, want: "b.txt\n"},
		"parents":  {dockerfile: "FROM busybox\nCOPY --parents a/b/c /d/\nRUN cat /d/a/b/c > /result\n", files: map[string]string{"a/b/c": "deep"}, want: "deep"},
		"ignore":   {dockerfile: "FROM busybox\nCOPY . /d/\nRUN ls /d > /result\n", files: map[string]string{"yes": "", "no": "", "Dockerfile.dockerignore": "no\nDockerfile*"}, want: "yes\n"},
		"none":     {dockerfile: "FROM busybox\nRUN --network=none ls /sys/class/net > /result\n", want: "lo\n"},
		"context":  {dockerfile: "FROM busybox\nCOPY --from=other text /result\n", files: map[string]string{"text": "named"}, attrs: map[string]string{"context:other": "local:other"}, want: "named"},
		"image":    {dockerfile: "FROM elsewhere\nRUN echo here > /result\n", attrs: map[string]string{"context:elsewhere": "docker-image://busybox:latest"}, want: "here\n"},
		"escape":   {dockerfile: "# escape=`\nFROM busybox\nRUN echo a `\n b > /result\n", want: "a b\n"},
		"target":   {dockerfile: "FROM busybox AS a\nRUN echo a > /result\nFROM a AS b\nRUN echo b > /result\n", attrs: map[string]string{"target": "a"}, want: "a\n"},
		"hostname": {dockerfile: "FROM busybox\nRUN cat /etc/hosts | grep -c extra > /result\n", attrs: map[string]string{"add-hosts": "extra=10.0.0.9"}, want: "1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"Dockerfile": test.dockerfile}
			for k, v := range test.files {
				files[k] = v
			}
			ses := h.context(files)
			ses.Secrets = secrets{"key": "secret"}
			_, out, err := h.build(ses, "lang:"+name, func(req *builds.Request) {
				for k, v := range test.attrs {
					req.FrontendAttrs[k] = v
				}
			})
			if err != nil {
				t.Fatalf("%v\n%s", err, out.logs.String())
			}
			if got := h.cat("lang:"+name, "/result"); got != test.want {
				t.Errorf("got %q, want %q\n%s", got, test.want, out.logs.String())
			}
		})
	}
}

func TestOnBuild(t *testing.T) {
	h := newHost(t)
	if _, _, err := h.build(h.context(map[string]string{"Dockerfile": "FROM busybox\nONBUILD RUN echo later > /result\n"}), "parent:latest", nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.build(h.context(map[string]string{"Dockerfile": "FROM parent\n"}), "child:latest", nil); err != nil {
		t.Fatal(err)
	}
	if got := h.cat("child:latest", "/result"); got != "later\n" {
		t.Errorf("got %q", got)
	}
}

// A step that fails says so in Docker's words, with the lines of the Dockerfile, and can be looked into.
func TestFailure(t *testing.T) {
	h := newHost(t)
	ses := h.context(map[string]string{"Dockerfile": "FROM busybox\nRUN echo before\nRUN echo trace > /trace; exit 3\n"})
	var shell strings.Builder
	var code int
	_, out, err := h.build(ses, "x:y", func(req *builds.Request) {
		req.OnError = func(ctx context.Context, failed builds.Failed) {
			var err error
			code, err = failed.Shell(ctx, []string{"/bin/sh", "-c", "cat /trace; exit 9"}, terminal{&shell})
			if err != nil {
				t.Error(err)
			}
		}
	})
	if err == nil || !strings.Contains(err.Error(), `process "/bin/sh -c echo trace > /trace; exit 3" did not complete successfully: exit code: 3`) {
		t.Fatalf("got %v\n%s", err, out.logs.String())
	}
	var step *build.StepError
	if !errors.As(err, &step) || step.ExitCode != 3 {
		t.Errorf("the error tells no step: %#v", err)
	}
	if code != 9 || shell.String() != "trace\n" {
		t.Errorf("the shell: %d, %q", code, shell.String())
	}
	if _, err := h.images.Get(t.Context(), "x:y"); !errors.Is(err, errs.NotFound) {
		t.Errorf("an image came of it: %v", err)
	}
}

type terminal struct{ out *strings.Builder }

func (terminal) Read([]byte) (int, error)      { return 0, io.EOF }
func (t terminal) Write(p []byte) (int, error) { return t.out.Write(p) }
func (terminal) Sizes() <-chan [2]uint16       { return nil }

func TestCancel(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	began := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		_, err := h.Build(ctx, builds.Request{
			Frontend: "dockerfile.v0", Session: h.context(map[string]string{"Dockerfile": "FROM busybox\nRUN echo up; sleep 600\n"}),
			Status: func(st build.Status) {
				if len(st.Logs) > 0 {
					began <- struct{}{}
				}
			},
		})
		done <- err
	}()
	select {
	case <-began:
	case err := <-done:
		t.Fatal(err)
	}
	start := time.Now()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the end took %v", took)
	}
}

func TestRefused(t *testing.T) {
	h := newHost(t)
	for name, test := range map[string]struct {
		change     func(*builds.Request)
		dockerfile string
		want       string
	}{
		"entitlement":  {func(r *builds.Request) { r.Entitlements = []string{"security.insecure"} }, "FROM busybox\n", "granting entitlement security.insecure is not allowed"},
		"unknown":      {func(r *builds.Request) { r.Entitlements = []string{"magic"} }, "FROM busybox\n", "invalid entitlement: magic"},
		"host network": {func(*builds.Request) {}, "FROM busybox\nRUN --network=host true\n", "network.host"},
		"exporter":     {func(r *builds.Request) { r.Exports[0].Type = "carrier-pigeon" }, "FROM busybox\n", "carrier-pigeon"},
		"syntax":       {func(*builds.Request) {}, "FROM busybox\nRUM x\n", "unknown instruction: RUM"},
		"no base":      {func(*builds.Request) {}, "FROM nowhere.invalid/none:1\n", "nowhere.invalid/none:1"},
		"no file":      {func(*builds.Request) {}, "FROM busybox\nCOPY none /\n", `"/none": not found`},
		"platform":     {func(r *builds.Request) { r.FrontendAttrs["platform"] = "linux/s390x" }, "FROM scratch\nRUN [\"x\"]\n", "linux/s390x"},
		"frontend":     {func(r *builds.Request) { r.Frontend = "cobol.v0" }, "FROM busybox\n", "cobol.v0"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := h.build(h.context(map[string]string{"Dockerfile": test.dockerfile}), "refused:latest", test.change)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestHistory(t *testing.T) {
	h := newHost(t)
	ses := h.context(map[string]string{"Dockerfile": "FROM busybox\nRUN echo said\n"})
	if _, _, err := h.build(ses, "x:y", func(r *builds.Request) { r.Ref = "one" }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.build(ses, "x:y", func(r *builds.Request) { r.Ref, r.FrontendAttrs["target"] = "two", "none" }); err == nil {
		t.Fatal("no error")
	}
	var lines []builds.Build
	must(t, h.History(t.Context(), false, func(b builds.Build) error { lines = append(lines, b); return nil }))
	if len(lines) != 2 || lines[0].Ref != "one" || lines[0].Error != "" || lines[0].Steps == 0 || lines[1].Error == "" || lines[1].Completed.IsZero() {
		t.Errorf("history: %+v", lines)
	}
	if len(lines[0].Provenance) != 1 || len(lines[1].Provenance) != 0 {
		t.Fatalf("provenance: %+v", lines)
	}
	raw, err := h.Document(t.Context(), lines[0].Provenance[0].Digest)
	if err != nil || !strings.Contains(string(raw), "pkg:docker/busybox") || int64(len(raw)) != lines[0].Provenance[0].Size {
		t.Errorf("%s %v", raw, err)
	}
	var said strings.Builder
	must(t, h.Status(t.Context(), "one", func(st build.Status) error {
		for _, l := range st.Logs {
			said.Write(l.Data)
		}
		return nil
	}))
	if said.String() != "said\n" {
		t.Errorf("replay: %q", said.String())
	}
	if err := h.Status(t.Context(), "three", func(build.Status) error { return nil }); !errors.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
}
