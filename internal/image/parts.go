package image

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// Part is one manifest that the names of an image lead to: an image for a platform, or something about one.
type Part struct {
	// Descriptor is as the index lists it; of an image, always with its platform.
	Descriptor ocispec.Descriptor
	Kind       PartKind
	// Image is the image, if it is here.
	Image *Image
	// About is the manifest that an attestation is about.
	About digest.Digest
	// Available: all of it is here.
	Available bool
	// Content is the bytes of its blobs that are kept: manifest, config, and compressed layers.
	Content int64
}

// PartKind says what a part is.
type PartKind int

// The kinds of parts.
const (
	PartUnknown PartKind = iota
	PartImage
	PartAttestation
)

// Parts lists the manifests of an image: those of the indexes that its names came as, in their order, or its own. An image that never had a manifest (it was made here and went nowhere) has none.
func (s *Images) Parts(ctx context.Context, id digest.Digest) ([]Part, error) {
	s.mu.RLock()
	e := s.byID[id]
	var names []reference.Ref
	if e != nil {
		names = namesOf(s.names, id)
	}
	refs := []string{}
	for _, name := range names {
		refs = append(refs, name.String())
	}
	if len(refs) == 0 {
		refs = append(refs, id.String()) // of an index without a name
	}
	s.mu.RUnlock()
	if e == nil {
		return nil, noImage(id.String())
	}
	var parts []Part
	seen := map[digest.Digest]bool{}
	for _, ref := range refs {
		index, err := s.index(ctx, ref)
		if err != nil {
			return nil, err
		}
		if index == nil || seen[index.Digest] {
			continue
		}
		seen[index.Digest] = true
		for _, d := range index.Index.Manifests {
			if !seen[d.Digest] {
				seen[d.Digest] = true
				parts = append(parts, s.part(ctx, d))
			}
		}
	}
	if len(parts) > 0 || len(e.manifests) == 0 {
		return parts, nil
	}
	doc, err := s.document(ctx, e.manifests[0])
	if err != nil {
		return nil, err
	}
	return []Part{s.part(ctx, ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw))})}, nil
}

// part looks at what is here of an entry of an index.
func (s *Images) part(ctx context.Context, d ocispec.Descriptor) Part {
	p := Part{Descriptor: d}
	kept := func(d ocispec.Descriptor) {
		if s.hasBlob(ctx, d) {
			p.Content += d.Size
		}
	}
	if e, doc := s.byManifest(ctx, d.Digest); e != nil {
		s.mu.RLock()
		img := s.describe(e)
		s.mu.RUnlock()
		p.Kind, p.Image, p.Available = PartImage, &img, true
		p.Descriptor.Platform = &ocispec.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant, OSVersion: img.Config.OSVersion}
		kept(d)
		kept(doc.Manifest.Config)
		for _, l := range doc.Manifest.Layers {
			kept(l)
		}
		return p
	}
	switch {
	case d.Annotations[manifest.AnnotationAbout] != "":
		p.Kind, p.About = PartAttestation, digest.Digest(d.Annotations[manifest.AnnotationAbout])
	case d.Platform != nil && d.Platform.OS != "unknown" && d.ArtifactType == "":
		p.Kind = PartImage // of a platform that was not pulled
	}
	doc := s.artifact(ctx, d)
	if doc == nil {
		return p
	}
	p.Available = true
	kept(d)
	if parts, _, err := artifactParts(*doc); err == nil { // artifact has looked
		for _, d := range parts {
			kept(d)
		}
	}
	return p
}
