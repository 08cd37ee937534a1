package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/record"
	"corten.dev/corten/internal/task"
	"golang.org/x/sys/unix"
)

// LocalDriver is the name of the driver that keeps volumes as directories of this host.
const LocalDriver = "local"

// AnonymousLabel is how Docker's clients tell a volume that nobody named.
const AnonymousLabel = "com.docker.volume.anonymous"

// Options are the settings of a LocalStore.
type Options struct {
	// Root is the folder of the room, <data-root>/volumes.
	Root   string
	Logger *slog.Logger
}

// LocalStore is the driver "local". Its folder:
//
//	<root>/.records/<name>.json    what a volume is; durable before Create returns
//	<root>/.trash/<name>@<n>       volumes whose removal was begun; finished at start
//	<root>/<name>/_data            the content, or where the file system of a volume that is one of its own is mounted
//	<root>/<name>/_image           the file system of a volume with a size, where there are no project quotas; _image@new before it has a record
//	<root>/<name>/_snapshots/<s>   what it held once; one that its record does not tell of is half of one, dropped when found
//	<root>/<name>/_next            content on its way in from a snapshot (_image@next likewise), or on its way out: dropped when found
//	<root>/.making/<name>@<n>      a folder as below, of a volume that is made with content: see makeWith
//	<root>/<name>/_fill            content from an image on its way in, not complete: dropped when found
//	<root>/<name>/_filled          the same, complete: what is left of it is moved into _data when found
//
// A volume's entry in memory has a gate. It is held by one verb at a time over kernel work on that volume; waiting for it ends with the caller's context. The
// store's lock covers the table alone.
type LocalStore struct {
	log     *slog.Logger
	root    string
	boot    string
	records *record.Dir[stored]
	counts  *counts
	keeping task.Keyed    // held by who makes or removes a volume's snapshots, over the copy
	works   atomic.Uint64 // numbers the copies

	mu   sync.Mutex // guards vols and what their entries hold
	vols map[string]*entry
}

var _ Store = (*LocalStore)(nil)

// stored is a volume's record.
type stored struct {
	Name      string
	Created   time.Time
	Labels    map[string]string `json:",omitempty"`
	Options   map[string]string `json:",omitempty"`
	Anonymous bool              `json:",omitempty"`
	// Filled tells that content of an image was copied in; it never happens again.
	Filled bool `json:",omitempty"`
	// Mounters are the users for whom the file system of a volume with options is mounted. They are kept so that an engine that comes back knows when the last one
	// goes. They count only within one Boot of the machine.
	Mounters []string `json:",omitempty"`
	Boot     string   `json:",omitempty"`
	// Project is the project quota of a volume with a size, if that is what bounds it; Image tells that its content is an image.
	Project uint32 `json:",omitempty"`
	Image   bool   `json:",omitempty"`
	// Snapshots are those that are complete, oldest first.
	Snapshots []Snapshot `json:",omitempty"`
	// Frozen tells that its file system was frozen for a copy, RenamedFrom that a renaming is under way.
	Frozen      bool   `json:",omitempty"`
	RenamedFrom string `json:",omitempty"`
}

// entry is a volume in memory.
type entry struct {
	gate  chan struct{}       // holds one token
	rec   *stored             // never changed in place; nil while the volume is made or removed
	users map[string]struct{} // who acquired it
	// swapping has every Mount wait for the gate: the content is exchanged.
	swapping bool
}

// New opens the store, finishes what a crash interrupted and says what it repaired.
func New(opts Options) (*LocalStore, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	root, err := filepath.Abs(opts.Root)
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(root, trashDir), 0o711); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	s := &LocalStore{log: opts.Logger, root: root, vols: make(map[string]*entry), counts: newCounts(opts.Logger)}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	s.boot = strings.TrimSpace(string(boot))
	if s.records, err = record.Open[stored](filepath.Join(root, recordsDir), opts.Logger); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open volumes: %w", err), s.records.Close())
	}
	return s, nil
}

// Close lets go of the folder. Volumes and their mounts stay.
func (s *LocalStore) Close() error {
	s.counts.close()
	return s.records.Close()
}

func newEntry(rec *stored) *entry {
	return &entry{gate: make(chan struct{}, 1), rec: rec, users: make(map[string]struct{})}
}

func (s *LocalStore) dir(name string) string  { return filepath.Join(s.root, name) }
func (s *LocalStore) data(name string) string { return filepath.Join(s.root, name, dataDir) }

// volume is a record as callers see it.
func (s *LocalStore) volume(rec *stored) Volume {
	return Volume{
		Name: rec.Name, Driver: LocalDriver, Mountpoint: s.data(rec.Name), Created: rec.Created,
		Labels: maps.Clone(rec.Labels), Options: maps.Clone(rec.Options), Anonymous: rec.Anonymous, Status: rec.status(),
	}
}

// enter takes the gate of a volume that exists. leave gives it back.
func (s *LocalStore) enter(ctx context.Context, name string) (*entry, error) {
	for {
		s.mu.Lock()
		e := s.vols[name]
		s.mu.Unlock()
		if e == nil {
			return nil, notFound(name)
		}
		if err := e.take(ctx, name); err != nil {
			return nil, err
		}
		s.mu.Lock()
		same, ready := s.vols[name] == e, e.rec != nil
		s.mu.Unlock()
		if same && ready {
			return e, nil
		}
		e.leave()
		if same {
			return nil, notFound(name)
		}
	}
}

func (e *entry) take(ctx context.Context, name string) error {
	select {
	case e.gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for volume %s: %w", name, context.Cause(ctx))
	}
}

func (e *entry) leave() { <-e.gate }

func notFound(name string) error { return errs.New(errs.NotFound, "get %s: no such volume", name) }

// Create makes a volume, or returns the one of that name.
func (s *LocalStore) Create(ctx context.Context, opts CreateOptions) (Volume, error) {
	rec, err := newRecord(opts)
	if err != nil {
		return Volume{}, err
	}
	for {
		s.mu.Lock()
		e, there := s.vols[rec.Name]
		if !there {
			e = newEntry(nil)
			s.vols[rec.Name] = e
			e.gate <- struct{}{} // nobody else knows it yet
		}
		s.mu.Unlock()
		if there {
			if err := e.take(ctx, rec.Name); err != nil { // being made, or removed, or at rest
				return Volume{}, err
			}
			s.mu.Lock()
			old := e.rec
			s.mu.Unlock()
			e.leave()
			if old == nil {
				continue // it is gone now, or could not be made: try to make it
			}
			if len(opts.Options) > 0 && !maps.Equal(opts.Options, old.Options) {
				return Volume{}, errs.New(errs.Conflict, "create %s: conflict: volume name must be unique: it exists with other options", rec.Name)
			}
			return s.volume(old), nil
		}
		err := s.make(rec)
		s.mu.Lock()
		if err == nil {
			e.rec = rec
		} else {
			delete(s.vols, rec.Name)
		}
		s.mu.Unlock()
		e.leave()
		if err != nil {
			return Volume{}, fmt.Errorf("create volume %s: %w", rec.Name, err)
		}
		vol := s.volume(rec)
		vol.Made = true
		return vol, nil
	}
}

func newRecord(opts CreateOptions) (*stored, error) {
	rec := &stored{Name: opts.Name, Created: time.Now().UTC(), Labels: maps.Clone(opts.Labels), Options: maps.Clone(opts.Options)}
	if opts.Driver != "" && opts.Driver != LocalDriver {
		return nil, errs.New(errs.NotFound, "create %s: error looking up volume plugin %s: plugin %q not found", opts.Name, opts.Driver, opts.Driver)
	}
	if rec.Name == "" {
		var err error
		if rec.Name, err = RandomName(); err != nil {
			return nil, err
		}
		rec.Anonymous = true
		if rec.Labels == nil {
			rec.Labels = make(map[string]string)
		}
		rec.Labels[AnonymousLabel] = ""
	}
	if err := CheckName(rec.Name); err != nil {
		return nil, err
	}
	if _, err := parseOptions(rec.Options); err != nil {
		return nil, fmt.Errorf("create %s: %w", rec.Name, err)
	}
	if _, err := sizeOf(rec.Options); err != nil {
		return nil, fmt.Errorf("create %s: %w", rec.Name, err)
	}
	return rec, nil
}

// make makes directory and record, in this order: what a crash leaves is an empty folder without a record, which the next start drops.
func (s *LocalStore) make(rec *stored) error {
	if err := os.Mkdir(s.dir(rec.Name), 0o701); err != nil {
		return err
	}
	err := os.Mkdir(s.data(rec.Name), 0o755)
	if err == nil {
		err = os.Chmod(s.data(rec.Name), 0o755) // whatever the umask
	}
	if err == nil {
		err = bound(rec, s.dir(rec.Name))
	}
	if err == nil {
		err = s.records.Put(rec.Name, *rec, true)
	}
	if err == nil {
		err = settleImage(rec, s.dir(rec.Name))
	}
	if err != nil {
		if rerr := s.records.Delete(rec.Name, false); rerr != nil {
			err = errors.Join(err, rerr)
		}
		if rerr := unbound(rec, s.dir(rec.Name)); rerr != nil {
			err = errors.Join(err, rerr)
		}
		for _, p := range []string{filepath.Join(s.dir(rec.Name), newImage), s.data(rec.Name), s.dir(rec.Name)} {
			if rerr := os.Remove(p); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}
	return err
}

// Get returns a volume by name.
func (s *LocalStore) Get(_ context.Context, name string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.vols[name]; e != nil && e.rec != nil {
		return s.volume(e.rec), nil
	}
	return Volume{}, notFound(name)
}

// List returns all volumes by name.
func (s *LocalStore) List(context.Context) ([]Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Volume, 0, len(s.vols))
	for _, e := range s.vols {
		if e.rec != nil {
			list = append(list, s.volume(e.rec))
		}
	}
	slices.SortFunc(list, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Remove deletes a volume that has no users. With force, one that is not there is no error.
//
// The order: the folder goes to the trash, the record is deleted, the trash is emptied. After a crash the trash tells that the record is to go as well.
func (s *LocalStore) Remove(ctx context.Context, name string, force bool) error {
	e, err := s.enter(ctx, name)
	if err != nil {
		if force && errors.Is(err, errs.NotFound) {
			return nil
		}
		return err
	}
	defer e.leave()
	s.mu.Lock()
	rec, users := e.rec, slices.Sorted(maps.Keys(e.users))
	if len(users) == 0 {
		e.rec = nil // from now on nobody can acquire it
	}
	s.mu.Unlock()
	if len(users) > 0 && strings.HasPrefix(users[0], workMark) && strings.HasPrefix(users[len(users)-1], workMark) {
		return errs.New(errs.Conflict, "remove %s: volume is in use - [a copy of it is being made]", name)
	}
	if len(users) > 0 {
		return errs.New(errs.Conflict, "remove %s: volume is in use - [%s]", name, strings.Join(users, ", "))
	}
	trash, err := s.discard(rec)
	s.mu.Lock()
	if err != nil {
		e.rec = rec
	} else {
		delete(s.vols, name)
		s.counts.forget(name)
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := removeTree(trash); err != nil {
		// The volume is gone; its bytes are not. The next start tries again.
		s.log.Warn("content of a removed volume is left over", "volume", name, "path", trash, "err", err)
	}
	return nil
}

// discard unmounts, moves the folder to the trash and deletes the record.
func (s *LocalStore) discard(rec *stored) (trash string, err error) {
	if err := s.unmount(rec); err != nil {
		return "", err
	}
	if err := unbound(rec, s.dir(rec.Name)); err != nil {
		s.log.Warn("the quota of a removed volume stays", "volume", rec.Name, "project", rec.Project, "err", err)
	}
	trash = s.trashName(rec.Name)
	if err := os.Rename(s.dir(rec.Name), trash); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := s.records.Delete(rec.Name, true); err != nil {
		if rerr := os.Rename(trash, s.dir(rec.Name)); rerr != nil {
			err = errors.Join(err, rerr)
		}
		return "", err
	}
	return trash, nil
}

// Acquire notes a user.
func (s *LocalStore) Acquire(_ context.Context, name, user string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.vols[name]
	if e == nil || e.rec == nil {
		return notFound(name)
	}
	e.users[user] = struct{}{}
	return nil
}

// Release forgets a user.
func (s *LocalStore) Release(_ context.Context, name, user string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.vols[name]; e != nil {
		delete(e.users, user)
	}
	return nil
}

// Users lists who uses a volume.
func (s *LocalStore) Users(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.vols[name]; e != nil {
		return slices.DeleteFunc(slices.Sorted(maps.Keys(e.users)), func(user string) bool { return strings.HasPrefix(user, workMark) })
	}
	return nil
}

// Usage adds up the files of a volume, each once however many names it has. A volume with options that is not mounted has no size to tell: -1.
func (s *LocalStore) Usage(ctx context.Context, name string) (int64, error) {
	s.mu.Lock()
	e := s.vols[name]
	var rec *stored
	if e != nil {
		rec = e.rec
	}
	s.mu.Unlock()
	if rec == nil {
		return 0, notFound(name)
	}
	if rec.isMount() {
		if mounted, err := isMountpoint(s.data(name)); err != nil || !mounted {
			return s.imageUsage(rec, err)
		}
	}
	dir, err := openDir(unix.AT_FDCWD, s.data(name), 0)
	if err != nil {
		return 0, fmt.Errorf("size of volume %s: %w", name, err)
	}
	defer dir.Close() //nolint:errcheck // read only
	size, err := treeSize(ctx, dir)
	if err != nil {
		return 0, fmt.Errorf("size of volume %s: %w", name, err)
	}
	return size, nil
}

// imageUsage is what an image that is not mounted takes on disk; what else is not mounted has no size to tell.
func (s *LocalStore) imageUsage(rec *stored, err error) (int64, error) {
	if err != nil || !rec.Image {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.dir(rec.Name), imageFile), &st); err != nil {
		return -1, fmt.Errorf("size of volume %s: %w", rec.Name, err)
	}
	return st.Blocks * 512, nil
}

// LastUsage implements [Store].
func (s *LocalStore) LastUsage(name string) (bytes int64, counted time.Time, counting bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.vols[name]; e == nil || e.rec == nil {
		return -1, time.Time{}, false
	}
	return s.counts.last(name, func(ctx context.Context) (int64, error) { return s.Usage(ctx, name) })
}

// save replaces the record of an entry whose gate the caller holds, on disk first.
func (s *LocalStore) save(e *entry, rec *stored, durable bool) error {
	if err := s.records.Put(rec.Name, *rec, durable); err != nil {
		return err
	}
	s.mu.Lock()
	e.rec = rec
	s.mu.Unlock()
	return nil
}
