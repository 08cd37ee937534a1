package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/tarfs"
)

// Usage is one line of `buildx du`. Fields are those of the engine's UsageRecord, in its order, so that one converts to the other.
type Usage struct {
	ID          string
	Parents     []string
	Kind        string
	Description string
	Size        int64 // what this one alone adds: layers that others stand on are theirs
	InUse       bool
	Shared      bool // an image has it
	Mutable     bool
	Created     time.Time
	LastUsed    *time.Time
	UsageCount  int
}

// Other keeps something for builds by itself that counts and is pruned like what is here: git repositories, copies of contexts.
type Other interface {
	// Kept lists it; it is asked after each build.
	Kept(ctx context.Context) ([]Usage, error)
	// Drop removes one; errs.Conflict while a build uses it, errs.NotFound when it is not there.
	Drop(ctx context.Context, id string) error
}

// Join has o counted from now on.
func (c *Cache) Join(o Other) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.others = append(c.others, o)
}

// used is the last use, or the making.
func (u *Usage) used() time.Time {
	if u.LastUsed != nil {
		return *u.LastUsed
	}
	return u.Created
}

// item is a line of usage with what it is of.
type item struct {
	Usage
	key    digest.Digest // of a record
	mut    string        // id of a mutable
	other  Other         // whose it is
	inputs []digest.Digest
	kids   int // records with layers that were made of it
}

// idOf is a record's name for people.
func idOf(key digest.Digest) string {
	hex := key.Encoded()
	return hex[:min(len(hex), 25)]
}

// Usage lists what takes space and fits the filters, the oldest first. Identities take none.
func (c *Cache) Usage(ctx context.Context, filters filter.Args) ([]Usage, error) {
	m, err := compile(filters, c.opts.Now())
	if err != nil {
		return nil, err
	}
	items, err := c.items(ctx)
	if err != nil {
		return nil, fmt.Errorf("usage of the build cache: %w", err)
	}
	all := []Usage{}
	for _, it := range items {
		if m.match(&it.Usage) {
			all = append(all, it.Usage)
		}
	}
	return all, nil
}

// items lists all that takes space, the oldest first.
func (c *Cache) items(ctx context.Context) ([]*item, error) {
	live := c.opts.Images.Live()
	all, outputs := c.recordItems(live)
	if err := c.recordSizes(ctx, all, outputs); err != nil {
		return nil, err
	}
	muts, err := c.mutableItems(ctx)
	if err != nil {
		return nil, err
	}
	all = append(all, muts...)
	c.mu.RLock()
	others := slices.Clone(c.others)
	c.mu.RUnlock()
	for _, o := range others {
		list, err := o.Kept(ctx)
		if err != nil {
			return nil, err
		}
		for _, u := range list {
			all = append(all, &item{Usage: u, other: o})
		}
	}
	slices.SortStableFunc(all, func(a, b *item) int { return a.Created.Compare(b.Created) })
	return all, nil
}

func (c *Cache) recordItems(live func(digest.Digest) bool) (all []*item, outputs [][]snapshot.ChainID) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var entries []*entry
	for _, e := range c.byKey {
		if e.here {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b *entry) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Key, b.Key)) })
	for _, e := range entries {
		used := e.Used
		it := &item{Usage: Usage{ID: idOf(e.Key), Kind: e.Kind, Description: e.Description, InUse: c.refs[e.Key] > 0, Created: e.Created, LastUsed: &used, UsageCount: e.Count},
			key: e.Key, inputs: slices.Compact(slices.Sorted(slices.Values(e.Inputs))), kids: c.kids[e.Key].here}
		if it.Kind == "" {
			it.Kind = "regular"
		}
		for _, in := range it.inputs {
			if p := c.byKey[in]; p != nil && p.here {
				it.Parents = append(it.Parents, idOf(in))
			}
		}
		it.Shared = slices.ContainsFunc(e.Outputs, live)
		all = append(all, it)
		outputs = append(outputs, e.Outputs)
	}
	return all, outputs
}

// recordSizes counts each layer once: for the record that made it, or else the oldest one that stands on it. Layers of the same files count once, too.
func (c *Cache) recordSizes(ctx context.Context, all []*item, outputs [][]snapshot.ChainID) error {
	owner := map[snapshot.ChainID]int{}
	for i := range all {
		for _, chain := range outputs[i] {
			if _, ok := owner[chain]; !ok {
				owner[chain] = i
			}
		}
	}
	counted, files := map[snapshot.ChainID]bool{}, map[string]bool{}
	for i, it := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, chain := range outputs[i] {
			for chain != "" && !counted[chain] {
				if o, ok := owner[chain]; ok && o != i {
					break
				}
				counted[chain] = true
				l, err := c.opts.Layers.Stat(ctx, chain)
				if errors.Is(err, errs.NotFound) {
					break // pruned a moment ago
				}
				if err != nil {
					return err
				}
				if !files[l.Files] {
					files[l.Files] = true
					it.Size += l.Size
				}
				chain = l.Parent
			}
		}
	}
	return nil
}

func (c *Cache) mutableItems(ctx context.Context) (all []*item, err error) {
	c.mu.RLock()
	var recs []mutableRecord
	users := map[string]int{}
	for _, m := range c.muts {
		if m.made {
			recs = append(recs, m.mutableRecord)
			users[m.ID] = m.users
		}
	}
	c.mu.RUnlock()
	for _, rec := range recs {
		size, err := c.mutableSize(ctx, rec)
		if errors.Is(err, errs.NotFound) || errors.Is(err, os.ErrNotExist) {
			continue // pruned a moment ago
		}
		if err != nil {
			return nil, err
		}
		used := rec.Used
		what := map[bool]string{true: "cache mount ", false: "directory of "}[rec.Tree != ""]
		all = append(all, &item{mut: rec.ID, Usage: Usage{ID: rec.ID, Kind: rec.Kind, Description: what + rec.Name, Size: size, InUse: users[rec.ID] > 0, Mutable: true,
			Created: rec.Created, LastUsed: &used, UsageCount: rec.Count}})
	}
	slices.SortFunc(all, func(a, b *item) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// mutableSize takes what was counted last where there is anything, as trees of cache mounts are large.
func (c *Cache) mutableSize(ctx context.Context, rec mutableRecord) (int64, error) {
	if rec.Tree == "" {
		dir, err := os.Open(filepath.Join(c.dirs(), rec.ID))
		if err != nil {
			return 0, err
		}
		size, err := tarfs.Usage(ctx, dir)
		return size, errors.Join(err, dir.Close())
	}
	if size, counted := c.counted(rec); !counted.IsZero() {
		return size, nil
	}
	if rec.Boot == "" && rec.Size > 0 {
		return rec.Size, nil
	}
	return c.opts.Layers.Usage(ctx, rec.Tree)
}
