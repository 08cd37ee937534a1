package images

import (
	"context"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

// platforms is the store's knowledge of platforms. A store that has none (those of tests) says so.
func (s *Service) platforms() image.Platforms {
	if p, ok := s.Store.(image.Platforms); ok {
		return p
	}
	return singlePlatform{s.Store}
}

// InspectFor implements [API].
func (s *Service) InspectFor(ctx context.Context, ref string, p manifest.Platform) (image.Image, error) {
	return s.platforms().GetFor(ctx, ref, p)
}

// Manifests implements [API].
func (s *Service) Manifests(ctx context.Context, id digest.Digest) ([]Manifest, error) {
	parts, err := s.platforms().Parts(ctx, id)
	if err != nil {
		return nil, err
	}
	list := make([]Manifest, len(parts))
	for i, p := range parts {
		list[i].Part = p
		if p.Image != nil {
			stopped, running := s.Containers.ImageUsers(p.Image.ID)
			list[i].Containers = slices.Concat(running, stopped)
		}
	}
	return list, nil
}

// singlePlatform is a store whose names lead to one image each.
type singlePlatform struct{ image.Store }

func (s singlePlatform) GetFor(ctx context.Context, ref string, p manifest.Platform) (image.Image, error) {
	img, err := s.Get(ctx, ref)
	if err == nil && p != (manifest.Platform{}) && p.Match(manifest.Platform{OS: img.Config.OS, Arch: img.Config.Architecture, Variant: img.Config.Variant}) == 0 {
		return img, errs.New(errs.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", ref, p)
	}
	return img, err
}

func (s singlePlatform) SaveFor(ctx context.Context, refs []string, wanted []manifest.Platform, w io.Writer) error {
	for _, ref := range refs {
		for _, p := range wanted {
			if _, err := s.GetFor(ctx, ref, p); err != nil {
				return err
			}
		}
	}
	return s.Save(ctx, refs, nil, w)
}

func (s singlePlatform) LoadFor(ctx context.Context, r io.Reader, _ []manifest.Platform, progress image.Progress) ([]string, error) {
	return s.Load(ctx, r, progress)
}

func (s singlePlatform) RemoveFor(ctx context.Context, ref string, p manifest.Platform, force bool, inUse func(digest.Digest) (stopped, running []string)) ([]image.Removed, error) {
	if _, err := s.GetFor(ctx, ref, p); err != nil {
		return nil, err
	}
	return s.Remove(ctx, ref, force, true, inUse)
}

func (s singlePlatform) Parts(context.Context, digest.Digest) ([]image.Part, error) { return nil, nil }
