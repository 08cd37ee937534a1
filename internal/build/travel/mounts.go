package travel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/tarfs"
	"corten.dev/corten/internal/task"
)

// Cache mounts travel when they are asked for (mounts=true, or their ids): what a mount holds goes as a layer on the tree that it began with, with a record by the mount's id. It comes
// back into a mount of that id that is empty here; what is here is never replaced, for it is newer.

// used is a cache mount of a step.
type used struct {
	id   string
	base snapshot.ChainID
}

// mountsOf finds the cache mounts of steps.
func mountsOf(steps []solve.Step, choice mountChoice) (all []used) {
	outputs := map[string]build.Output{}
	for _, s := range steps {
		for n, out := range s.Outputs {
			outputs[fmt.Sprint(s.Vertex.Digest, n)] = out
		}
	}
	seen := map[used]bool{}
	for _, s := range steps {
		exec := s.Vertex.Op.GetExec()
		if exec == nil {
			continue
		}
		for _, m := range exec.Mounts {
			if m.MountType != pb.MountType_CACHE || m.CacheOpt == nil || !choice.has(m.CacheOpt.ID) {
				continue
			}
			u := used{id: m.CacheOpt.ID}
			if n := int(m.Input); n >= 0 && n < len(s.Vertex.Inputs) && m.Selector == "" {
				in := s.Vertex.Inputs[n]
				u.base = outputs[fmt.Sprint(in.Vertex.Digest, in.Index)].Chain
			} else if m.Selector != "" {
				continue // it begins with a part of a tree, which has no chain of its own
			}
			if !seen[u] {
				seen[u] = true
				all = append(all, u)
			}
		}
	}
	return all
}

// collectMounts makes layers of cache mounts. What it made stays until drop.
func (c *Caches) collectMounts(ctx context.Context, p *place, col *collector, job Job) (drop func(), err error) {
	var made []snapshot.ChainID
	drop = func() {
		if len(made) > 0 {
			c.opts.Images.DropLayers(made...)
		}
	}
	if !p.mounts.any() || c.opts.Mounts == nil {
		return drop, nil
	}
	for _, u := range mountsOf(col.walks, p.mounts) {
		job.say("cache mount "+u.id, false)
		chain, err := c.layerOf(ctx, u)
		if err != nil {
			return drop, fmt.Errorf("cache mount %s: %w", u.id, err)
		}
		if chain == "" || chain == u.base {
			continue
		}
		made = append(made, chain)
		at, err := col.chain(chain)
		if err != nil {
			return drop, err
		}
		base, err := col.chain(u.base)
		if err != nil {
			return drop, err
		}
		col.own.Mounts = append(col.own.Mounts, mount{ID: u.id, Base: base, Chain: at})
		job.say("cache mount "+u.id, true)
	}
	return drop, nil
}

// layerOf makes a layer of what a mount holds now.
func (c *Caches) layerOf(ctx context.Context, u used) (snapshot.ChainID, error) {
	key, release, err := c.opts.Mounts.Acquire(ctx, u.id, u.base, pb.CacheSharingOpt_SHARED)
	if err != nil {
		return "", err
	}
	defer release()
	if has, err := c.opts.Trees.Changes(ctx, key); err != nil || len(has) == 0 {
		return "", err
	}
	l, err := c.opts.Trees.Commit(ctx, key)
	return l.Chain, err
}

// restore fills the cache mounts that are empty here. What cannot be had is warned of: a build is right without it.
func (c *Caches) restore(ctx context.Context, i *imported) {
	if c.opts.Mounts == nil {
		return
	}
	var all sync.WaitGroup
	for _, m := range i.cache.own.Mounts {
		if !i.p.mounts.has(m.ID) {
			continue
		}
		all.Go(func() {
			defer task.Contain(c.opts.Log, "fill a cache mount", nil)
			part := "cache mount " + m.ID
			i.job.say(part, false)
			if err := c.fill(ctx, i, m); err != nil && ctx.Err() == nil {
				i.job.warn("cache mount %s is not filled from %s: %v", m.ID, i.p, err)
			}
			i.job.say(part, true)
		})
	}
	all.Wait()
}

// fill brings the content of a mount here and unpacks it.
func (c *Caches) fill(ctx context.Context, i *imported, m mount) error {
	layers := i.cache.layers(m.Chain)
	base := i.cache.chain(m.Base)
	if len(layers) == 0 || m.Base >= 0 && m.Chain >= 0 && i.cache.own.Chains[m.Chain].Parent != m.Base || m.Base < 0 && len(layers) != 1 {
		return errs.New(errs.Invalid, "it does not stand on the tree that it began with")
	}
	if base != "" {
		if _, err := c.opts.Trees.Stat(ctx, base); err != nil {
			return fmt.Errorf("the tree that it began with: %w", err)
		}
	}
	key, release, err := c.opts.Mounts.Acquire(ctx, m.ID, base, pb.CacheSharingOpt_LOCKED)
	if err != nil {
		return err
	}
	defer release()
	if has, err := c.opts.Trees.Changes(ctx, key); err != nil || len(has) > 0 {
		return err // what is here is newer
	}
	return i.fetch(ctx, i.cache, layers, i.progress(), func(ctx context.Context) error { return c.unpack(ctx, key, layers[len(layers)-1].chain) })
}

// progress is the job's, or one that says nothing.
func (i *imported) progress() build.Progress {
	if i.job.Progress != nil {
		return i.job.Progress
	}
	return silent{}
}

type silent struct{}

func (silent) Log(int, []byte)                   {}
func (silent) Status(string, int64, int64, bool) {}
func (silent) Warn(build.Warning)                {}

// unpack copies the files of a chain into a mount's tree.
func (c *Caches) unpack(ctx context.Context, key string, from snapshot.ChainID) (err error) {
	tree, err := c.opts.Trees.Mount(ctx, key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	view, err := c.opts.Trees.View(ctx, from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	// The roots are mere handles: their own attributes are read and set by descriptors that are more.
	to, err := safefs.Reopen(tree.Root, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer to.Close()
	root, err := safefs.Reopen(view.Root, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer root.Close()
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		defer func() { pw.CloseWithError(err) }()
		defer task.Contain(c.opts.Log, "read a cache mount", &err)
		err = tarfs.Write(ctx, root, pw, tarfs.WriteOptions{Root: true})
	}()
	_, err = tarfs.Extract(ctx, to, pr, tarfs.Options{})
	pr.CloseWithError(errors.New("unpacking has ended"))
	<-done
	return err
}
