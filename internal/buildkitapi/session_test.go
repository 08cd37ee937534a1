package buildkitapi

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	bk "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/upload/uploadprovider"

	"corten.dev/corten/internal/engine/builds"
)

// docker buildx build - < context.tar: buildx names its standard input http://buildkit-session/<id>, which was looked up as a host.
func TestUpload(t *testing.T) {
	var got []byte
	client := dial(t, &fake{build: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		u, err := url.Parse(req.FrontendAttrs["context"])
		if err != nil {
			return builds.Response{}, err
		}
		r, err := req.Session.Uploads.Upload(ctx, u.Path)
		if err != nil {
			return builds.Response{}, err
		}
		defer r.Close()
		got, err = io.ReadAll(r)
		return builds.Response{}, err
	}})
	up := uploadprovider.New()
	address := up.Add(io.NopCloser(strings.NewReader("an archive")))
	if _, err := client.Solve(t.Context(), nil, bk.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"context": address}, Session: []session.Attachable{up}}, nil); err != nil || string(got) != "an archive" {
		t.Errorf("%q %v", got, err)
	}
}

// A buildx that is gone, killed or not: its session was kept for ten to fifteen seconds, until BuildKit's health checks had failed twice, and each build left two errors in the engine's log.
func TestSessionEndsWithItsConnection(t *testing.T) {
	took := sessionWithoutClient(t)
	for range 3 { // who waits for health checks always needs ten seconds, a machine with much to do now and then
		if took > 8*time.Second {
			took = sessionWithoutClient(t)
		}
	}
	if took > 8*time.Second {
		t.Errorf("the session has outlived its client by %s", took)
	}
}

// sessionWithoutClient is how long a session lasts whose client goes.
func sessionWithoutClient(t *testing.T) time.Duration {
	t.Helper()
	door, err := New(Options{Builds: &fake{}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ended <- door.Session(w, r) }))
	defer srv.Close()
	defer func() {
		if err := door.Close(); err != nil {
			t.Error(err)
		}
	}()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST /session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX-Docker-Expose-Session-Uuid: one\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 30)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatal("over before it began", err)
	case <-time.After(100 * time.Millisecond):
	}
	gone := time.Now()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the session has outlived its client by a minute")
	}
	return time.Since(gone)
}

// docker buildx build --build-context base=oci-layout://…: the client has the layout as "oci:<id>", and was asked for "<id>".
func TestStoreID(t *testing.T) {
	for store, want := range map[string]string{"export": "export", "local:/a/cache": "local:/a/cache", "jew54qdjmpq4p1ejoyregdn1f": "oci:jew54qdjmpq4p1ejoyregdn1f"} {
		if got := storeID(store); got != want {
			t.Errorf("%s: %s, want %s", store, got, want)
		}
	}
}
