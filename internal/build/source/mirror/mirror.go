// Package mirror keeps copies of directories that live where their owner is: build contexts of clients on other hosts, and those that come as a tar.
//
// It owns <data-root>/builds/mirrors. It knows how trees travel, not over what. It promises: nothing outside of a mirror is written, whatever names and links come; only what differs
// by size, time, mode or link target travels again; two builds never write, or write and read, one copy at the same time; a copy that the host's crash may have damaged is dropped.
//
//	<root>/<sha256 of shared key and name>.<n>/tree   the copy; n counts from 0 for builds that use one context at the same time
//	<root>/<…>.<n>/boot                               the boot during which it was written: after another one its files may be empty, as nothing is flushed
//	<root>/<…>.<n>/new                                files under way
//	<root>/fresh-…/                                   contexts that came as a tar: gone with their build, and at start
//
// What comes by [Mirrors.Update]:
//
//	client ──▶ Entry, Entry, …      the whole tree, parents first, sorted within a directory
//	       ◀── numbers of files     that are not here as they are there
//	       ──▶ tar                  of these, in that order
package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// Options are what mirrors are made of.
type Options struct {
	Root string
	// MaxAge is how long a mirror that no build uses stays; 0 is a week. MaxKept is how many stay at most; 0 is 32.
	MaxAge  time.Duration
	MaxKept int
	// MaxBytes and MaxEntries bound one context; 0 is 256 GiB and 4 million.
	MaxBytes, MaxEntries int64
	Log                  *slog.Logger
}

// Mirrors are all copies below one folder.
type Mirrors struct {
	opts Options
	boot string

	mu    sync.Mutex // guards what follows
	used  map[string]bool
	sizes map[string]Usage // as they were counted last: it takes long
}

// Request says which context comes.
type Request struct {
	// SharedKey tells the directories of different owners apart that have one Name ("context"): builds with equal keys share what was transferred. It must not be guessable by somebody
	// who may not see the files; without one, nothing is shared.
	SharedKey, Name string
	Context         build.ContextOptions
}

// New opens the folder. Contexts of builds that were killed are removed.
func New(opts Options) (*Mirrors, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.MaxAge == 0 {
		opts.MaxAge = 7 * 24 * time.Hour
	}
	if opts.MaxKept == 0 {
		opts.MaxKept = 32
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 256 << 30
	}
	if opts.MaxEntries == 0 {
		opts.MaxEntries = 4_000_000
	}
	if err := os.MkdirAll(opts.Root, 0o700); err != nil {
		return nil, fmt.Errorf("mirrors of contexts: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("mirrors of contexts: %w", err)
	}
	m := &Mirrors{opts: opts, boot: strings.TrimSpace(string(boot)), used: map[string]bool{}}
	names, err := m.list()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasPrefix(name, freshPrefix) || !m.sound(name) {
			if err := os.RemoveAll(filepath.Join(opts.Root, name)); err != nil {
				return nil, fmt.Errorf("mirrors of contexts: %w", err)
			}
		}
	}
	return m, m.Collect(context.Background())
}

const freshPrefix = "fresh-"

func (m *Mirrors) list() ([]string, error) {
	entries, err := os.ReadDir(m.opts.Root)
	if err != nil {
		return nil, fmt.Errorf("mirrors of contexts: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// sound tells whether a mirror was written during this boot.
func (m *Mirrors) sound(name string) bool {
	boot, err := os.ReadFile(filepath.Join(m.opts.Root, name, "boot"))
	return err == nil && string(boot) == m.boot
}

// copyOf is one mirror, taken.
type copyOf struct {
	m    *Mirrors
	name string
	dir  string // of the mirror
	tree string
}

// take finds a copy of this key that nobody uses, or begins one.
func (m *Mirrors) take(req Request) (*copyOf, error) {
	sum := sha256.Sum256([]byte(req.SharedKey + "\x00" + req.Name))
	base := hex.EncodeToString(sum[:])
	m.mu.Lock()
	n := 0
	for m.used[base+"."+strconv.Itoa(n)] {
		n++
	}
	name := base + "." + strconv.Itoa(n)
	m.used[name] = true
	m.mu.Unlock()
	c := &copyOf{m: m, name: name, dir: filepath.Join(m.opts.Root, name)}
	c.tree = filepath.Join(c.dir, "tree")
	if err := c.begin(); err != nil {
		c.give()
		return nil, fmt.Errorf("mirror of %s: %w", req.Name, err)
	}
	return c, nil
}

func (c *copyOf) begin() error {
	fresh := !c.m.sound(c.name)
	if fresh {
		if err := os.RemoveAll(c.dir); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(c.dir, "new")); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.dir, "new"), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(c.tree, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(c.tree, 0o755); err != nil { // a build sees it; whoever is not root does not get here
		return err
	}
	// The folder's time is when it was used last.
	if err := os.Chtimes(c.dir, time.Now(), time.Now()); err != nil || !fresh {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "boot"), []byte(c.m.boot), 0o600)
}

func (c *copyOf) give() {
	c.m.mu.Lock()
	delete(c.m.used, c.name)
	c.m.mu.Unlock()
}

// drop removes a copy that is of no use to anybody else, and gives it back.
func (c *copyOf) drop() {
	if err := os.RemoveAll(c.dir); err != nil {
		c.m.opts.Log.Warn("mirror of a context stays until the next start", "folder", c.dir, "err", err)
	}
	c.give()
}

// files opens a copy for a build.
func (c *copyOf) files(req Request) (*build.Files, func(), error) {
	f, err := os.Open(c.tree)
	if err != nil {
		c.give()
		return nil, nil, err
	}
	var once sync.Once
	release := func() {
		once.Do(func() {
			_ = f.Close() // a folder that was read
			if req.SharedKey == "" {
				c.drop()
				return
			}
			c.give()
			if err := c.m.Collect(context.Background()); err != nil {
				c.m.opts.Log.Warn("old mirrors of contexts stay", "err", err)
			}
		})
	}
	opts := req.Context
	return &build.Files{Root: directory{f}, Include: opts.Include, Exclude: opts.Exclude, Follow: opts.Follow, Key: "mirror." + c.name, Owner: &[2]uint32{}}, release, nil
}

type directory struct{ f *os.File }

func (d directory) Fd() uintptr { return d.f.Fd() }

// Usage is one mirror.
type Usage struct {
	ID       string
	Bytes    int64
	InUse    bool
	LastUsed time.Time
}

// Usage lists the mirrors.
func (m *Mirrors) Usage(ctx context.Context) ([]Usage, error) {
	names, err := m.list()
	if err != nil {
		return nil, err
	}
	var all []Usage
	for _, name := range names {
		if strings.HasPrefix(name, freshPrefix) {
			continue
		}
		u := Usage{ID: name, InUse: m.inUse(name)}
		if info, err := os.Stat(filepath.Join(m.opts.Root, name)); err == nil {
			u.LastUsed = info.ModTime()
		}
		m.mu.Lock()
		have := m.sizes[name]
		m.mu.Unlock()
		if !u.InUse && !u.LastUsed.IsZero() && have.LastUsed.Equal(u.LastUsed) {
			u.Bytes = have.Bytes
			all = append(all, u)
			continue
		}
		err := filepath.WalkDir(filepath.Join(m.opts.Root, name), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil {
					u.Bytes += info.Size()
				}
			}
			return ctx.Err() // what vanishes meanwhile does not count
		})
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	sizes := map[string]Usage{}
	for _, u := range all {
		if !u.InUse {
			sizes[u.ID] = u
		}
	}
	m.mu.Lock()
	m.sizes = sizes
	m.mu.Unlock()
	return all, nil
}

func (m *Mirrors) inUse(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used[name]
}

// Remove removes a mirror; errs.Conflict while a build uses it, errs.NotFound when it is not there.
func (m *Mirrors) Remove(id string) error {
	names, err := m.list()
	if err != nil {
		return err
	}
	if !slices.Contains(names, id) || strings.HasPrefix(id, freshPrefix) {
		return errs.New(errs.NotFound, "no mirror %s", id)
	}
	m.mu.Lock()
	if m.used[id] {
		m.mu.Unlock()
		return errs.New(errs.Conflict, "mirror %s is in use", id)
	}
	m.used[id] = true // by us
	m.mu.Unlock()
	defer (&copyOf{m: m, name: id}).give()
	return os.RemoveAll(filepath.Join(m.opts.Root, id))
}

// Collect removes what is too old, and the oldest of what is too much.
func (m *Mirrors) Collect(context.Context) error {
	names, err := m.list()
	if err != nil {
		return err
	}
	type kept struct {
		name string
		used time.Time
	}
	var all []kept
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(m.opts.Root, name)); err == nil && !strings.HasPrefix(name, freshPrefix) {
			all = append(all, kept{name, info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b kept) int { return b.used.Compare(a.used) })
	for i, k := range all {
		if i < m.opts.MaxKept && time.Since(k.used) < m.opts.MaxAge {
			continue
		}
		if err := m.Remove(k.name); err != nil && !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	return nil
}
