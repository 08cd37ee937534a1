package server_test

import (
	"net/http/httptest"
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

func TestConformanceAbsoluteLocation(t *testing.T) {
	_, ts := newRegistry(t, func(o *server.Options) { o.AbsoluteLocation = true })
	servertest.Conformance(t, servertest.Target{URL: ts.URL})
}
