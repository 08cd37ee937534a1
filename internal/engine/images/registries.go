package images

import (
	"context"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// Login implements [Registries].
func (s *Service) Login(ctx context.Context, server string, creds Credentials) (string, error) {
	return s.Registry.Login(ctx, server, creds)
}

// SearchOptions narrow a search down.
type SearchOptions struct {
	Limit       int // 0 is 25
	Filters     filter.Args
	Credentials Credentials
}

// Search implements [Registries].
func (s *Service) Search(ctx context.Context, term string, opts SearchOptions) ([]SearchResult, error) {
	if err := opts.Filters.Accept("is-automated", "is-official", "stars"); err != nil {
		return nil, err
	}
	automated, err := opts.Filters.Bool("is-automated", false)
	if err != nil {
		return nil, err
	}
	official, err := opts.Filters.Bool("is-official", false)
	if err != nil {
		return nil, err
	}
	stars, err := atLeast(opts.Filters["stars"])
	if err != nil {
		return nil, err
	}
	switch {
	case opts.Limit == 0:
		opts.Limit = 25
	case opts.Limit < 1 || opts.Limit > 100:
		return nil, errs.New(errs.Invalid, "limit %d is outside the range of [1, 100]", opts.Limit)
	}
	found, err := s.Registry.Search(ctx, term, opts.Limit, opts.Credentials)
	if err != nil {
		return nil, err
	}
	list := []SearchResult{}
	for _, r := range found {
		if opts.Filters.Has("is-automated") && automated != r.Automated || opts.Filters.Has("is-official") && official != r.Official || r.Stars < stars {
			continue
		}
		list = append(list, r)
	}
	return list[:min(len(list), opts.Limit)], nil
}

// Tags implements [Registries].
func (s *Service) Tags(ctx context.Context, name string, creds Credentials) ([]string, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	if ref.Tag != "" || ref.Digest != "" {
		return nil, errs.New(errs.Invalid, "%s: give the name of a repository, without tag or digest", name)
	}
	repo, err := s.Registry.Repository(ref, creds)
	if err != nil {
		return nil, err
	}
	return repo.Tags(ctx)
}

// Distribution implements [Registries].
func (s *Service) Distribution(ctx context.Context, name string, creds Credentials) (Remote, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return Remote{}, err
	}
	ref = ref.WithDefaultTag()
	repo, err := s.Registry.Repository(ref, creds)
	if err != nil {
		return Remote{}, err
	}
	doc, err := repo.Resolve(ctx, key(ref))
	if err != nil {
		return Remote{}, err
	}
	r := Remote{Descriptor: ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw))}}
	if doc.Index != nil {
		for _, d := range doc.Index.Manifests {
			if d.Platform != nil {
				r.Platforms = append(r.Platforms, *d.Platform)
			}
		}
		return r, nil
	}
	raw, err := repo.Blob(ctx, doc.Manifest.Config, manifest.MaxConfig)
	if err != nil {
		return r, err
	}
	cfg, err := image.ParseConfig(raw)
	if err != nil || cfg.OS == "" {
		return r, nil // an artifact: it is for no platform
	}
	r.Platforms = []ocispec.Platform{{OS: cfg.OS, Architecture: cfg.Architecture, Variant: cfg.Variant, OSVersion: cfg.OSVersion}}
	return r, nil
}

// atLeast is the largest of the numbers that `stars` was given.
func atLeast(values []string) (int, error) {
	least := 0
	for _, v := range values {
		n, err := strconv.Atoi(v)
		if err != nil {
			return 0, errs.New(errs.Invalid, "invalid filter 'stars=%s'", v)
		}
		least = max(least, n)
	}
	return least, nil
}
