// Package snapshot is the room of file trees: chains of read-only layers and the writable trees on top of them.
//
// It owns <data-root>/snapshots. It knows tar streams and directories; it does not know manifests, images, tags or containers.
// It promises: a layer is durable before Apply, Stack, Commit or Turn returns, unless it was asked to be relaxed, and is never changed afterwards; a failed or killed call leaves
// nothing that a later call or the start-up check does not remove; a mount is handed out as a detached mount descriptor, so that
// nothing appears in the host's mount table and nothing is left there by a crash.
//
// Life of a tree:
//
//	Apply(parent, tar) ─▶ layer (by chain id) ─▶ Prepare(key, layer) ─▶ writable ─▶ Mount(key) … ─▶ Diff/Changes/Usage ─▶ Remove(key)
//	                                                                      ├─▶ Commit(key) ─▶ layer, and the tree stays
//	                                                                      └─▶ Turn(key) ─▶ layer, made of the tree itself
//
// # Relaxed layers
//
// A build makes layer after layer, and a flush for each would be most of its time. A relaxed layer can be used at once, outlives any process, and is flushed with others by
// Flush, by any durable Apply, Stack, Commit or Turn, or never. If the host goes down before that, the layer is not there afterwards, nor is one that stands on it: never a
// part of it. Who names layers in a durable record calls Flush first.
//
// # Holds
//
// A hold is a name that keeps a chain of layers from being removed, over restarts; it costs some bytes. It becomes durable like a relaxed layer does. Names are the owners'
// business: "<room>/<what>".
package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
)

// ChainID names a chain of layers (image-spec, "Layer ChainID"). The empty ChainID is the empty tree.
type ChainID = digest.Digest

// Layer describes one committed layer.
type Layer struct {
	Chain  ChainID
	Parent ChainID
	DiffID digest.Digest // of the uncompressed tar
	Size   int64         // bytes of the unpacked diff
	// TarSize is the length of the uncompressed tar, which LayerTar writes.
	TarSize int64
	// Files names the files on disk: layers of equal Files share them (one diff on several parents), so that their Size counts once.
	Files string
}

// Stacking says how Stack takes a layer.
type Stacking struct {
	// Ready waits until the parent is there, or tells why it never will be. It may be called more than once. Nil: the parent is there.
	Ready func(ctx context.Context) error
	// MaxBytes and MaxEntries bound what the layer may unpack to; 0 is no bound. Beyond it nothing is kept and the error is errs.Invalid.
	MaxBytes, MaxEntries int64
	// Relaxed: see the package's words.
	Relaxed bool
	// Hold, when set, is the name of a hold on the layer that is there as soon as the layer is.
	Hold string
}

// TurnOptions say how Turn makes its layer.
type TurnOptions struct {
	// Relaxed: see the package's words.
	Relaxed bool
	// Empty asks for an empty layer when nothing was changed. Without it the answer is the tree's own chain then.
	Empty bool
	// Hold, when set, is the name of a hold on the layer that is there as soon as the layer is.
	Hold string
}

// ChainOf is the chain id of a diff on top of parent.
func ChainOf(parent ChainID, diff digest.Digest) ChainID {
	if parent == "" {
		return diff
	}
	return digest.FromString(string(parent) + " " + string(diff))
}

// ErrKept is the reason of a Conflict: a hold keeps the layer, or a layer that stands on it.
var ErrKept = errors.New("a hold or another layer keeps it")

// ChangeKind is how a path differs from the layer below; the numbers are those of Docker's API.
type ChangeKind int

const (
	Modified ChangeKind = 0
	Added    ChangeKind = 1
	Deleted  ChangeKind = 2
)

// Change is one differing path, absolute within the tree.
type Change struct {
	Path string
	Kind ChangeKind
}

// StepSkeleton is the skeleton of roots in which a build's steps run.
const StepSkeleton = "step"

// Options change what Prepare makes.
type Options struct {
	// Labels are kept with the tree and given back by Walk; the engine writes whose tree it is.
	Labels map[string]string
	// Durable asks for the new tree's folders to be flushed. Trees of containers that vanish with their process need not be, and what is
	// written into them may never reach the disk, whatever the container's programs ask for.
	Durable bool
	// Bare: the tree shows its layers and what is written into it, and nothing else. Without it a driver may show, below all layers, what every container gets mounted over; that is
	// right for roots of containers and of a build's steps only.
	Bare bool
	// Skeleton names whose root it is, for a tree that is not bare: "" is a container's, [StepSkeleton] that of a step, which finds less there.
	Skeleton string
	// Shared asks for a tree that several may have mounted, each attached somewhere else, at a time. Without it, on kernels before 6.15, mounts beside the first are good for looking inside only
	// (Mounted.Detached is false).
	Shared bool
	// Size bounds how many bytes the tree's own files may take: who writes more gets ENOSPC or EDQUOT. 0: no bound but the disk's. errs.NotImplemented where it cannot be kept.
	// Such a tree is for a container: Turn refuses it.
	Size int64
	// Label is the SELinux context in which all files of the tree appear while it is mounted; empty is what the driver gives to all. A driver without mounts writes it to the files.
	Label string
}

// Mounted is a tree that can be used now. Close releases it; the tree itself stays.
type Mounted struct {
	// Root is a descriptor of the mount (O_PATH from fsmount or open_tree, or a plain directory): it works with move_mount(2)
	// when Detached is true, with openat2(2) in any case.
	Root *os.File
	// Detached tells that Root is a mount of its own that belongs to no mount namespace yet.
	Detached bool
	// Path is where the tree can be found by name on the host, if it can (driver plain); else empty.
	Path string
	// Close takes the mount down. Safe to call twice.
	Close func() error
}

// Place is where a writable tree lies on the host by name: for people and tools that look at it there, not for the engine. Lower is topmost first. Upper and Work are empty
// when they lie in a file system of the tree's own, which the host sees nowhere.
type Place struct {
	Lower       []string
	Upper, Work string
}

// Locator is what a driver offers besides, if its trees are made of directories that can be told apart (overlay).
type Locator interface {
	// Locate tells where a writable tree lies; errs.NotFound when it is not there.
	Locate(key string) (Place, error)
	// LocateLayers tells where the layers of a chain lie, topmost first.
	LocateLayers(chain ChainID) ([]string, error)
}

// Insider is what a driver offers besides, if the changes of a writable tree are a directory of their own (overlay).
type Insider interface {
	// Inside opens the directory of a tree's own changes, for who fills it alone: what is put there, below a directory that was made in the mounted tree and in which nothing was
	// looked up yet, is in the tree, and no overlay stands between. Marks of deletions are not made that way. errs.NotFound.
	Inside(key string) (*os.File, error)
}

// Store is the contract of every driver (overlay, plain). All methods may be called concurrently, and take no lock that is held over
// file system work of another key. It is wide because layers, trees and holds count on each other: a part of it alone could not say what may be removed.
type Store interface {
	// Name is the driver's name as `info` shows it: "overlay" or "plain".
	Name() string
	// Apply unpacks an uncompressed layer tar on top of parent and commits it. The bytes are digested on the way; if want is not
	// empty and differs, nothing is kept and the error is errs.Invalid. A chain that is there already is not unpacked again (the
	// reader is still drained and verified). Concurrent calls for one chain do the work once.
	Apply(ctx context.Context, parent ChainID, want digest.Digest, layer io.Reader) (Layer, error)
	// Stack is Apply for a layer whose parent may still be under way: the layer is unpacked side by side with its parent, and is there
	// when both are; opts.Ready is asked when the parent is needed, at the latest then. want must be given. A layer that is there, that another call is unpacking,
	// or whose diff is known from another parent costs no second unpacking; layer is left unread then. A nil layer asks for just that:
	// errs.NotFound when the diff is not known.
	Stack(ctx context.Context, parent ChainID, want digest.Digest, layer io.Reader, opts Stacking) (Layer, error)
	// ByDiff returns a layer with this diff id on any parent; errs.NotFound.
	ByDiff(ctx context.Context, diff digest.Digest) (Layer, error)
	// Stat returns a layer; errs.NotFound when it is not there.
	Stat(ctx context.Context, chain ChainID) (Layer, error)
	// Layers lists all committed layers.
	Layers(ctx context.Context) ([]Layer, error)
	// RemoveLayer removes a layer; errs.Conflict while another layer or a writable tree stands on it, or a hold. When it is only holds and layers, the error is ErrKept, too:
	// whoever ends those removes it then.
	RemoveLayer(ctx context.Context, chain ChainID) error
	// LayerTar writes the layer's uncompressed tar, byte for byte the one that was applied or committed.
	LayerTar(ctx context.Context, chain ChainID, w io.Writer) error

	// Prepare makes a writable tree named key on chain. errs.Conflict when key exists.
	Prepare(ctx context.Context, key string, chain ChainID, opts Options) error
	// Mount makes the writable tree usable. Several mounts of one key at a time share one underlying mount, as long as one of them
	// is open: keep it open while the tree is in use. A new process cannot know of mounts that live on inside of containers:
	// it looks into those by /proc/<pid>/root, and calls Mount when they are gone.
	Mount(ctx context.Context, key string) (*Mounted, error)
	// View mounts a chain read-only.
	View(ctx context.Context, chain ChainID) (*Mounted, error)
	// Changes lists how the writable tree differs from its chain, sorted by path.
	Changes(ctx context.Context, key string) ([]Change, error)
	// Diff writes the writable tree's changes as a layer tar (whiteouts as in image-spec layer.md), stable for equal content.
	Diff(ctx context.Context, key string, w io.Writer) error
	// Commit turns the changes of key into a layer on its chain; key stays and is unchanged. What lies at the paths of without, which are absolute, is left out with all below it.
	Commit(ctx context.Context, key string, without ...string) (Layer, error)
	// Turn makes the writable tree itself a layer on its chain: its files are renamed, not copied, and the tree key is gone. Sockets in it are removed, as no layer has any.
	// The bytes of the layer's tar are those that Diff would have written. A tree without changes gives the layer of its own chain (the zero Layer for the empty
	// chain), unless opts.Empty. errs.Conflict while a mount of the tree is open, errs.NotImplemented for one with a size. On an error the tree is there as before.
	Turn(ctx context.Context, key string, opts TurnOptions) (Layer, error)
	// Flush makes all relaxed layers and all holds durable; quick when there is nothing to flush.
	Flush(ctx context.Context) error
	// Hold keeps a chain from being removed until Release of that name. A name that holds another chain moves. errs.NotFound when the chain is not there. The
	// empty chain needs no hold and gets none.
	Hold(ctx context.Context, name string, chain ChainID) error
	// Release ends a hold; one that is not there is no error. The layers stay until RemoveLayer.
	Release(ctx context.Context, name string) error
	// Holds lists the holds in the order of their names.
	Holds(ctx context.Context, fn func(name string, chain ChainID) error) error
	// Usage is the bytes of the writable tree's own content.
	Usage(ctx context.Context, key string) (int64, error)
	// LastUsage is Usage that never waits: what was counted last and when (the zero time: not yet). A count that is more than a minute old is renewed in the
	// background.
	LastUsage(key string) (bytes int64, counted time.Time)
	// Remove removes a writable tree; removing one that is not there is no error. The bulk of the work may go on in the background.
	Remove(ctx context.Context, key string) error
	// Walk lists the writable trees with their labels.
	Walk(ctx context.Context, fn func(key string, labels map[string]string) error) error
}
