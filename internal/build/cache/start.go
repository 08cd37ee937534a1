package cache

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// loadRecords compares the records with the holds and layers that are there. Holds without a record are of builds that were killed.
func (c *Cache) loadRecords(ctx context.Context, all map[string]stored) error {
	holds := map[string]snapshot.ChainID{}
	err := c.opts.Layers.Holds(ctx, func(name string, chain snapshot.ChainID) error {
		if strings.HasPrefix(name, holdPrefix) {
			holds[name] = chain
		}
		return nil
	})
	if err != nil {
		return err
	}
	lost := 0
	for name, rec := range all {
		key := digest.Digest(name)
		if key.Validate() != nil || key != rec.Key {
			c.log.Warn("a record of the build cache is not one", "name", name)
			continue
		}
		e := &entry{stored: rec, here: len(rec.Holds) == len(rec.Outputs)}
		for i, chain := range rec.Outputs {
			e.here = e.here && (chain == "" || rec.Holds[i] != "" && holds[rec.Holds[i]] == chain)
		}
		if !e.here && len(rec.Holds) > 0 {
			lost++
			e.Holds = nil // what is left of them is released below
		}
		if e.here {
			for _, hold := range rec.Holds {
				delete(holds, hold)
			}
		}
		c.set(key, e)
	}
	if lost > 0 {
		c.log.Info("layers of the build cache are gone; the records stay as identities", "records", lost)
	}
	if len(holds) == 0 {
		return nil
	}
	c.log.Info("layers of builds that were cut off are let go", "holds", len(holds))
	var chains []snapshot.ChainID
	for name, chain := range holds {
		if err := c.opts.Layers.Release(ctx, name); err != nil {
			return err
		}
		chains = append(chains, chain)
	}
	c.opts.Images.DropLayers(chains...)
	return nil
}

// loadMutables compares the mutables with the trees and directories that are there.
func (c *Cache) loadMutables(ctx context.Context, all map[string]mutableRecord) error {
	trees := map[string]string{} // key to id
	err := c.opts.Layers.Walk(ctx, func(key string, labels map[string]string) error {
		if id := labels[label]; id != "" {
			trees[key] = id
		}
		return nil
	})
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(c.dirs())
	if err != nil {
		return err
	}
	dirs := map[string]bool{}
	for _, e := range entries {
		dirs[e.Name()] = true
	}
	for id, rec := range all {
		why := ""
		switch {
		case rec.Boot != "" && rec.Boot != c.boot:
			why = "it may have lost a part of its files when the host went down"
		case rec.Tree != "" && trees[rec.Tree] != id, rec.Tree == "" && !dirs[id]:
			why = "its files are gone"
		}
		if why != "" {
			c.log.Info("a cache mount or directory of builds begins anew", "kind", rec.Kind, "name", rec.Name, "why", why)
			if err := c.mutables.Delete(id); err != nil {
				c.log.Warn("a cache mount that is gone stays recorded", "id", id, "error", err)
			}
			continue
		}
		delete(trees, rec.Tree)
		delete(dirs, id)
		c.addMutable(&mutable{mutableRecord: rec, made: true, ready: closed()})
	}
	for key := range trees {
		if err := c.opts.Layers.Remove(ctx, key); err != nil {
			c.log.Warn("the tree of a cache mount stays", "tree", key, "error", err)
		}
	}
	for id := range dirs {
		c.removeDir(id)
	}
	return nil
}

func closed() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}

// removeDir deletes a directory, in the background.
func (c *Cache) removeDir(id string) {
	c.work.Go(func() {
		if err := os.RemoveAll(filepath.Join(c.dirs(), id)); err != nil {
			c.log.Warn("a directory of the build cache stays until the next start", "id", id, "error", err)
		}
	})
}

// trim forgets identities beyond their bounds, the longest unused first.
func (c *Cache) trim() {
	c.mu.RLock()
	type identity struct {
		key digest.Digest
		e   stored
	}
	var all []identity
	for key, e := range c.byKey {
		if !e.here {
			all = append(all, identity{key, e.stored})
		}
	}
	c.mu.RUnlock()
	slices.SortFunc(all, func(a, b identity) int { return cmp.Or(a.e.Used.Compare(b.e.Used), cmp.Compare(a.key, b.key)) })
	old := c.opts.Now().Add(-IdentityAge)
	for i, it := range all {
		if len(all)-i <= MaxIdentities && it.e.Used.After(old) {
			return
		}
		if _, err := c.forget(it.key, false); err != nil && !errors.Is(err, errs.Conflict) {
			c.log.Warn("an old record of the build cache stays", "key", it.key, "error", err)
		}
	}
}
