package server_test

import (
	"context"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/errs"
)

type fakeRegistries struct{ e *engine }

var _ images.Registries = fakeRegistries{}

func (f fakeRegistries) Pull(_ context.Context, o images.PullOptions, report images.Reporter) error {
	if err := f.e.note("pull", o); err != nil {
		return err
	}
	if strings.HasSuffix(o.Ref, "nosuch:latest") {
		return errs.New(errs.NotFound, "pull access denied for nosuch, repository does not exist or may require 'docker login': denied: requested access to the resource is denied")
	}
	report(images.Report{ID: "latest", Status: "Pulling from library/busybox"})
	report(images.Report{ID: "0123456789ab", Status: "Pulling fs layer", Layer: true})
	report(images.Report{ID: "0123456789ab", Status: "Downloading", Layer: true, Current: 1 << 20, Total: 2 << 20})
	if strings.HasSuffix(o.Ref, "broken:latest") {
		return errs.New(errs.Unavailable, "the registry went away")
	}
	report(images.Report{ID: "0123456789ab", Status: "Pull complete", Layer: true})
	report(images.Report{Status: "Digest: " + diffA.String()})
	report(images.Report{Status: "Status: Downloaded newer image for " + strings.TrimPrefix(o.Ref, "docker.io/library/")})
	return nil
}

func (f fakeRegistries) Push(_ context.Context, o images.PushOptions, report images.Reporter) error {
	report(images.Report{Status: "The push refers to repository [docker.io/library/a]"})
	report(images.Report{Pushed: &images.PushedTag{Tag: "1", Digest: diffA.String(), Size: 527}})
	return f.e.note("push", o)
}

func (f fakeRegistries) Login(_ context.Context, server string, creds images.Credentials) (string, error) {
	if creds.Password != "secret" {
		return "", errs.New(errs.Unauthorized, "unauthorized: incorrect username or password")
	}
	return "token", f.e.note("login", []any{server, creds})
}

func (f fakeRegistries) Search(_ context.Context, term string, o images.SearchOptions) ([]images.SearchResult, error) {
	return []images.SearchResult{{Name: term, Description: "tiny", Stars: 3, Official: true}}, f.e.note("search", o)
}

func (f fakeRegistries) Distribution(_ context.Context, ref string, creds images.Credentials) (images.Remote, error) {
	return images.Remote{Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: diffA, Size: 7}, Platforms: []ocispec.Platform{{OS: "linux", Architecture: "arm64"}}}, f.e.note("distribution", ref)
}

func (f fakeRegistries) Tags(_ context.Context, repo string, creds images.Credentials) ([]string, error) {
	return []string{"1", "latest"}, f.e.note("tags", []any{repo, creds})
}
