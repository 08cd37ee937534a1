package images

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/travel"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// CachePlaces reaches the places of build caches by the machinery of pulls and pushes.
type CachePlaces struct{ s *Service }

// NewCachePlaces makes it over the service.
func NewCachePlaces(s *Service) *CachePlaces { return &CachePlaces{s: s} }

var _ travel.Places = (*CachePlaces)(nil)

// Registry implements travel.Places.
func (c *CachePlaces) Registry(ctx context.Context, ref reference.Ref, session *build.Session) (travel.Source, travel.Target, error) {
	var asker build.Credentials
	if session != nil {
		asker = session.Credentials
	}
	creds, err := credentialsOf(ctx, asker, ref.Domain)
	if err != nil {
		return nil, nil, err
	}
	repo, err := c.s.Registry.Repository(ref, creds)
	if err != nil {
		return nil, nil, err
	}
	source := &cacheSource{&pulling{Service: c.s, name: ref.Name(), platform: c.s.Platform, repo: repo}}
	return source, &cacheTarget{builtRepository{pushing{Service: c.s, repo: repo}, ref}}, nil
}

// Layout implements travel.Places.
func (c *CachePlaces) Layout(blobs build.Blobs, store string) travel.Source {
	return &cacheSource{&pulling{Service: c.s, name: "oci-layout/" + store, platform: c.s.Platform, repo: &layout{blobs: blobs, store: store}}}
}

// cacheSource is a repository or a folder that a cache is read from.
type cacheSource struct{ p *pulling }

// Resolve implements travel.Source.
func (c *cacheSource) Resolve(ctx context.Context, name string) (manifest.Document, error) {
	return c.p.repo.Resolve(ctx, name)
}

// Blob implements travel.Source.
func (c *cacheSource) Blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	return c.p.repo.Blob(ctx, d, limit)
}

// Fetch implements travel.Source.
func (c *cacheSource) Fetch(ctx context.Context, doc manifest.Document, config []byte, progress build.Progress, keep func(context.Context) error) error {
	once := *c.p // a call of its own has reports of its own
	return once.fetch(ctx, doc, config, len(doc.Manifest.Layers), progress, keep)
}

// cacheTarget is a repository that a cache is written to.
type cacheTarget struct{ builtRepository }

// Has implements travel.Target.
func (c *cacheTarget) Has(ctx context.Context, d digest.Digest) (bool, error) {
	return c.repo.Has(ctx, d)
}

// PushManifest implements travel.Target. A cache is no image that anybody waits for: there is no event.
func (c *cacheTarget) PushManifest(ctx context.Context, tagOrDigest string, doc manifest.Document) error {
	return c.repo.PushManifest(ctx, tagOrDigest, doc)
}
