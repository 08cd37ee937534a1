// Package images is the engine's service for the noun image: the image room, plus who uses an image, plus events.
//
// It owns nothing on disk. It does not know HTTP. It promises that no image that a container stands on is removed behind its back.
package images

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
)

// Summary is an image in a list.
type Summary struct {
	image.Image
	Containers int // that stand on it
	Dangling   bool
}

// ListOptions choose images, as `images` does.
type ListOptions struct {
	All     bool        // also what only an index lists: the other platforms of a named image
	Filters filter.Args // dangling, label, before, since, until, reference
}

// Manifest is one manifest that the names of an image lead to.
type Manifest struct {
	image.Part
	Containers []string // that stand on it, by id
}

// SaveOptions choose what an archive has.
type SaveOptions struct {
	// Without are chains that the archive's reader has (Have): their topmost layers are left out.
	Without []snapshot.ChainID
	// Platforms: the images of these alone. Not together with Without.
	Platforms []manifest.Platform
}

// Pruned tells what a prune removed.
type Pruned struct {
	Removed []image.Removed
	Space   int64
}

// API is everything that doors may ask of this service: the verbs of the noun.
type API interface {
	List(ctx context.Context, opts ListOptions) ([]Summary, error)
	Inspect(ctx context.Context, ref string) (image.Image, error)
	// InspectFor finds the image of a platform below a name that leads to several; the zero platform is Inspect.
	InspectFor(ctx context.Context, ref string, p manifest.Platform) (image.Image, error)
	// Manifests lists what the names of an image lead to.
	Manifests(ctx context.Context, id digest.Digest) ([]Manifest, error)
	History(ctx context.Context, ref string) ([]image.HistoryEntry, error)
	Tag(ctx context.Context, ref, name string) error
	Remove(ctx context.Context, ref string, force, prune bool) ([]image.Removed, error)
	Prune(ctx context.Context, filters filter.Args) (Pruned, error)
	// RemoveFor removes the image of one platform of several.
	RemoveFor(ctx context.Context, ref string, p manifest.Platform, force bool) ([]image.Removed, error)
	// Load reads an archive; with platforms, only its images for those.
	Load(ctx context.Context, r io.Reader, wanted []manifest.Platform, progress image.Progress) ([]string, error)
	Save(ctx context.Context, refs []string, opts SaveOptions, w io.Writer) error
	// Have tells which of the chains are here.
	Have(ctx context.Context, chains []snapshot.ChainID) ([]snapshot.ChainID, error)
	Import(ctx context.Context, r io.Reader, opts image.ImportOptions) (image.Image, error)
}
