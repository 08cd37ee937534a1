// Package volume is the room of named directories that outlive containers.
//
// It owns <data-root>/volumes. It does not know containers: users of a volume are opaque names. It promises that a volume
// with a user is never removed, that a volume's record is durable before Create returns, and that a folder without a record, or a record
// without a folder, found at start is repaired and said.
package volume

import (
	"context"
	"os"
	"time"
)

// Volume is one named directory.
type Volume struct {
	Name       string
	Driver     string // "local"
	Mountpoint string
	Created    time.Time
	Labels     map[string]string
	Options    map[string]string
	Anonymous  bool
}

// CreateOptions say what to create. An empty Name makes an anonymous volume with a random 64-digit name.
type CreateOptions struct {
	Name    string
	Driver  string
	Labels  map[string]string
	Options map[string]string
}

// Store is the contract of the room.
type Store interface {
	// Create makes a volume, or returns the one of that name when driver and options agree (errs.Conflict when they do not).
	Create(ctx context.Context, opts CreateOptions) (Volume, error)
	// Get returns a volume by name, errs.NotFound when there is none.
	Get(ctx context.Context, name string) (Volume, error)
	List(ctx context.Context) ([]Volume, error)
	// Remove deletes a volume; errs.Conflict while it has users, naming them ("volume is in use - [id, id]").
	Remove(ctx context.Context, name string, force bool) error
	// Acquire notes a user (a container's id) durably enough that the volume survives; Release forgets it. Both may be repeated.
	// The engine calls Acquire again for all its containers at start, so users need not be on disk.
	Acquire(ctx context.Context, name, user string) error
	Release(ctx context.Context, name, user string) error
	// Users lists who uses the volume.
	Users(name string) []string
	// Mount returns the directory to bind; local volumes with options (tmpfs, nfs, bind) are mounted on first use and unmounted
	// after the last Unmount. user is the same as in Acquire.
	Mount(ctx context.Context, name, user string) (string, error)
	Unmount(ctx context.Context, name, user string) error
	// Fill copies the tree below src (a directory inside an image's root, opened without leaving it) into the volume when the volume is new and
	// empty, with owners, modes, times, links and extended attributes, and gives the volume's root the mode and owner of src. It happens at
	// most once for a volume, also under concurrent callers; a volume that is half filled after a crash is filled anew.
	Fill(ctx context.Context, name string, src *os.File) error
	// Usage is the bytes of a volume's content, counted now; -1 if that cannot be told, as of a volume that is not mounted.
	Usage(ctx context.Context, name string) (int64, error)
	// LastUsage is Usage that never waits, also not for a file system that never answers: what was counted last and when (-1 and the zero time: not yet). An
	// old count is renewed in the background, one volume at most once at a time; counting tells that a newer one may be had in a moment.
	LastUsage(name string) (bytes int64, counted time.Time, counting bool)
}
