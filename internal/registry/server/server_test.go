package server_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
	"corten.dev/corten/internal/registry/server/servertest"
)

// newRegistry is a registry on a folder of its own, with an address.
func newRegistry(t testing.TB, change func(*server.Options)) (*server.Registry, *httptest.Server) {
	t.Helper()
	return registryOn(t, t.TempDir(), change)
}

func registryOn(t testing.TB, root string, change func(*server.Options)) (*server.Registry, *httptest.Server) {
	t.Helper()
	d, err := disk.New(disk.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	opts := server.Options{Driver: d}
	if change != nil {
		change(&opts)
	}
	r, err := server.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(r)
	t.Cleanup(func() {
		ts.Close()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, ts
}

func TestConformance(t *testing.T) {
	_, ts := newRegistry(t, nil)
	servertest.Conformance(t, servertest.Target{URL: ts.URL})
}

// HTTP/2 has other bodies, other deadlines and no sendfile.
func TestConformanceHTTP2(t *testing.T) {
	r, _ := newRegistry(t, nil)
	ts := httptest.NewUnstartedServer(r)
	ts.EnableHTTP2 = true
	ts.StartTLS()
	t.Cleanup(ts.Close)
	resp, err := ts.Client().Get(ts.URL + "/v2/")
	ok(t, err)
	ok(t, resp.Body.Close())
	if resp.ProtoMajor != 2 {
		t.Fatalf("the protocol is %s", resp.Proto)
	}
	servertest.Conformance(t, servertest.Target{URL: ts.URL, Client: ts.Client()})
}

// Old clients cannot use a Location without a host.
func TestAbsoluteLocation(t *testing.T) {
	_, ts := newRegistry(t, func(o *server.Options) { o.AbsoluteLocation = true })
	for header, want := range map[string]string{"": ts.URL, "https": strings.Replace(ts.URL, "http://", "https://", 1), "gopher": ts.URL} {
		req, err := http.NewRequest("POST", ts.URL+"/v2/a/b/blobs/uploads/", nil)
		ok(t, err)
		req.Header.Set("X-Forwarded-Proto", header)
		resp, err := ts.Client().Do(req)
		ok(t, err)
		ok(t, resp.Body.Close())
		if loc := resp.Header.Get("Location"); !strings.HasPrefix(loc, want+"/v2/a/b/blobs/uploads/") {
			t.Errorf("with X-Forwarded-Proto %q, Location is %q", header, loc)
		}
	}
}
