// Package cache keeps what builds made, by key; the trees of cache mounts; and other directories that builds come back to.
//
// It owns <data-root>/builds/cache, the holds "builds/…" of the snapshot room, and the writable trees with its label. It knows layers by their chains and images by what they need of the same layers. It
// promises: a record that Save returned for outlives the process; a host that goes down may cost the last seconds of records, and never leaves one whose layers are not whole; what is in use is not
// removed, nor is what others were made of.
//
//	records      journal: key ─▶ build.Record, names of its holds, last use, number of uses
//	mutables     journal: id ─▶ a cache mount (its tree lies in the snapshot room) or a directory
//	dirs/<id>/   the directories
//
// # Life of a record
//
//	Save ─▶ layers held ─▶ [found: Lookup, Use … release] ─▶ collected ─▶ an identity: its chains are names, its layers are gone ─▶ forgotten
//	                                                      └▶ pruned: forgotten at once, unless others were made of it
//
// An identity still says what a step gave, so that what only reads a result of it (COPY --from) is found without it. Identities are bounded in number and age. Layers also go by a crash of the host, or by
// hand: the start finds out.
//
// # Life of a mutable
//
//	Acquire, Dir ─▶ marked with this boot ─▶ used ─▶ released ─▶ flushed in the background: mark off
//
// One with the mark of another boot may have lost a part of its files when the host went down, and begins anew.
package cache

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/record"
	"corten.dev/corten/internal/snapshot"
)

// Layers is what the cache needs of the snapshot room; snapshot.Store has it. It is wide because it holds layers and has trees.
type Layers interface {
	Stat(ctx context.Context, chain snapshot.ChainID) (snapshot.Layer, error)
	Hold(ctx context.Context, name string, chain snapshot.ChainID) error
	Release(ctx context.Context, name string) error
	Holds(ctx context.Context, fn func(name string, chain snapshot.ChainID) error) error
	Flush(ctx context.Context) error

	Prepare(ctx context.Context, key string, chain snapshot.ChainID, opts snapshot.Options) error
	Remove(ctx context.Context, key string) error
	Walk(ctx context.Context, fn func(key string, labels map[string]string) error) error
	Usage(ctx context.Context, key string) (int64, error)
	LastUsage(key string) (bytes int64, counted time.Time)
}

// Images is what the cache needs of the image room; image.Maker has it.
type Images interface {
	// Live tells which chains images have.
	Live() func(digest.Digest) bool
	// DropLayers removes layers that nobody needs.
	DropLayers(chains ...snapshot.ChainID)
}

// Options join the cache with what it stands on; those without a default are needed.
type Options struct {
	Root   string
	Layers Layers
	Images Images
	// Trees is the folder of the snapshot room: its file system is flushed for cache mounts, and has the free space that bounds speak of.
	Trees string
	Log   *slog.Logger
	Now   func() time.Time // nil is time.Now
	// FlushAfter is how long records and uses may wait in the kernel's memory; 0 is 5 s.
	FlushAfter time.Duration
}

const (
	// MaxIdentities and IdentityAge bound the records without layers.
	MaxIdentities = 20_000
	IdentityAge   = 30 * 24 * time.Hour

	holdPrefix = "builds/"
	// label marks the trees of cache mounts; its value is the mutable's id.
	label = "corten.build.cache"
)

// Cache implements [build.Cache]. Its methods may be called concurrently.
type Cache struct {
	opts Options
	log  *slog.Logger
	boot string

	// order is held over a change in memory and its line in a journal, one write to the page cache, by design: both have the changes in the same order. Taken before mu.
	order    sync.Mutex
	records  *record.Journal[stored]
	mutables *record.Journal[mutableRecord]
	pruning  sync.Mutex // one Prune at a time, by design: two would count the same bytes

	mu    sync.RWMutex // guards what follows
	byKey map[digest.Digest]*entry
	refs  map[digest.Digest]int // of records that are in use, or will be
	// replaced are records that others took the place of while they were used.
	replaced map[digest.Digest][]stored
	kids     map[digest.Digest]kin    // what was made of a record
	outputs  map[snapshot.ChainID]int // how many records hold a chain
	pins     map[snapshot.ChainID]*pin
	touched  map[digest.Digest]bool
	muts     map[string]*mutable
	groups   map[string]*group
	others   []Other
	timer    *time.Timer // set while something waits to be flushed
	closed   bool
	work     sync.WaitGroup
}

var _ build.Cache = (*Cache)(nil)

// kin counts the records whose inputs name a record: all, and those with layers.
type kin struct{ all, here int }

// stored is a record on the disk. Fields are only ever added.
type stored struct {
	build.Record
	// Holds are the names of the holds on Outputs; empty where there is none.
	Holds []string `json:",omitempty"`
	Used  time.Time
	Count int
}

// entry is a record in memory. Used and Count change under mu; the rest never does, a change puts a new one in its place.
type entry struct {
	stored
	here bool // the layers of all outputs are here, and held
}

// Open opens the folder, compares it with the layers and trees that are there, and removes what killed processes left.
func Open(ctx context.Context, opts Options) (*Cache, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.FlushAfter == 0 {
		opts.FlushAfter = 5 * time.Second
	}
	c := &Cache{opts: opts, log: opts.Log, byKey: map[digest.Digest]*entry{}, refs: map[digest.Digest]int{}, replaced: map[digest.Digest][]stored{}, kids: map[digest.Digest]kin{}, outputs: map[snapshot.ChainID]int{}, pins: map[snapshot.ChainID]*pin{},
		touched: map[digest.Digest]bool{}, muts: map[string]*mutable{}, groups: map[string]*group{}}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		c.log.Warn("no boot id: cache mounts begin anew with each start of the engine that follows a crash", "error", err)
		boot = []byte(newID())
	}
	c.boot = strings.TrimSpace(string(boot))
	if err := os.MkdirAll(c.dirs(), 0o700); err != nil {
		return nil, fmt.Errorf("open build cache: %w", err)
	}
	records, all, err := record.OpenJournal[stored](filepath.Join(opts.Root, "records"), opts.Log)
	if err != nil {
		return nil, fmt.Errorf("open build cache: %w", err)
	}
	mutables, muts, err := record.OpenJournal[mutableRecord](filepath.Join(opts.Root, "mutables"), opts.Log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open build cache: %w", err), records.Close())
	}
	c.records, c.mutables = records, mutables
	err = c.loadRecords(ctx, all)
	if err == nil {
		err = c.loadMutables(ctx, muts)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open build cache: %w", err), c.records.Close(), c.mutables.Close())
	}
	c.trim()
	return c, nil
}

func (c *Cache) dirs() string { return filepath.Join(c.opts.Root, "dirs") }

func newID() string {
	var b [13]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])[:25]
}

// Close flushes, and waits for what goes on in the background.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	if c.timer != nil && c.timer.Stop() {
		c.timer = nil
		c.work.Done()
	}
	c.mu.Unlock()
	c.work.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(c.Flush(ctx), c.records.Close(), c.mutables.Close())
}

// soon has everything flushed some time later. It needs mu.
func (c *Cache) soon() {
	if c.timer != nil || c.closed {
		return
	}
	c.work.Add(1)
	c.timer = time.AfterFunc(c.opts.FlushAfter, func() {
		defer c.work.Done()
		c.mu.Lock()
		c.timer = nil
		c.mu.Unlock()
		if err := c.Flush(context.Background()); err != nil {
			c.log.Warn("flush the build cache", "error", err)
		}
		c.trim()
		c.compact()
	})
}

// Flush makes durable what was saved before, with its layers, and cache mounts that nobody uses.
func (c *Cache) Flush(ctx context.Context) error {
	c.writeTouched()
	idle := c.idle()
	if err := c.opts.Layers.Flush(ctx); err != nil {
		return fmt.Errorf("flush build cache: %w", err)
	}
	if len(idle) > 0 {
		for _, dir := range []string{c.opts.Trees, c.opts.Root} {
			if err := syncfs(dir); err != nil {
				return fmt.Errorf("flush build cache: %w", err)
			}
		}
		c.settled(idle)
	}
	if err := errors.Join(c.records.Flush(), c.mutables.Flush()); err != nil {
		return fmt.Errorf("flush build cache: %w", err)
	}
	return nil
}

// writeTouched writes what is in memory only: uses, of which a process that is killed loses some seconds, and what a full disk took no line of.
func (c *Cache) writeTouched() {
	c.order.Lock()
	defer c.order.Unlock()
	c.mu.Lock()
	todo := c.touched
	c.touched = map[digest.Digest]bool{}
	recs := make(map[digest.Digest]stored, len(todo))
	for key := range todo {
		if e := c.byKey[key]; e != nil {
			recs[key] = e.stored
		}
	}
	c.mu.Unlock()
	for key := range todo {
		var err error
		if rec, ok := recs[key]; ok {
			err = c.records.Put(key.String(), rec)
		} else {
			err = c.records.Delete(key.String())
		}
		if err == nil {
			delete(todo, key)
			continue
		}
		c.log.Warn("uses and removals of records are not written yet", "error", err)
		c.mu.Lock()
		maps.Copy(c.touched, todo)
		c.mu.Unlock()
		return
	}
}

// compact writes the journals anew when most of them is history.
func (c *Cache) compact() {
	c.order.Lock()
	defer c.order.Unlock()
	c.mu.RLock()
	records, muts := map[string]stored{}, map[string]mutableRecord{}
	for key, e := range c.byKey {
		records[key.String()] = e.stored
	}
	for id, m := range c.muts {
		if m.made {
			muts[id] = m.mutableRecord
		}
	}
	c.mu.RUnlock()
	var err error
	if c.records.Long(len(records)) {
		err = c.records.Rewrite(records)
	}
	if c.mutables.Long(len(muts)) {
		err = errors.Join(err, c.mutables.Rewrite(muts))
	}
	if err != nil {
		c.log.Warn("the journal of the build cache keeps its history", "error", err)
	}
}

// syncfs flushes the file system of a folder.
func syncfs(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	if err = unix.Syncfs(int(dir.Fd())); err != nil {
		err = &os.PathError{Op: "syncfs", Path: path, Err: err}
	}
	return errors.Join(err, dir.Close())
}

// space tells the free and total bytes of the file system of the layers.
func (c *Cache) space() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(c.opts.Trees, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: c.opts.Trees, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), int64(st.Blocks) * int64(st.Bsize), nil
}
