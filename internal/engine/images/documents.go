package images

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// Documents is what doors may do with manifests at a registry, without an image in the store.
type Documents interface {
	// Document is the manifest or index that a name leads to.
	Document(ctx context.Context, name string, creds Credentials) (manifest.Document, error)
	// RemoteBlob is a small blob (a config, an attestation) of the repository: name is repository@digest.
	RemoteBlob(ctx context.Context, name string, size int64, creds Credentials) ([]byte, error)
	// PutDocument stores a manifest or index under a name. What it lists is taken from the sources (repository@digest, of the same registry) where the target repository does
	// not have it yet.
	PutDocument(ctx context.Context, name string, doc manifest.Document, sources []string, creds Credentials) error
}

// Document implements [Documents].
func (s *Service) Document(ctx context.Context, name string, creds Credentials) (manifest.Document, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return manifest.Document{}, err
	}
	ref = ref.WithDefaultTag()
	repo, err := s.Registry.Repository(ref, creds)
	if err != nil {
		return manifest.Document{}, err
	}
	return repo.Resolve(ctx, key(ref))
}

// RemoteBlob implements [Documents].
func (s *Service) RemoteBlob(ctx context.Context, name string, size int64, creds Credentials) ([]byte, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	if ref.Digest == "" {
		return nil, errs.New(errs.Invalid, "%s: a blob is named by its digest", name)
	}
	d := ocispec.Descriptor{Digest: digest.Digest(ref.Digest), Size: size}
	if err := manifest.Check(d); err != nil {
		return nil, err
	}
	repo, err := s.Registry.Repository(ref, creds)
	if err != nil {
		return nil, err
	}
	return repo.Blob(ctx, d, manifest.MaxConfig)
}

// PutDocument implements [Documents].
func (s *Service) PutDocument(ctx context.Context, name string, doc manifest.Document, sources []string, creds Credentials) error {
	target, err := reference.Parse(name)
	if err != nil {
		return err
	}
	target = target.WithDefaultTag()
	repo, err := s.Registry.Repository(target, creds)
	if err != nil {
		return err
	}
	for _, source := range sources {
		from, err := reference.Parse(source)
		if err != nil {
			return err
		}
		if from.Digest == "" {
			return errs.New(errs.Invalid, "%s: a source is named by its digest", source)
		}
		if from.Domain != target.Domain {
			return errs.New(errs.Invalid, "cannot use source images from a different registry than the target image: %s != %s", from.Domain, target.Domain)
		}
		if from.Path == target.Path {
			continue
		}
		there, err := s.Registry.Repository(from, creds)
		if err != nil {
			return err
		}
		if err := copyManifest(ctx, there, repo, from, target); err != nil {
			return err
		}
	}
	return repo.PushManifest(ctx, key(target), doc)
}

// remoteRepository is what copying needs of a repository.
type remoteRepository interface {
	Resolve(ctx context.Context, tagOrDigest string) (manifest.Document, error)
	Head(ctx context.Context, tagOrDigest string) (ocispec.Descriptor, error)
	Has(ctx context.Context, d digest.Digest) (bool, error)
	Mount(ctx context.Context, d digest.Digest, from string) (bool, error)
	PushManifest(ctx context.Context, tagOrDigest string, doc manifest.Document) error
}

// copyManifest makes a manifest of another repository of the same registry part of this one. No bytes of layers travel.
func copyManifest(ctx context.Context, there, here remoteRepository, from, to reference.Ref) error {
	if _, err := here.Head(ctx, from.Digest); err == nil {
		return nil
	}
	doc, err := there.Resolve(ctx, from.Digest)
	if err != nil {
		return err
	}
	if doc.Manifest == nil {
		return errs.New(errs.Invalid, "%s is a manifest list", from.Familiar())
	}
	for _, d := range append([]ocispec.Descriptor{doc.Manifest.Config}, doc.Manifest.Layers...) {
		if manifest.IsForeign(d.MediaType) {
			continue
		}
		have, err := here.Has(ctx, d.Digest)
		if err == nil && !have {
			have, err = here.Mount(ctx, d.Digest, from.Path)
		}
		if err != nil {
			return err
		}
		if !have {
			return errs.New(errs.Unavailable, "the registry does not mount %s of %s into %s: push the image to %s first", d.Digest, from.FamiliarName(), to.FamiliarName(), to.FamiliarName())
		}
	}
	return here.PushManifest(ctx, from.Digest, doc)
}
