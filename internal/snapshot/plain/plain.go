// Package plain is the snapshot driver for file systems that overlayfs cannot stand on: every layer and every writable tree is a full copy,
// which shares its blocks with the original where the file system can (btrfs, xfs).
//
// It owns trees/<id>/tree; the rest of the folder is the depot's (see that package for the drawing). It promises the same contract as the
// overlay driver with nothing but files and directories; it pays with time and, without block sharing, with space.
package plain

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/depot"
	"corten.dev/corten/internal/tarfs"
)

// Options describe a store.
type Options struct {
	Root   string // folder that the store owns; made when missing
	Logger *slog.Logger
}

// Store is the driver.
type Store struct {
	*depot.Depot

	mu   sync.Mutex     // guards what follows
	open map[string]int // mounts of trees; -1: one that becomes a layer
}

var _ snapshot.Store = (*Store)(nil)

// New opens the store.
func New(opts Options) (*Store, error) {
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d, err := depot.Open(opts.Root, log)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &Store{Depot: d, open: map[string]int{}}, nil
}

// Name is "plain".
func (s *Store) Name() string { return "plain" }

// Apply copies the parent and unpacks the layer over it.
func (s *Store) Apply(ctx context.Context, parent snapshot.ChainID, want digest.Digest, layer io.Reader) (snapshot.Layer, error) {
	return s.Depot.Apply(ctx, parent, want, layer, s.unpack)
}

// Stack does the same once the parent is there: a full copy cannot begin before.
func (s *Store) Stack(ctx context.Context, parent snapshot.ChainID, want digest.Digest, layer io.Reader, opts snapshot.Stacking) (snapshot.Layer, error) {
	return s.Depot.Stack(ctx, parent, want, layer, opts, s.unpack)
}

func (s *Store) unpack(ctx context.Context, job depot.Job) (tarfs.Stats, error) {
	if err := job.Ready(ctx); err != nil {
		return tarfs.Stats{}, err
	}
	if err := s.copyChain(ctx, job.Parent, job.Tree.Name()); err != nil {
		return tarfs.Stats{}, err
	}
	opts := job.Options
	opts.Whiteouts = tarfs.ApplyTo
	stats, err := tarfs.Extract(ctx, job.Tree, job.Layer, opts)
	stats.Based = true // the folder holds the parent's files, too
	return stats, err
}

// copyChain copies the whole tree of a chain into the directory dst. The topmost layer's folder holds all of it.
func (s *Store) copyChain(ctx context.Context, chain snapshot.ChainID, dst string) error {
	if chain == "" {
		return nil
	}
	dirs, err := s.Chain(chain)
	if err != nil {
		return err
	}
	from, err := os.Open(dirs[0])
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Open(dst)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := tarfs.CopyTree(ctx, from, to); err != nil {
		return fmt.Errorf("copy %s: %w", chain, err)
	}
	return nil
}

// Prepare copies the chain.
func (s *Store) Prepare(ctx context.Context, key string, chain snapshot.ChainID, opts snapshot.Options) error {
	if opts.Size > 0 {
		return errs.New(errs.NotImplemented, "prepare tree %s: trees with a size need the storage driver overlay", key)
	}
	return s.NewTree(key, chain, opts, func(dir string) error {
		if err := s.MakeRoot(dir+"/"+depot.TreeDir, chain); err != nil {
			return err
		}
		if err := s.copyChain(ctx, chain, dir+"/"+depot.TreeDir); err != nil || opts.Label == "" {
			return err
		}
		return relabel(dir+"/"+depot.TreeDir, opts.Label)
	})
}

// relabel gives all files of a tree that nobody else knows yet their SELinux context.
func relabel(dir, label string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = unix.Lsetxattr(path, "security.selinux", []byte(label), 0)
		}
		if err != nil {
			return fmt.Errorf("label %s as %s: %w", path, label, err)
		}
		return nil
	})
}

// Mount opens the tree's directory.
func (s *Store) Mount(_ context.Context, key string) (*snapshot.Mounted, error) {
	if !s.enter(key) {
		return nil, errs.New(errs.Conflict, "mount tree %s: it is being turned into a layer", key)
	}
	t, err := s.Get(key)
	var m *snapshot.Mounted
	if err == nil {
		m, err = s.mounted(t.Dir+"/"+depot.TreeDir, false)
	}
	if err != nil {
		s.leave(key)
		return nil, err
	}
	down := m.Close
	var once sync.Once
	m.Close = func() error {
		defer once.Do(func() { s.leave(key) })
		return down()
	}
	return m, nil
}

// enter and leave count the mounts of a tree.
func (s *Store) enter(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[key] < 0 {
		return false
	}
	s.open[key]++
	return true
}

func (s *Store) leave(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[key]--; s.open[key] <= 0 {
		delete(s.open, key)
	}
}

// Turn makes the tree's directory a layer's.
func (s *Store) Turn(ctx context.Context, key string, opts snapshot.TurnOptions) (snapshot.Layer, error) {
	s.mu.Lock()
	if s.open[key] != 0 {
		s.mu.Unlock()
		return snapshot.Layer{}, errs.New(errs.Conflict, "turn tree %s into a layer: it is mounted", key)
	}
	s.open[key] = -1
	s.mu.Unlock()
	defer s.leave(key)
	t, err := s.Get(key)
	if err != nil {
		return snapshot.Layer{}, err
	}
	return s.Depot.Turn(ctx, key, opts, depot.Turning{Files: depot.TreeDir,
		Write: func(ctx context.Context, w io.Writer, opts tarfs.WriteOptions) error { return s.write(ctx, t, w, opts) }})
}

// View opens the chain's directory, read-only where the process may make mounts.
func (s *Store) View(_ context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error) {
	dir, _ := s.Empty()
	if chain != "" {
		dirs, err := s.Chain(chain)
		if err != nil {
			return nil, err
		}
		dir = dirs[0]
	}
	return s.mounted(dir, true)
}

// mounted gives a directory out as a detached bind mount, so that it can be attached like an overlay; a process that may not
// mount gets the directory itself.
func (s *Store) mounted(dir string, readOnly bool) (*snapshot.Mounted, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	detached := err == nil
	if detached && readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil && err != unix.ENOSYS {
			unix.Close(fd)
			return nil, fmt.Errorf("make %s read-only: %w", dir, err)
		}
	}
	if err == unix.EPERM || err == unix.ENOSYS {
		fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	root := os.NewFile(uintptr(fd), dir)
	var once sync.Once
	m := &snapshot.Mounted{Root: root, Detached: detached, Close: func() (err error) {
		once.Do(func() { err = root.Close() })
		return err
	}}
	if !readOnly {
		m.Path = dir
	}
	return m, nil
}

// compare opens a tree as it was and as it is.
func (s *Store) compare(key string, fn func(before, after *os.File, t depot.Tree) error) error {
	t, err := s.Get(key)
	if err != nil {
		return err
	}
	return s.compareTree(t, fn)
}

func (s *Store) compareTree(t depot.Tree, fn func(before, after *os.File, t depot.Tree) error) error {
	dir, _ := s.Empty()
	if t.Chain != "" {
		dirs, err := s.Chain(t.Chain)
		if err != nil {
			return err
		}
		dir = dirs[0]
	}
	before, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer before.Close()
	after, err := os.Open(t.Dir + "/" + depot.TreeDir)
	if err != nil {
		return err
	}
	defer after.Close()
	return fn(before, after, t)
}

// Changes compares both trees.
func (s *Store) Changes(ctx context.Context, key string) (all []snapshot.Change, err error) {
	err = s.compare(key, func(before, after *os.File, _ depot.Tree) error {
		return tarfs.Compare(ctx, before, after, func(path string, how tarfs.Change) {
			all = append(all, snapshot.Change{Path: path, Kind: snapshot.ChangeKind(how)})
		})
	})
	return all, err
}

// Diff writes what differs as a layer.
func (s *Store) Diff(ctx context.Context, key string, w io.Writer) error {
	t, err := s.Get(key)
	if err != nil {
		return err
	}
	return s.write(ctx, t, w, tarfs.WriteOptions{})
}

func (s *Store) write(ctx context.Context, t depot.Tree, w io.Writer, opts tarfs.WriteOptions) error {
	return s.compareTree(t, func(before, after *os.File, t depot.Tree) (err error) {
		if opts.Root, err = s.RootChanged(after, t.Chain); err != nil {
			return err
		}
		return tarfs.WriteChanges(ctx, before, after, w, opts)
	})
}

// Commit makes a layer of what differs.
func (s *Store) Commit(ctx context.Context, key string, without ...string) (snapshot.Layer, error) {
	return s.Depot.Commit(ctx, key, s.unpack, func(ctx context.Context, t depot.Tree, w io.Writer) error {
		return s.write(ctx, t, w, tarfs.WriteOptions{Omit: without})
	})
}

// Usage counts what was added or changed, which is what a container's own size means to its user.
func (s *Store) Usage(ctx context.Context, key string) (sum int64, err error) {
	err = s.compare(key, func(before, after *os.File, _ depot.Tree) error {
		return tarfs.Compare(ctx, before, after, func(path string, how tarfs.Change) {
			var st unix.Stat_t
			if how == tarfs.Deleted || unix.Fstatat(int(after.Fd()), path[1:], &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				return
			}
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				sum += st.Size
			}
		})
	})
	return sum, err
}

// LastUsage is what Usage said the last time it was asked in the background.
func (s *Store) LastUsage(key string) (int64, time.Time) { return s.Depot.LastUsage(key, s.Usage) }
