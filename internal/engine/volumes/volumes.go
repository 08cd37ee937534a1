// Package volumes is the engine's service for the noun volume: the volume room, plus filters and events.
//
// It owns nothing on disk. It does not know HTTP. It promises that a volume that a container uses is never removed.
package volumes

import (
	"context"

	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/volume"
)

// Pruned tells what a prune removed.
type Pruned struct {
	Deleted []string
	Space   int64
}

// API is everything that doors may ask of this service: the verbs of the noun.
type API interface {
	Create(ctx context.Context, opts volume.CreateOptions) (volume.Volume, error)
	// List takes the filters name, label, driver and dangling. Warnings tell which driver did not answer.
	List(ctx context.Context, filters filter.Args) (list []volume.Volume, warnings []string, err error)
	Inspect(ctx context.Context, name string) (volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Prune(ctx context.Context, filters filter.Args) (Pruned, error) // anonymous ones; all with all=true
	// Users is how many containers use a volume.
	Users(name string) int
}
