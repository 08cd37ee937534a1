package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// KindMount is the kind of cache mounts.
const KindMount = "exec.cachemount"

// mutableRecord is a mutable on the disk. Fields are only ever added.
type mutableRecord struct {
	ID, Kind, Name string
	Base           snapshot.ChainID `json:",omitempty"`
	Tree           string           `json:",omitempty"` // key of the writable tree; empty: a directory
	Created, Used  time.Time
	Count          int
	Size           int64 // as it was counted last
	// Boot is set while there may be files that are not flushed.
	Boot string `json:",omitempty"`
}

// mutable is one in memory, guarded by Cache.mu.
type mutable struct {
	mutableRecord
	users  int
	alone  bool          // who has it shares it with nobody
	making bool          // a call is at it, or was
	made   bool          // it is there, and recorded
	ready  chan struct{} // closed when it is there, or will not be
}

// group are the mutables of one name, kind and base: several, when they were wanted alone at a time.
type group struct {
	items []*mutable
	freed chan struct{} // closed when one of them was released or gone; nil: nobody waits
}

func (r mutableRecord) group() string { return r.Kind + "\x00" + r.Name + "\x00" + string(r.Base) }

// addMutable makes one known. It needs mu, or to be alone.
func (c *Cache) addMutable(m *mutable) {
	name := m.group()
	g := c.groups[name]
	if g == nil {
		g = &group{}
		c.groups[name] = g
	}
	g.items = append(g.items, m)
	slices.SortFunc(g.items, func(a, b *mutable) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	c.muts[m.ID] = m
}

// delMutable is the contrary of addMutable. It needs mu.
func (c *Cache) delMutable(m *mutable) {
	delete(c.muts, m.ID)
	name := m.group()
	g := c.groups[name]
	g.items = slices.DeleteFunc(g.items, func(o *mutable) bool { return o == m })
	g.wake()
	if len(g.items) == 0 {
		delete(c.groups, name)
	}
}

func (g *group) wake() {
	if g.freed != nil {
		close(g.freed)
		g.freed = nil
	}
}

// Acquire gives the writable tree of a cache mount of this id on a chain; it is made when there is none. How it is shared is what RUN --mount=type=cache says: shared gives the one that others have at the same
// time, too; private one that nobody has; locked the only one, and waits for it, until ctx ends. Who needs several locked ones asks for them in one order, by id, or may wait for ever for somebody who waits
// for him. The key is one of the snapshot room; the tree is the caller's until release, and its mounts are closed before.
func (c *Cache) Acquire(ctx context.Context, id string, base snapshot.ChainID, sharing pb.CacheSharingOpt) (key string, release func(), err error) {
	m, release, err := c.take(ctx, mutableRecord{Kind: KindMount, Name: id, Base: base}, sharing)
	if err != nil {
		return "", nil, fmt.Errorf("cache mount %s: %w", id, err)
	}
	return m.Tree, release, nil
}

// Dir gives a directory that builds come back to, shared by all who ask for it at the time: a mirror of a context ("source.local"), a repository ("source.git.checkout"), downloads ("source.http"). It is empty
// at first, and may be again at any later time.
func (c *Cache) Dir(ctx context.Context, kind, name string) (path string, release func(), err error) {
	if kind == "" || kind == KindMount {
		return "", nil, errs.New(errs.Invalid, "directory of builds %s: kind %q", name, kind)
	}
	m, release, err := c.take(ctx, mutableRecord{Kind: kind, Name: name}, pb.CacheSharingOpt_SHARED)
	if err != nil {
		return "", nil, fmt.Errorf("directory of builds %s: %w", name, err)
	}
	return filepath.Join(c.dirs(), m.ID), release, nil
}

func (c *Cache) take(ctx context.Context, want mutableRecord, sharing pb.CacheSharingOpt) (mutableRecord, func(), error) {
	if want.Name == "" {
		return want, nil, errs.New(errs.Invalid, "it has no id")
	}
	for {
		c.mu.Lock()
		m, wait := c.choose(want, sharing)
		var rec mutableRecord
		if m != nil {
			rec = m.mutableRecord
		}
		c.mu.Unlock()
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return want, nil, context.Cause(ctx)
			}
		}
		ok, err := c.ready(ctx, m, rec)
		if err == nil && ok {
			err = c.dirty(m)
		}
		release := sync.OnceFunc(func() { c.give(m) })
		if err != nil || !ok {
			release()
		}
		if err != nil {
			return want, nil, err
		}
		if ok {
			return rec, release, nil
		}
	}
}

// choose takes one of a group, makes one known that is to be made, or tells what to wait for. It needs mu.
func (c *Cache) choose(want mutableRecord, sharing pb.CacheSharingOpt) (*mutable, <-chan struct{}) {
	g := c.groups[want.group()]
	if g != nil {
		for _, m := range g.items {
			if sharing == pb.CacheSharingOpt_SHARED && m.users > 0 && !m.alone {
				m.users++
				return m, nil
			}
		}
		for _, m := range g.items {
			if m.users == 0 {
				m.users, m.alone = 1, sharing != pb.CacheSharingOpt_SHARED
				return m, nil
			}
		}
		if sharing == pb.CacheSharingOpt_LOCKED {
			if g.freed == nil {
				g.freed = make(chan struct{})
			}
			return nil, g.freed
		}
	}
	want.ID, want.Created = newID(), c.opts.Now()
	if want.Kind == KindMount {
		want.Tree = holdPrefix + "mount/" + want.ID
	}
	m := &mutable{mutableRecord: want, users: 1, alone: sharing != pb.CacheSharingOpt_SHARED, ready: make(chan struct{})}
	c.addMutable(m)
	return m, nil
}

// ready makes a mutable that was just made known, or waits until another call did. ok is false when that one failed: the caller tries again.
func (c *Cache) ready(ctx context.Context, m *mutable, rec mutableRecord) (ok bool, err error) {
	c.mu.Lock()
	made, mine := m.made, !m.made && !m.making
	m.making = true
	c.mu.Unlock()
	switch {
	case made:
		return true, nil
	case mine:
		return true, c.make(ctx, m, rec)
	}
	select {
	case <-m.ready:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return m.made, nil
}

// make makes the tree or directory, and records it. When that fails, nobody finds it any more.
func (c *Cache) make(ctx context.Context, m *mutable, rec mutableRecord) (err error) {
	defer close(m.ready)
	if rec.Tree != "" {
		err = c.opts.Layers.Prepare(ctx, rec.Tree, rec.Base, snapshot.Options{Labels: map[string]string{label: rec.ID}, Bare: true, Shared: true})
	} else {
		err = os.Mkdir(filepath.Join(c.dirs(), rec.ID), 0o700)
	}
	if err == nil {
		rec.Boot, rec.Used = c.boot, rec.Created
		c.order.Lock()
		err = c.mutables.Put(rec.ID, rec)
		c.order.Unlock()
		if err != nil {
			err = errors.Join(err, c.unmake(ctx, rec))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.delMutable(m)
		return err
	}
	m.made, m.Boot = true, c.boot
	return nil
}

// unmake removes the files of a mutable.
func (c *Cache) unmake(ctx context.Context, rec mutableRecord) error {
	if rec.Tree == "" {
		c.removeDir(rec.ID)
		return nil
	}
	if err := c.opts.Layers.Remove(ctx, rec.Tree); err != nil {
		return err
	}
	if rec.Base != "" {
		c.opts.Images.DropLayers(rec.Base)
	}
	return nil
}

// dirty marks one whose files may be changed from now on.
func (c *Cache) dirty(m *mutable) error {
	c.order.Lock()
	defer c.order.Unlock()
	c.mu.Lock()
	rec := m.mutableRecord
	marked := m.Boot != ""
	m.Count, m.Boot = m.Count+1, c.boot
	c.mu.Unlock()
	if marked {
		return nil
	}
	rec.Boot = c.boot
	return c.mutables.Put(rec.ID, rec)
}

// give ends a use.
func (c *Cache) give(m *mutable) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.users--
	if m.Used = c.opts.Now(); m.users > 0 {
		return
	}
	m.alone = false
	if g := c.groups[m.group()]; g != nil {
		g.wake()
	}
	c.soon()
}

// idleMutable is one that nobody used when a flush began.
type idleMutable struct {
	m     *mutable
	count int
}

func (c *Cache) idle() (all []idleMutable) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, m := range c.muts {
		if m.made && m.users == 0 && m.Boot != "" {
			all = append(all, idleMutable{m, m.Count})
		}
	}
	return all
}

// settled takes the mark off those that nobody used during a flush, and writes their last uses.
func (c *Cache) settled(all []idleMutable) {
	c.order.Lock()
	defer c.order.Unlock()
	for _, it := range all {
		c.mu.Lock()
		still := c.muts[it.m.ID] == it.m && it.m.users == 0 && it.m.Count == it.count
		if still {
			it.m.Boot = ""
			if bytes, counted := c.counted(it.m.mutableRecord); !counted.IsZero() {
				it.m.Size = bytes
			}
		}
		rec := it.m.mutableRecord
		c.mu.Unlock()
		if !still {
			continue
		}
		if err := c.mutables.Put(rec.ID, rec); err != nil {
			c.log.Warn("a cache mount that is flushed is not recorded as that", "id", rec.ID, "error", err)
		}
	}
}

// counted is what the snapshot room knows of a tree's size without waiting.
func (c *Cache) counted(rec mutableRecord) (int64, time.Time) {
	if rec.Tree == "" {
		return 0, time.Time{}
	}
	return c.opts.Layers.LastUsage(rec.Tree)
}
