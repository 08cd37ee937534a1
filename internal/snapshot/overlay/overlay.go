// Package overlay is the snapshot driver on overlayfs, the default one. Each layer is a directory with its own changes only; a
// writable tree is an upper and a work directory.
//
// It owns trees/<id>/upper and trees/<id>/work (of a tree with a size, more: see sized.go); the rest of the folder is the depot's (see that package for the drawing). It promises
// that a mount is made detached (fsopen, fsconfig, fsmount): it shows in no mount table until somebody attaches it, and
// the kernel takes it down when the last descriptor is closed, however the process ends.
//
// On kernels whose mount calls cannot carry the options (long chains before 6.8), the mount is made by mount(2) in a mount
// namespace of its own, that vanishes with its thread, and cloned out of it by open_tree(2).
package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/depot"
	"corten.dev/corten/internal/tarfs"
)

// Options describe a store.
type Options struct {
	Root   string // folder that the store owns; made when missing
	Logger *slog.Logger
	// Skeletons list, by the name that trees ask for, what every mounted writable tree that is not bare has at least, although no layer holds it: empty directories (names that end in a
	// slash), empty files, and links ("name -> target"), parents first. Each is one directory below all layers, shared by all trees, so that what is only there to be mounted over need not be made and deleted in
	// each of them. Layers and changes are not affected.
	Skeletons map[string][]string
	// Label is the SELinux context of the files in mounts of trees that have none of their own, and of views. Empty: the files' own.
	Label string
}

// Store is the driver.
type Store struct {
	*depot.Depot
	log *slog.Logger
	// userXattr: not the host's root, so marks are user.overlay.* and the mount gets userxattr.
	userXattr bool
	// clones: the kernel clones mounts that are attached nowhere (since 6.15).
	clones    bool
	skeletons map[string]string // directories by name
	label     string            // see Options

	mu      sync.Mutex // guards the maps
	live    map[string]*shared
	closing map[string]chan struct{} // mounts that are being taken down
	devices map[string]*device       // of trees with a size
	down    sync.WaitGroup
}

var (
	_ snapshot.Store   = (*Store)(nil)
	_ snapshot.Locator = (*Store)(nil)
	_ snapshot.Insider = (*Store)(nil)
)

// New opens the store. It does not try whether overlayfs works there: see Supported.
func New(opts Options) (*Store, error) {
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d, err := depot.Open(opts.Root, log)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	s := &Store{Depot: d, log: log, userXattr: !initialUserNS(), clones: !kernelBefore(6, 15), label: opts.Label, live: map[string]*shared{}, closing: map[string]chan struct{}{}, devices: map[string]*device{}, skeletons: map[string]string{}}
	for name, files := range opts.Skeletons {
		dir := opts.Root + "/skeleton"
		if name != "" {
			dir += "-" + name
		}
		if err := makeSkeleton(dir, files); err != nil {
			return nil, fmt.Errorf("open snapshots: skeleton: %w", err)
		}
		s.skeletons[name] = dir
	}
	return s, nil
}

// makeSkeleton makes what is missing. Nothing in it is ever changed, so nothing needs to be flushed: what a crash takes is made again.
func makeSkeleton(dir string, names []string) error {
	for _, name := range append([]string{"/"}, names...) {
		path := filepath.Join(dir, name)
		var err error
		link, target, isLink := strings.Cut(path, " -> ")
		switch {
		case isLink:
			err = os.Symlink(target, link)
		case strings.HasSuffix(name, "/"):
			err = os.Mkdir(path, 0o755)
		default:
			var f *os.File
			if f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err == nil {
				err = f.Close()
			}
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// Close waits for what goes on in the background.
func (s *Store) Close() error {
	s.down.Wait()
	return s.Depot.Close()
}

// Name is "overlay".
func (s *Store) Name() string { return "overlay" }

func (s *Store) opaque() string {
	if s.userXattr {
		return tarfs.UserOpaque
	}
	return tarfs.TrustedOpaque
}

// Apply unpacks a layer into a directory of its own.
func (s *Store) Apply(ctx context.Context, parent snapshot.ChainID, want digest.Digest, layer io.Reader) (snapshot.Layer, error) {
	return s.Depot.Apply(ctx, parent, want, layer, s.unpack)
}

// Stack does the same while the parent may be under way: a layer's own directory needs it only where the tar leaves something unsaid.
func (s *Store) Stack(ctx context.Context, parent snapshot.ChainID, want digest.Digest, layer io.Reader, opts snapshot.Stacking) (snapshot.Layer, error) {
	return s.Depot.Stack(ctx, parent, want, layer, opts, s.unpack)
}

func (s *Store) unpack(ctx context.Context, job depot.Job) (tarfs.Stats, error) {
	opts := job.Options
	opts.Whiteouts, opts.OpaqueXattr = tarfs.Convert, s.opaque()
	var base *snapshot.Mounted
	if job.Parent != "" {
		opts.Base = func() (*os.File, error) {
			if err := job.Ready(ctx); err != nil {
				return nil, err
			}
			m, err := s.View(ctx, job.Parent)
			if err != nil {
				return nil, err
			}
			base = m
			return m.Root, nil
		}
	}
	stats, err := tarfs.Extract(ctx, job.Tree, job.Layer, opts)
	if base != nil {
		err = errs.Also(err, base.Close())
	}
	return stats, err
}

// Prepare makes a writable tree: three directories and a record.
func (s *Store) Prepare(_ context.Context, key string, chain snapshot.ChainID, opts snapshot.Options) error {
	if opts.Size > 0 {
		return s.prepareSized(key, chain, opts)
	}
	return s.NewTree(key, chain, opts, func(dir string) error { return s.makeDirs(dir, chain) })
}

// makeDirs makes what a writable tree consists of.
func (s *Store) makeDirs(dir string, chain snapshot.ChainID) error {
	if err := s.MakeRoot(dir+"/upper", chain); err != nil {
		return err
	}
	if err := unix.Mkdir(dir+"/work", 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: dir + "/work", Err: err}
	}
	return nil
}

// Mount mounts the writable tree. While one mount of it is open, others share it.
func (s *Store) Mount(ctx context.Context, key string) (*snapshot.Mounted, error) {
	if _, err := s.Get(key); err != nil {
		return nil, err
	}
	return s.share("tree "+key, func() (*os.File, *os.File, error) {
		t, err := s.Get(key) // it may have been turned into a layer while this call waited
		if err != nil {
			return nil, nil, err
		}
		lower, err := s.Chain(t.Chain)
		if err != nil {
			return nil, nil, err
		}
		if skeleton := s.skeletons[t.Skeleton]; skeleton != "" && !t.Bare && len(lower) < maxLayers {
			lower = append(lower[:len(lower):len(lower)], skeleton)
		}
		l := layout{lower: lower, upper: t.Dir + "/upper", work: t.Dir + "/work", volatile: !t.Durable, label: t.Label}
		if inImage(t) {
			done, err := s.onImage(t, &l)
			if err != nil {
				return nil, nil, err
			}
			defer done()
		}
		if t.Shared && !s.clones {
			return s.mountAtHome(l)
		}
		root, err := s.mount(l)
		return root, nil, err
	})
}

// Locate tells where a tree's directories are.
func (s *Store) Locate(key string) (snapshot.Place, error) {
	t, err := s.Get(key)
	if err != nil {
		return snapshot.Place{}, err
	}
	lower, err := s.Chain(t.Chain)
	if err != nil {
		return snapshot.Place{}, err
	}
	if inImage(t) {
		return snapshot.Place{Lower: lower}, nil
	}
	return snapshot.Place{Lower: lower, Upper: t.Dir + "/upper", Work: t.Dir + "/work"}, nil
}

// Inside opens the upper directory.
func (s *Store) Inside(key string) (*os.File, error) {
	t, err := s.Get(key)
	if err != nil {
		return nil, err
	}
	return s.openUpper(t)
}

// LocateLayers tells where a chain's directories are.
func (s *Store) LocateLayers(chain snapshot.ChainID) ([]string, error) { return s.Chain(chain) }

// View mounts a chain read-only.
func (s *Store) View(ctx context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error) {
	lower, err := s.Chain(chain)
	if err != nil {
		return nil, err
	}
	return s.share("view "+string(chain), func() (*os.File, *os.File, error) {
		root, err := s.mount(layout{lower: lower})
		return root, nil, err
	})
}

// shared is one mount with several users: overlayfs must not have two mounts of one upper directory.
type shared struct {
	once sync.Once
	root *os.File
	home *os.File // the mount namespace that it is attached in, to be cloned from there; nil: it is attached nowhere
	err  error
	uses int // guarded by Store.mu
}

// join finds or makes the entry of a mount. One that is being taken down is waited for.
func (s *Store) join(name string) *shared {
	for {
		s.mu.Lock()
		wait := s.closing[name]
		if wait == nil {
			sh := s.live[name]
			if sh == nil {
				sh = &shared{}
				s.live[name] = sh
			}
			sh.uses++
			s.mu.Unlock()
			return sh
		}
		s.mu.Unlock()
		<-wait
	}
}

func (s *Store) share(name string, mount func() (root, home *os.File, err error)) (*snapshot.Mounted, error) {
	sh := s.join(name)
	first := false
	sh.once.Do(func() {
		first = true
		sh.root, sh.home, sh.err = mount()
	})
	if sh.err != nil {
		s.release(name, sh)
		return nil, fmt.Errorf("mount %s: %w", name, sh.err)
	}
	root, detached, err := s.hand(sh, first)
	if err != nil {
		s.release(name, sh)
		return nil, fmt.Errorf("mount %s: %w", name, err)
	}
	var once sync.Once
	return &snapshot.Mounted{Root: root, Detached: detached, Close: func() (err error) {
		once.Do(func() {
			err = root.Close()
			s.release(name, sh)
		})
		return err
	}}, nil
}

// hand gives out a descriptor. The one who made the mount gets the mount itself; others a clone where the kernel can clone
// a detached mount (6.15), else a descriptor that is good for looking inside.
func (s *Store) hand(sh *shared, first bool) (*os.File, bool, error) {
	if sh.home != nil {
		a, _ := s.Empty()
		root, err := mount.TreeIn(sh.home, a)
		return root, true, err
	}
	if !first && s.clones {
		if root, err := mount.TreeAt(sh.root, false); err == nil {
			return root, true, nil
		}
	}
	fd, err := unix.FcntlInt(sh.root.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, false, err
	}
	return os.NewFile(uintptr(fd), "overlay"), first, nil
}

// alone keeps a mount from being made until the returned func is called, and waits until the last one is down. ok is false while somebody has it.
func (s *Store) alone(name string) (done func(), ok bool) {
	for {
		s.mu.Lock()
		wait := s.closing[name]
		if wait == nil {
			break
		}
		s.mu.Unlock()
		<-wait
	}
	defer s.mu.Unlock()
	if s.live[name] != nil {
		return nil, false
	}
	free := make(chan struct{})
	s.closing[name] = free
	return func() {
		s.mu.Lock()
		delete(s.closing, name)
		s.mu.Unlock()
		close(free)
	}, true
}

// release gives a share back. The last one takes the mount down, in the background: the kernel flushes the file system below for it, and waits
// for every processor to forget the mount.
func (s *Store) release(name string, sh *shared) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh.uses--
	if sh.uses > 0 {
		return
	}
	delete(s.live, name)
	if sh.root == nil {
		return
	}
	done := make(chan struct{})
	s.closing[name] = done
	s.down.Go(func() {
		err := sh.root.Close()
		if sh.home != nil {
			err = errs.Also(err, sh.home.Close())
		}
		if err != nil {
			s.log.Warn("take a mount down", "mount", name, "error", err)
		}
		s.mu.Lock()
		delete(s.closing, name)
		s.mu.Unlock()
		close(done)
	})
}

func initialUserNS() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return os.Geteuid() == 0
	}
	var inside, outside, size uint64
	if _, err := fmt.Sscan(string(data), &inside, &outside, &size); err != nil {
		return os.Geteuid() == 0
	}
	return inside == 0 && outside == 0 && size == 1<<32-1
}
