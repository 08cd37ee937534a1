// Package base is the words between the sources of builds and the engine's images: what a source asks when a build stands on an image, and what it is told.
//
// It owns nothing. It promises nothing by itself: build/source asks, engine/images answers.
package base

import (
	"context"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// Image is an image that was looked up. None of its layers need be here.
type Image struct {
	// Digest is that of what the name leads to, an index or a manifest. Empty for an image that was made here and never went out.
	Digest digest.Digest
	// Manifest is the manifest of the platform; empty as Digest is, and for images of the store whose index is known only.
	Manifest digest.Digest
	// Config is the config blob, DiffIDs are the layers that it names.
	Config  []byte
	DiffIDs []digest.Digest
	// Fetch brings the lowest n layers here, those that are missing. keep is called when they are all here, while they are held against collection: what it does must hold them from
	// then on. Nil: the layers are here.
	Fetch func(ctx context.Context, n int, p build.Progress, keep func(ctx context.Context, chain snapshot.ChainID) error) error
}

// Chain is the chain of the lowest n layers.
func (img Image) Chain(n int) snapshot.ChainID {
	var chain snapshot.ChainID
	for _, diff := range img.DiffIDs[:n] {
		chain = snapshot.ChainOf(chain, diff)
	}
	return chain
}

// Blob is a part of an image's documents, as bytes.
type Blob struct {
	MediaType string
	Data      []byte
}

// Images is what sources need of the engine's images.
type Images interface {
	// Local finds an image in the store, for the platform; errs.NotFound.
	Local(ctx context.Context, ref reference.Ref, p manifest.Platform) (Image, error)
	// Remote asks the registry what a name means now.
	Remote(ctx context.Context, ref reference.Ref, p manifest.Platform, creds build.Credentials) (Image, error)
	// Layout finds an image in an OCI layout that the asker of the build has: name is a tag or digest of the store.
	Layout(ctx context.Context, blobs build.Blobs, store, name string, p manifest.Platform) (Image, error)
	// Attestations reads what stands beside the image of the platform in its index: the documents between the index and the attestation's statements of these predicate types (none: no
	// statements), by digest, in the order root, image manifest, attestation manifest. An image without any has fewer.
	Attestations(ctx context.Context, ref reference.Ref, p manifest.Platform, predicates []string, creds build.Credentials) (chain []digest.Digest, blobs map[digest.Digest]Blob, err error)
}
