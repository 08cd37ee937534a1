package buildkitapi

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bk "github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
)

// fake is the service, as far as a test says.
type fake struct {
	builds.API
	build   func(ctx context.Context, req builds.Request) (builds.Response, error)
	status  []build.Status
	records []builds.UsageRecord
	filters filter.Args
}

func (f *fake) PlatformNames() []string { return []string{"linux/amd64"} }

func (f *fake) Build(ctx context.Context, req builds.Request) (builds.Response, error) {
	return f.build(ctx, req)
}

func (f *fake) Status(_ context.Context, _ string, each func(build.Status) error) error {
	for _, st := range f.status {
		if err := each(st); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) DiskUsage(_ context.Context, args filter.Args) ([]builds.UsageRecord, error) {
	f.filters = args
	return f.records, nil
}

func (f *fake) Prune(_ context.Context, _ builds.PruneOptions, each func(builds.UsageRecord)) (int64, error) {
	for _, rec := range f.records {
		each(rec)
	}
	return 0, nil
}

// dial serves the door, and connects BuildKit's own client to it as the docker client does.
func dial(t *testing.T, api builds.API) *bk.Client {
	t.Helper()
	door, err := New(Options{Builds: api, Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve := door.GRPC
		if r.URL.Path == "/session" {
			serve = door.Session
		}
		if err := serve(w, r); err != nil {
			t.Log(r.URL.Path, err)
		}
	}))
	t.Cleanup(func() {
		if err := door.Close(); err != nil {
			t.Error(err)
		}
		srv.Close()
	})
	hijack := func(ctx context.Context, path, proto string, meta map[string][]string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", srv.Listener.Addr().String())
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://x"+path, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", proto)
		for k, v := range meta {
			req.Header[http.CanonicalHeaderKey(k)] = v
		}
		if err := req.Write(conn); err != nil {
			return nil, err
		}
		head := make([]byte, 0, 256)
		for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
			var b [1]byte
			if _, err := conn.Read(b[:]); err != nil {
				return nil, errors.New("the answer: " + string(head))
			}
			head = append(head, b[0])
		}
		if !strings.HasPrefix(string(head), "HTTP/1.1 101 ") {
			return nil, errors.New(string(head))
		}
		return conn, nil
	}
	client, err := bk.New(t.Context(), "", bk.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return hijack(ctx, "/grpc", "h2c", nil) }),
		bk.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return hijack(ctx, "/session", proto, meta)
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

func TestSolveWithSecretsAndOutputs(t *testing.T) {
	vertex := digest.FromString("v")
	now := time.Now()
	api := &fake{status: []build.Status{
		{Vertexes: []build.VertexStatus{{Digest: vertex, Name: "[1/1] RUN make", Started: &now}}},
		{Logs: []build.LogStatus{{Vertex: vertex, Stream: 1, Data: bytes.Repeat([]byte("x"), 3<<20), Timestamp: now}}},
		{Vertexes: []build.VertexStatus{{Digest: vertex, Name: "[1/1] RUN make", Started: &now, Completed: &now}}},
	}}
	api.build = func(ctx context.Context, req builds.Request) (builds.Response, error) {
		if req.Frontend != "dockerfile.v0" || req.FrontendAttrs["target"] != "app" || len(req.Exports) != 2 {
			return builds.Response{}, errs.New(errs.Invalid, "got %+v", req)
		}
		secret, err := req.Session.Secrets.Secret(ctx, "token")
		if err != nil || string(secret) != "hush" {
			return builds.Response{}, errs.New(errs.Invalid, "secret %q: %v", secret, err)
		}
		if _, err := req.Session.Secrets.Secret(ctx, "other"); !errors.Is(err, errs.NotFound) {
			return builds.Response{}, errs.New(errs.Invalid, "a secret that is not there: %v", err)
		}
		if err := req.Session.SSH.Offers(ctx, ""); !errors.Is(err, errs.NotFound) {
			return builds.Response{}, errs.New(errs.Invalid, "an agent that is not there: %v", err)
		}
		if err := req.Session.Outputs.Tree(ctx, req.Exports[0].ID, outputTar(t)); err != nil {
			return builds.Response{}, err
		}
		w, err := req.Session.Outputs.File(ctx, req.Exports[1].ID, map[string]string{"name": "x"})
		if err != nil {
			return builds.Response{}, err
		}
		if _, err := w.Write([]byte("archive")); err != nil {
			return builds.Response{}, err
		}
		return builds.Response{Exporter: map[string]string{"image.name": "docker.io/library/x:latest"}}, w.Close()
	}
	client := dial(t, api)
	dir, archive := filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "x.tar")
	logged := 0
	seen := make(chan *bk.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for st := range seen {
			for _, l := range st.Logs {
				logged += len(l.Data)
			}
		}
	}()
	resp, err := client.Solve(t.Context(), nil, bk.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"target": "app"},
		Session: []session.Attachable{secretsprovider.FromMap(map[string][]byte{"token": []byte("hush")})},
		Exports: []bk.ExportEntry{{Type: "local", OutputDir: dir}, {Type: "tar", Output: func(map[string]string) (io.WriteCloser, error) { return os.Create(archive) }}},
	}, seen)
	<-done
	if err != nil || resp.ExporterResponse["image.name"] != "docker.io/library/x:latest" || logged != 3<<20 {
		t.Fatal(resp, err, logged)
	}
	for path, want := range map[string]string{dir + "/a/one": "1", dir + "/b": "1", dir + "/a/link": "1", archive: "archive"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}

// outputTar has a hard link whose first name comes after it in the order of names.
func outputTar(t *testing.T) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "b", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}, {Name: "a/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "a/one", Typeflag: tar.TypeLink, Linkname: "b", Mode: 0o644}, {Name: "a/link", Typeflag: tar.TypeSymlink, Linkname: "one", Mode: 0o777},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("1")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

// A client that drives the build itself calls the gateway at once, maybe before its Solve has come.
func TestDrivenBuild(t *testing.T) {
	api := &fake{build: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		res, err := req.Gateway(ctx, nothing{})
		if err != nil {
			return builds.Response{}, err
		}
		return builds.Response{Exporter: map[string]string{"said": string(res.Metadata["word"])}}, nil
	}}
	client := dial(t, api)
	_, err := client.Build(t.Context(), bk.SolveOpt{}, "test", func(context.Context, gateway.Client) (*gateway.Result, error) {
		return nil, errors.New("no idea")
	}, nil)
	if err == nil || !strings.Contains(err.Error(), "no idea") {
		t.Fatal(err)
	}
}

// nothing is a gateway that knows nothing.
type nothing struct{ gateway.Client }

func (nothing) BuildOpts() gateway.BuildOpts { return gateway.BuildOpts{} }

// A bug in one call must not end the engine, and with it every build.
func TestBugInACall(t *testing.T) {
	client := dial(t, &fake{build: func(context.Context, builds.Request) (builds.Response, error) { panic("bug") }})
	if _, err := client.Solve(t.Context(), nil, bk.SolveOpt{Frontend: "dockerfile.v0"}, nil); err == nil || !strings.Contains(err.Error(), "bug") {
		t.Fatal(err)
	}
}

func TestUsageAndPrune(t *testing.T) {
	api := &fake{records: []builds.UsageRecord{{ID: "a", Size: 5, Kind: "regular"}, {ID: "b", Size: 7, Kind: "exec.cachemount", Mutable: true}}}
	client := dial(t, api)
	records, err := client.DiskUsage(t.Context(), bk.WithFilter([]string{"type==exec.cachemount,inuse", "description~=apt"}))
	if err != nil || len(records) != 2 || records[1].Size != 7 {
		t.Fatal(records, err)
	}
	if f := api.filters; f["type"][0] != "exec.cachemount" || f["inuse"][0] != "true" || f["description~"][0] != "apt" {
		t.Error(f)
	}
	gone := make(chan bk.UsageInfo, 4)
	if err := client.Prune(t.Context(), gone, bk.PruneAll); err != nil || len(gone) != 2 {
		t.Fatal(len(gone), err)
	}
	workers, err := client.ListWorkers(t.Context())
	if err != nil || len(workers) != 1 || workers[0].Platforms[0].Architecture != "amd64" {
		t.Fatal(workers, err)
	}
}
