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
	Driver     string // "local", or a plugin's name
	Mountpoint string // of a plugin's volume empty while nobody mounts it, if the plugin likes
	Scope      string // "global" if the volume is the same one on other hosts; else "local", or empty
	Created    time.Time
	Labels     map[string]string
	Options    map[string]string
	Anonymous  bool
	Status     map[string]any // what a plugin tells about it
	Made       bool           // told by Create: it was not there before
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
	// Get returns a volume by name, errs.NotFound when there is none; errs.Unavailable when its driver does not answer, with what is known of it without.
	Get(ctx context.Context, name string) (Volume, error)
	// List returns all volumes by name. What a driver that does not answer keeps from being listed is told by [List].
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

// Settler is a store that has to know when everybody who survived an engine has mounted again.
type Settler interface {
	// Settle is called once, after that: mounts of the last engine that nobody asked for again are taken back.
	Settle(ctx context.Context) error
}

// Warner is a store some of whose volumes are kept by others, who may be away.
type Warner interface {
	// ListWarned is List, and says what may be missing or old in it.
	ListWarned(ctx context.Context) (list []Volume, warnings []string, err error)
}

// LocalOf is the part of a store that keeps the volumes of this host, for those who want no others.
func LocalOf(s Store) Store {
	if part, ok := s.(interface{ Local() Store }); ok {
		return part.Local()
	}
	return s
}

// Known lists a store's volumes without asking anybody who may be away: those of this host, and those of others that were made or used here.
func Known(ctx context.Context, s Store) ([]Volume, error) {
	if k, ok := s.(interface {
		Known(ctx context.Context) ([]Volume, error)
	}); ok {
		return k.Known(ctx)
	}
	return s.List(ctx)
}

// List lists a store's volumes, with warnings where the store has any to tell.
func List(ctx context.Context, s Store) (list []Volume, warnings []string, err error) {
	if w, ok := s.(Warner); ok {
		return w.ListWarned(ctx)
	}
	list, err = s.List(ctx)
	return list, nil, err
}
