package client_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
)

// The journey of an image with our own registry.
func TestJourneyOwnRegistry(t *testing.T) {
	driver, err := disk.New(disk.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	reg, err := server.New(server.Options{Driver: driver})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(reg)
	defer srv.Close()
	client.Journey(t, strings.TrimPrefix(srv.URL, "http://"), client.Credentials{}, true)
}
