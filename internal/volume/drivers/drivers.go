// Package drivers is the volume store that the engine sees: it leads each volume to the local store or to the driver that keeps it.
//
// It owns <data-root>/volumes/.drivers, the records of volumes that drivers outside the engine keep: whose they are, what they were made with, and for whom they are mounted. It promises that a driver
// that is away keeps nobody from their other volumes; that a driver is asked to mount once for each user and to unmount once for each mount, whichever of the two processes is killed when; and that a name
// belongs to one driver.
//
//	<root>/.drivers/<name>.json     a volume; a name that is no file name is written as @<sha256>
//
// A volume that someone made in a driver behind the engine's back is listed and can be used; it gets a record with its first user.
//
// A user's mount of a volume is in one of these states; each is written before the call that leads out of it. None is flushed: a crash of the host takes the mounts along.
//
//	(none) ──Mount──▶ mounting ──driver: done──▶ mounted ──Unmount, or unclaimed at Settle──▶ leaving ──driver: done, or refused──▶ (none)
//	                     ├──driver: refused, or not reached──▶ (none)                             │ ▲
//	                     └──nobody knows: no answer, or the engine was killed────────────────────┼─┘
//	                                                                     not reached: again later ┘
//
// An engine that was killed finds mounted what was mounted, and Mount answers from the record.
package drivers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/record"
	"corten.dev/corten/internal/task"
	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/driver"
)

// How long a driver outside the engine may keep others waiting. A call of its own kind goes on for longer in the background, where nobody waits for it.
const (
	askTime     = 10 * time.Second // Get
	listTime    = 30 * time.Second // where nobody waits for it: see patience
	unmountTime = 5 * time.Second
	firstRetry  = time.Second // of an unmount that is owed
	lastRetry   = 30 * time.Second
	closeTime   = 2 * time.Second
)

// folder is where the records are, inside that of the local store. No volume has such a name.
const folder = ".drivers"

// Plugins are the drivers outside the engine.
type Plugins interface {
	// Driver makes the driver of a name; there need not be one.
	Driver(name string) (driver.Driver, error)
	// Names are those that seem to be there, whatever they are.
	Names() ([]string, error)
	// Ready tells whether one can be asked now: errs.Unavailable if it does not answer, errs.Invalid if it is no volume driver.
	Ready(ctx context.Context, name string) error
	// Await is Ready, and waits a while for one that is away.
	Await(ctx context.Context, name string) error
}

// Options join a Store; all are needed.
type Options struct {
	// Root is the folder of the room, <data-root>/volumes.
	Root    string
	Local   volume.Store
	Plugins Plugins
	Logger  *slog.Logger
	// Boot tells one run of the host from the next. Empty: the kernel is asked.
	Boot string
}

// Store routes volumes to drivers.
type Store struct {
	opts    Options
	log     *slog.Logger
	records *record.Dir[stored]
	names   task.Keyed // held by who changes a volume, over the calls of its driver
	ctx     context.Context
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu      sync.Mutex // guards what follows
	vols    map[string]*entry
	seen    map[string]string    // volumes without a record, and whose they were when someone looked
	scopes  map[string]string    // of drivers that told
	settled bool                 // everybody who survived the last engine has claimed what is theirs
	drivers map[string]*standing // see ask.go
	slow    map[string]bool      // drivers that kept the last unmount waiting: nobody waits for the next one
	retries bool                 // a goroutine works on what is owed
}

var (
	_ volume.Store   = (*Store)(nil)
	_ volume.Warner  = (*Store)(nil)
	_ volume.Settler = (*Store)(nil)
)

// The states of a mount.
const (
	mounting = "mounting"
	mounted  = "mounted"
	leaving  = "leaving"
)

// stored is a volume's record.
type stored struct {
	Name      string
	Driver    string
	Created   time.Time
	Labels    map[string]string `json:",omitempty"`
	Options   map[string]string `json:",omitempty"`
	Anonymous bool              `json:",omitempty"`
	Filled    bool              `json:",omitempty"`
	// Mounts are by user. They count within one Boot of the host.
	Mounts map[string]mount `json:",omitempty"`
	Boot   string           `json:",omitempty"`
}

// mount is one user's.
type mount struct {
	State string
	Path  string `json:",omitempty"` // once it is mounted
}

// mountpoint is where the volume is mounted for somebody; empty if it is not.
func (r *stored) mountpoint() string {
	for _, m := range r.Mounts {
		if m.Path != "" {
			return m.Path
		}
	}
	return ""
}

func (r *stored) copy() *stored {
	c := *r
	c.Mounts = maps.Clone(r.Mounts)
	return &c
}

// entry is a volume in memory.
type entry struct {
	rec     *stored // never changed in place
	going   bool    // it is being removed: nobody may acquire it
	users   map[string]struct{}
	claimed map[string]bool // who wants their mount, as far as this engine was told
}

// New opens the store. No driver is asked.
func New(opts Options) (*Store, error) {
	if opts.Boot == "" {
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("open volumes of drivers: %w", err)
		}
		opts.Boot = strings.TrimSpace(string(boot))
	}
	s := &Store{opts: opts, log: opts.Logger, vols: map[string]*entry{}, seen: map[string]string{}, scopes: map[string]string{}, drivers: map[string]*standing{}, slow: map[string]bool{}}
	var err error
	if s.records, err = record.Open[stored](filepath.Join(opts.Root, folder), opts.Logger); err != nil {
		return nil, fmt.Errorf("open volumes of drivers: %w", err)
	}
	recs, err := s.records.All()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open volumes of drivers: %w", err), s.records.Close())
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	for file, rec := range recs {
		if recordName(rec.Name) != file || rec.Driver == "" || driver.CheckName(rec.Name) != nil {
			s.log.Error("a record of a driver's volume makes no sense and is ignored", "record", file, "name", rec.Name)
			continue
		}
		if rec.Boot != opts.Boot {
			rec.Mounts, rec.Boot = nil, opts.Boot
		}
		s.vols[rec.Name] = newEntry(&rec)
	}
	return s, nil
}

// Close ends what is done in the background. What is owed to drivers is on disk.
func (s *Store) Close() error {
	s.mu.Lock() // so that nothing begins behind the Wait
	s.stop()
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.done.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeTime):
		s.log.Warn("calls of volume plugins are still under way at the end")
	}
	return s.records.Close()
}

func newEntry(rec *stored) *entry {
	return &entry{rec: rec, users: map[string]struct{}{}, claimed: map[string]bool{}}
}

// recordName is the file name of a volume's record.
func recordName(name string) string {
	if volume.CheckName(name) == nil {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "@" + hex.EncodeToString(sum[:])
}

// entry finds the record of a volume; nil if no driver outside the engine is known to have it.
func (s *Store) entry(name string) (*entry, *stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.vols[name]; e != nil {
		return e, e.rec
	}
	return nil, nil
}

// put writes a record and takes it over. Who calls it holds the volume's name.
func (s *Store) put(rec *stored, durable bool) error {
	rec.Boot = s.opts.Boot
	if err := s.records.Put(recordName(rec.Name), *rec, durable); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.vols[rec.Name]; e != nil {
		e.rec = rec
	} else {
		s.vols[rec.Name] = newEntry(rec)
	}
	delete(s.seen, rec.Name)
	return nil
}

// forget drops a record. Who calls it holds the volume's name.
func (s *Store) forget(name string) error {
	if err := s.records.Delete(recordName(name), true); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.vols, name)
	delete(s.seen, name)
	return nil
}

// driver makes the driver of a name; errors are in Docker's words.
func (s *Store) driver(name string) (driver.Driver, error) {
	d, err := s.opts.Plugins.Driver(name)
	if err != nil {
		return nil, lookup(name, err)
	}
	return d, nil
}

func lookup(name string, err error) error {
	return fmt.Errorf("error looking up volume plugin %s: %w", name, err)
}

// missing tells whether an error says that there is no such driver.
func missing(err error) bool { return errors.Is(err, errs.NotFound) || errors.Is(err, errs.Invalid) }

// away tells whether a driver did not say anything that could be relied on.
func away(err error) bool {
	return errors.Is(err, errs.Unavailable) || errors.Is(err, driver.Uncertain) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func notFound(name string) error { return errs.New(errs.NotFound, "get %s: no such volume", name) }

// view is a volume as callers see it: the record, and what the driver tells.
func (s *Store) view(rec *stored, d driver.Volume) volume.Volume {
	s.mu.Lock()
	scope := s.scopes[rec.Driver]
	s.mu.Unlock()
	vol := volume.Volume{
		Name: rec.Name, Driver: rec.Driver, Mountpoint: d.Mountpoint, Scope: scope, Created: d.Created, Labels: maps.Clone(rec.Labels), Options: maps.Clone(rec.Options),
		Anonymous: rec.Anonymous, Status: d.Status,
	}
	if vol.Mountpoint == "" {
		vol.Mountpoint = rec.mountpoint()
	}
	if vol.Created.IsZero() {
		vol.Created = rec.Created
	}
	return vol
}

// learn asks a driver once what it is.
func (s *Store) learn(ctx context.Context, d driver.Driver) {
	s.mu.Lock()
	_, told := s.scopes[d.Name()]
	s.mu.Unlock()
	if told {
		return
	}
	caps, err := d.Capabilities(ctx)
	if away(err) {
		return // it is asked again the next time
	}
	if err != nil {
		s.log.Warn("a volume plugin does not tell its scope, which is taken for local", "plugin", d.Name(), "error", err)
	}
	scope := "local"
	if caps.Global {
		scope = "global"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scopes[d.Name()] = scope
}

// Local is the local store.
func (s *Store) Local() volume.Store { return s.opts.Local }

// Users lists who uses a volume.
func (s *Store) Users(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.vols[name]; e != nil {
		return slices.Sorted(maps.Keys(e.users))
	}
	return s.opts.Local.Users(name)
}

// Acquire notes a user.
func (s *Store) Acquire(ctx context.Context, name, user string) error {
	if e, _ := s.entry(name); e == nil {
		if err := s.adopt(ctx, name); err != nil {
			return fmt.Errorf("use volume %s: %w", name, err)
		}
	}
	s.mu.Lock()
	e := s.vols[name]
	if e == nil {
		s.mu.Unlock()
		return s.opts.Local.Acquire(ctx, name, user)
	}
	defer s.mu.Unlock()
	if e.going {
		return notFound(name)
	}
	e.users[user] = struct{}{}
	return nil
}

// Release forgets a user.
func (s *Store) Release(ctx context.Context, name, user string) error {
	s.mu.Lock()
	e := s.vols[name]
	if e == nil {
		s.mu.Unlock()
		return s.opts.Local.Release(ctx, name, user)
	}
	defer s.mu.Unlock()
	delete(e.users, user)
	return nil
}

// adopt gives a record to a volume that was seen in a driver. One that nobody saw is left to the local store.
func (s *Store) adopt(ctx context.Context, name string) error {
	s.mu.Lock()
	owner := s.seen[name]
	s.mu.Unlock()
	if owner == "" {
		return nil
	}
	unlock, err := s.names.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if e, _ := s.entry(name); e != nil {
		return nil
	}
	if _, err := s.opts.Local.Get(ctx, name); err == nil { // made meanwhile
		return nil
	}
	return s.put(&stored{Name: name, Driver: owner, Created: time.Now().UTC()}, true)
}
