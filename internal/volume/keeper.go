package volume

import (
	"context"
	"io"
	"time"
)

// Snapshot is what a volume held at some moment. It is kept with the volume and goes with it.
type Snapshot struct {
	Name    string
	Created time.Time
}

// Quiesce holds those who write to a volume still, until resume is called. A nil one: nobody needs to be held.
type Quiesce func(ctx context.Context) (resume func(), err error)

// CopySource says what a copy of a volume is made from.
type CopySource struct {
	Name     string
	Snapshot string  // empty: what it holds now
	Quiesce  Quiesce // for what it holds now, while that is copied
}

// Keeper is what a store offers besides whose volumes are directories of this host. It is wide because each of these is a copy from or to what a volume holds, of which only the store knows
// where it is.
//
// Copies share blocks where the file system can (btrfs, xfs); they keep owners, modes, times, links, extended attributes and holes. A copy that is interrupted, by whatever, is not there
// afterwards; a volume or snapshot that is there is complete, and on disk.
type Keeper interface {
	// Snapshot notes what a volume holds under a name of its own; an empty one is made up of the time. errs.Conflict when the name is taken.
	Snapshot(ctx context.Context, src CopySource, name string) (Snapshot, error)
	// Snapshots lists them, oldest first.
	Snapshots(ctx context.Context, name string) ([]Snapshot, error)
	// RemoveSnapshot removes one; errs.NotFound.
	RemoveSnapshot(ctx context.Context, name, snapshot string) error
	// Restore gives a volume the content of one of its snapshots: all at once, or not at all. idle is asked when nobody can begin to use the volume any more; its error ends the call.
	Restore(ctx context.Context, name, snapshot string, idle func() error) error
	// Clone makes a volume with another's content, labels and size; with labels, those count instead. A volume that is a mount (nfs, tmpfs, …) becomes a directory of this host.
	Clone(ctx context.Context, src CopySource, opts CreateOptions) (Volume, error)
	// Rename gives a volume without users another name; its snapshots go along.
	Rename(ctx context.Context, name, to string) (Volume, error)
	// Export writes a volume as an uncompressed tar archive, whose first entry is the volume's own directory. Sockets, and overlayfs' own attributes, do not go into it. With src.Quiesce it writes a copy, so that nobody waits for the reader.
	Export(ctx context.Context, src CopySource, w io.Writer) error
	// Import makes a volume of such an archive, or of any other uncompressed one.
	Import(ctx context.Context, opts CreateOptions, r io.Reader) (Volume, error)
}

var _ Keeper = (*LocalStore)(nil)
