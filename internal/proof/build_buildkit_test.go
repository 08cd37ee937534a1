package proof

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bk "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/tonistiigi/fsutil"

	"corten.dev/corten/internal/enginetest"
)

// buildKit is BuildKit's own client on the engine's socket, connected as buildx connects it: /grpc for requests, /session for what the engine asks back.
func buildKit(t *testing.T, e *enginetest.Engine) *bk.Client {
	t.Helper()
	client, err := bk.New(t.Context(), "",
		bk.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return upgraded(ctx, e, "/grpc", nil) }),
		bk.WithSessionDialer(func(ctx context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			return upgraded(ctx, e, "/session", meta)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

// upgraded is a connection that the engine speaks HTTP/2 on.
func upgraded(ctx context.Context, e *enginetest.Engine, path string, meta map[string][]string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(e.Socket(), "unix://"))
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://engine"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "h2c")
	for key, values := range meta {
		req.Header[http.CanonicalHeaderKey(key)] = values
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("%s: %s", path, resp.Status)
	}
	return &readAhead{Conn: conn, r: r}, nil
}

type readAhead struct {
	net.Conn
	r *bufio.Reader
}

func (c *readAhead) Read(p []byte) (int, error) { return c.r.Read(p) }

// contextOf is a directory with these files, as a client's local source.
func contextOf(t *testing.T, files map[string]string) fsutil.FS {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func dockerfile(t *testing.T, lines string, more map[string]string) bk.SolveOpt {
	t.Helper()
	files := map[string]string{"Dockerfile": lines}
	for name, text := range more {
		files[name] = text
	}
	tree := contextOf(t, files)
	return bk.SolveOpt{Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": tree, "dockerfile": tree}}
}

// logs gathers what steps say, and which steps were cached.
func logs(t *testing.T) (chan *bk.SolveStatus, func() (text string, cached []string)) {
	t.Helper()
	status := make(chan *bk.SolveStatus)
	done := make(chan struct{})
	var text strings.Builder
	var cached []string
	go func() {
		defer close(done)
		for st := range status {
			for _, l := range st.Logs {
				text.Write(l.Data)
			}
			for _, v := range st.Vertexes {
				if v.Cached && v.Completed != nil {
					cached = append(cached, v.Name)
				}
			}
		}
	}()
	return status, func() (string, []string) { <-done; return text.String(), cached }
}

// A Dockerfile with a secret, exported to a directory and an archive; then the same again, from the cache.
func TestBuildKitSolvesADockerfile(t *testing.T) {
	e := enginetest.Start(t)
	client := buildKit(t, e)
	out, archive := t.TempDir(), filepath.Join(t.TempDir(), "oci.tar")
	for round := range 2 {
		opt := dockerfile(t, "FROM busybox\nCOPY a.txt /\nRUN --mount=type=secret,id=word cat /run/secrets/word && mkdir /made && cp a.txt /made/b.txt\nFROM scratch\nCOPY --from=0 /made /\n",
			map[string]string{"a.txt": "content\n"})
		opt.Session = []session.Attachable{secretsprovider.FromMap(map[string][]byte{"word": []byte("swordfish\n")})}
		opt.Exports = []bk.ExportEntry{
			{Type: bk.ExporterLocal, OutputDir: out},
			{Type: bk.ExporterOCI, Output: func(map[string]string) (io.WriteCloser, error) { return os.Create(archive) }},
		}
		status, said := logs(t)
		if _, err := client.Solve(t.Context(), nil, opt, status); err != nil {
			t.Fatal(err)
		}
		text, cached := said()
		if round == 0 && !strings.Contains(text, "swordfish") {
			t.Errorf("the step says %q", text)
		}
		if round == 1 && len(cached) < 4 {
			t.Errorf("cached the second time: %q", cached)
		}
		if got, err := os.ReadFile(out + "/b.txt"); err != nil || string(got) != "content\n" {
			t.Errorf("the file in the directory: %q, %v", got, err)
		}
		if st, err := os.Stat(archive); err != nil || st.Size() < 1024 {
			t.Errorf("the archive: %v", err)
		}
	}
}

// A client that has no Dockerfile: LLB by the gateway, files read back, a result returned.
func TestBuildKitDrivesABuildItself(t *testing.T) {
	e := enginetest.Start(t)
	client := buildKit(t, e)
	resp, err := client.Build(t.Context(), bk.SolveOpt{Exports: []bk.ExportEntry{{Type: bk.ExporterImage, Attrs: map[string]string{"name": "driven:1"}}}}, "test",
		func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
			st := llb.Image("busybox").Run(llb.Shlex("sh -c 'echo from llb > /word'")).Root().File(llb.Mkfile("/more", 0o600, []byte("x")))
			def, err := st.Marshal(ctx, llb.LinuxAmd64)
			if err != nil {
				return nil, err
			}
			res, err := gw.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
			if err != nil {
				return nil, err
			}
			ref, err := res.SingleRef()
			if err != nil {
				return nil, err
			}
			data, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/word"})
			if err != nil || string(data) != "from llb\n" {
				return nil, fmt.Errorf("/word is %q: %w", data, err)
			}
			if _, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/../../etc/shadow"}); err == nil {
				return nil, errors.New("a file of the host was read")
			}
			config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"cat", "/word"}}})
			if err != nil {
				return nil, err
			}
			res.AddMeta("containerimage.config", config)
			return res, nil
		}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.ExporterResponse["containerimage.config.digest"] == "" {
		t.Error(resp.ExporterResponse)
	}
	if got := e.Corten("run", "--rm", "driven:1"); got != "from llb" {
		t.Errorf("the image says %q", got)
	}
}

// A failed step: the words, the code and the lines of the Dockerfile come over the wire.
func TestBuildKitIsToldWhatFailed(t *testing.T) {
	e := enginetest.Start(t)
	client := buildKit(t, e)
	_, err := client.Solve(t.Context(), nil, dockerfile(t, "FROM busybox\nRUN exit 3\n", nil), nil)
	if err == nil || !strings.Contains(err.Error(), `process "/bin/sh -c exit 3" did not complete successfully: exit code: 3`) || strings.Contains(err.Error(), "rpc error") {
		t.Fatal(err)
	}
	sources := errdefs.Sources(err)
	if len(sources) != 1 || len(sources[0].Ranges) != 1 || sources[0].Ranges[0].Start.Line != 2 {
		t.Errorf("the lines: %v", sources)
	}
	if _, err := client.Solve(t.Context(), nil, dockerfile(t, "FROM nosuch.invalid/x\n", nil), nil); err == nil || !strings.Contains(err.Error(), "nosuch.invalid/x") {
		t.Error(err)
	}
	if _, err := client.Solve(t.Context(), nil, dockerfile(t, "FROM busybox\nRUN --network=host true\n", nil), nil); err == nil || !strings.Contains(err.Error(), "network.host") {
		t.Error(err)
	}
}

// A client that goes ends its step at once.
func TestBuildKitCancel(t *testing.T) {
	e := enginetest.Start(t)
	client := buildKit(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	status := make(chan *bk.SolveStatus)
	go func() {
		for st := range status {
			for _, l := range st.Logs {
				if strings.Contains(string(l.Data), "begun") {
					cancel()
				}
			}
		}
	}()
	began := time.Now()
	if _, err := client.Solve(ctx, nil, dockerfile(t, "FROM busybox\nRUN echo begun; sleep 1000\n", nil), status); err == nil {
		t.Error("a cancelled build succeeds")
	}
	if d := time.Since(began); d > time.Minute {
		t.Errorf("it took %s", d)
	}
}

// What the cache holds can be listed and pruned.
func TestBuildKitPrunes(t *testing.T) {
	e := enginetest.Start(t)
	client := buildKit(t, e)
	if _, err := client.Solve(t.Context(), nil, dockerfile(t, "FROM busybox\nRUN --mount=type=cache,target=/c,id=mine dd if=/dev/zero of=/c/f bs=1024 count=100\n", nil), nil); err != nil {
		t.Fatal(err)
	}
	records, err := client.DiskUsage(t.Context(), bk.WithFilter([]string{"type==exec.cachemount"}))
	if err != nil || len(records) != 1 || records[0].Size < 100<<10 || !records[0].Mutable {
		t.Fatalf("%v, %v", records, err)
	}
	gone := make(chan bk.UsageInfo, 16)
	if err := client.Prune(t.Context(), gone, bk.PruneAll); err != nil || len(gone) == 0 {
		t.Fatal(len(gone), err)
	}
	records, err = client.DiskUsage(t.Context())
	for _, rec := range records {
		if !rec.Shared { // what images stand on is theirs
			t.Errorf("left: %+v", rec)
		}
	}
	if err != nil {
		t.Error(err)
	}
}
