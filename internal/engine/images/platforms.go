package images

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

// InspectFor implements [API].
func (s *Service) InspectFor(ctx context.Context, ref string, p manifest.Platform) (image.Image, error) {
	return s.Store.GetFor(ctx, ref, p)
}

// Manifests implements [API].
func (s *Service) Manifests(ctx context.Context, id digest.Digest) ([]Manifest, error) {
	parts, err := s.Store.Parts(ctx, id)
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
