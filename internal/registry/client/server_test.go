package client_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
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

func ExampleNew() {
	driver, err := disk.New(disk.Options{Root: os.TempDir() + "/registry-example"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(os.TempDir() + "/registry-example")
	reg, err := server.New(server.Options{Driver: driver})
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := httptest.NewServer(reg)
	defer srv.Close()

	ref, err := reference.Parse(strings.TrimPrefix(srv.URL, "http://") + "/team/app:1")
	if err != nil {
		fmt.Println(err)
		return
	}
	repo, err := client.New(client.Options{UserAgent: "example"}).Repository(ref, client.Credentials{})
	if err != nil {
		fmt.Println(err)
		return
	}
	doc, err := manifest.Parse("", []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(repo.PushManifest(context.Background(), ref.Tag, doc))
	tags, err := repo.Tags(context.Background())
	fmt.Println(tags, err)
	back, err := repo.Resolve(context.Background(), "1")
	fmt.Println(back.Digest == doc.Digest, err)
	// Output:
	// <nil>
	// [1] <nil>
	// true <nil>
}
