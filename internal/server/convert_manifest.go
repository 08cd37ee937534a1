package server

import (
	wire "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/image"
)

// imageManifests tells what an image's names lead to, for lists since 1.47 and inspection since 1.48.
func (s *Server) imageManifests(r *request, id digest.Digest) ([]wire.ManifestSummary, error) {
	list, err := s.Images.Manifests(r.Context(), id)
	if err != nil {
		return nil, err
	}
	var out []wire.ManifestSummary
	for _, m := range list {
		out = append(out, manifestLine(m))
	}
	return out, nil
}

// manifestLine converts one manifest. What Docker calls content are the blobs that are kept: of a layer whose blob can be made again from its files, none is.
func manifestLine(m images.Manifest) wire.ManifestSummary {
	out := wire.ManifestSummary{ID: m.Descriptor.Digest.String(), Descriptor: m.Descriptor, Available: m.Available, Kind: wire.ManifestKindUnknown}
	out.Size.Content, out.Size.Total = m.Content, m.Content
	switch m.Kind {
	case image.PartImage:
		out.Kind, out.ImageData = wire.ManifestKindImage, &wire.ImageProperties{Containers: orEmpty(m.Containers)}
		if m.Descriptor.Platform != nil {
			out.ImageData.Platform = *m.Descriptor.Platform
		}
		if m.Image != nil {
			out.ImageData.Size.Unpacked = m.Image.Size
			out.Size.Total += m.Image.Size
		}
	case image.PartAttestation:
		out.Kind, out.AttestationData = wire.ManifestKindAttestation, &wire.AttestationProperties{For: m.About}
	}
	return out
}
