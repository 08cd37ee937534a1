// Package volumes is the engine's service for the noun volume: the volume room, plus filters and events.
//
// It owns nothing on disk. It does not know HTTP. It promises that a volume that a container uses is never removed.
package volumes

import (
	"context"
	"io"

	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/volume"
)

// Pruned tells what a prune removed.
type Pruned struct {
	Deleted []string
	Space   int64
}

// Source says what a copy is made of.
type Source struct {
	Volume   string
	Snapshot string // empty: what it holds now
	Live     bool   // containers that write to it are not held while it is copied
}

// API is everything that doors may ask of this service: the verbs of the noun.
type API interface {
	Create(ctx context.Context, opts volume.CreateOptions) (volume.Volume, error)
	// List takes the filters name, label, driver and dangling. Warnings tell which driver did not answer.
	List(ctx context.Context, filters filter.Args) (list []volume.Volume, warnings []string, err error)
	// Known is List for those who look often, and want no plugin to be asked.
	Known(ctx context.Context) ([]volume.Volume, error)
	Inspect(ctx context.Context, name string) (volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Prune(ctx context.Context, filters filter.Args) (Pruned, error) // anonymous ones; all with all=true
	// Users is how many containers use a volume.
	Users(name string) int

	// The verbs that copy are for local volumes; see [volume.Keeper]. Containers that run with the volume are frozen while it is copied, unless its own file system can be.

	Snapshot(ctx context.Context, from Source, name string) (volume.Snapshot, error)
	Snapshots(ctx context.Context, name string) ([]volume.Snapshot, error)
	RemoveSnapshot(ctx context.Context, name, snapshot string) error
	// Restore gives a volume that no running container has the content of a snapshot.
	Restore(ctx context.Context, name, snapshot string) error
	Clone(ctx context.Context, from Source, opts volume.CreateOptions) (volume.Volume, error)
	Rename(ctx context.Context, name, to string) (volume.Volume, error)
	Export(ctx context.Context, from Source, w io.Writer) error
	Import(ctx context.Context, opts volume.CreateOptions, r io.Reader) (volume.Volume, error)
}
