// Package images is the engine's service for the noun image: the image room, plus who uses an image, plus events.
//
// It owns nothing on disk. It does not know HTTP. It promises that no image that a container stands on is removed behind its back.
package images

import (
	"context"
	"io"

	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
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

// Pruned tells what a prune removed.
type Pruned struct {
	Removed []image.Removed
	Space   int64
}

// API is everything that doors may ask of this service: the verbs of the noun.
type API interface {
	List(ctx context.Context, opts ListOptions) ([]Summary, error)
	Inspect(ctx context.Context, ref string) (image.Image, error)
	History(ctx context.Context, ref string) ([]image.HistoryEntry, error)
	Tag(ctx context.Context, ref, name string) error
	Remove(ctx context.Context, ref string, force, prune bool) ([]image.Removed, error)
	Prune(ctx context.Context, filters filter.Args) (Pruned, error)
	Load(ctx context.Context, r io.Reader, progress image.Progress) ([]string, error)
	// Save writes an archive, without the topmost layers of the chains that its reader has (Have).
	Save(ctx context.Context, refs []string, without []snapshot.ChainID, w io.Writer) error
	// Have tells which of the chains are here.
	Have(ctx context.Context, chains []snapshot.ChainID) ([]snapshot.ChainID, error)
	Import(ctx context.Context, r io.Reader, opts image.ImportOptions) (image.Image, error)
}
