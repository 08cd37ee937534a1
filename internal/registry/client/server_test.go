package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/access"
	"corten.dev/corten/internal/registry/server/disk"
)

func own(t *testing.T, mode access.Mode) string {
	t.Helper()
	driver, err := disk.New(disk.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	opts := server.Options{Driver: driver}
	mux := http.NewServeMux()
	if mode != "" {
		guard := guarded(t, mode)
		opts.Guard = guard
		mux.Handle("/token", guard)
	}
	reg, err := server.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/", reg)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// guarded lets ann do everything below team/, and others nothing.
func guarded(t *testing.T, mode access.Mode) *access.Guard {
	t.Helper()
	file := t.TempDir() + "/htpasswd"
	if err := os.WriteFile(file, []byte("ann:"+client.Bcrypted+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	users, err := access.OpenHtpasswd(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := access.OpenKeys(access.KeysOptions{Folder: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	rights := access.NewRights([]access.Rule{{Users: []string{"ann"}, Repositories: []string{"**"}, Actions: []server.Action{"*"}}})
	guard, err := access.New(access.Options{Users: users, Rights: rights, Keys: keys, Mode: mode, Service: "own"})
	if err != nil {
		t.Fatal(err)
	}
	return guard
}

// The journey of an image with our own registry, open and with users.
func TestJourneyOwnRegistry(t *testing.T) {
	client.Journey(t, own(t, ""), client.Credentials{}, true)
}

// Our registry keeps what arrived before a line was cut: the rest is all that is sent again.
func TestPushOverABrokenLineOwnRegistry(t *testing.T) {
	for _, known := range []bool{true, false} {
		if n := client.Resumes(t, own(t, ""), known); n > 18<<20 {
			t.Errorf("size and digest known %v: %d bytes for 16 MiB", known, n)
		}
	}
}

func TestJourneyOwnRegistryWithUsers(t *testing.T) {
	for _, mode := range []access.Mode{access.Basic, access.Token} {
		t.Run(string(mode), func(t *testing.T) {
			host := own(t, mode)
			creds := client.Credentials{Username: "ann", Password: "pa55:word"}
			c := client.New(client.Options{})
			identity, err := c.Login(t.Context(), host, creds)
			if err != nil || (identity != "") != (mode == access.Token) {
				t.Fatalf("login: identity token %v, %v", identity != "", err)
			}
			client.Journey(t, host, creds, true)
			if _, err := c.Login(t.Context(), host, client.Credentials{Username: "ann", Password: "wrong"}); !errors.Is(err, errs.Unauthorized) {
				t.Errorf("login with a wrong password: %v", err)
			}
			ref, err := reference.Parse(host + "/team/app")
			if err != nil {
				t.Fatal(err)
			}
			for name, tc := range map[string]struct {
				creds client.Credentials
				good  bool
			}{"nobody": {client.Credentials{}, false}, "identity token": {client.Credentials{Username: "ann", IdentityToken: identity}, mode == access.Token}} {
				repo, err := c.Repository(ref, tc.creds)
				if err != nil {
					t.Fatal(err)
				}
				// The journey has deleted it: who may look hears so.
				if _, err = repo.Resolve(t.Context(), "1"); errors.Is(err, errs.NotFound) != tc.good || !tc.good && !errors.Is(err, errs.Unauthorized) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
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
