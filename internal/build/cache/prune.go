package cache

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
)

// PruneOptions choose what goes. Fields are those of the engine's PruneOptions, in its order.
type PruneOptions struct {
	// All: also what the engine made for itself, frontends, and what an image has (which frees nothing).
	All bool
	// Filters: see compile.
	Filters filter.Args
	// KeepDuration keeps what was used since.
	KeepDuration time.Duration
	// The bounds, in bytes. Everything that was chosen goes, the longest unused first, until what the cache alone takes is no more than MaxUsed, and the file system has MinFree; but not below
	// Reserved. Only Reserved: until no more than that is left. None: all that was chosen.
	Reserved, MaxUsed, MinFree int64
}

func (o PruneOptions) bounded() bool { return o.Reserved > 0 || o.MaxUsed > 0 || o.MinFree > 0 }

// keep is how many bytes may stay.
func (o PruneOptions) keep(total, free int64) int64 {
	if !o.bounded() {
		return 0
	}
	keep := total
	if o.MaxUsed == 0 && o.MinFree == 0 {
		keep = o.Reserved
	}
	if o.MaxUsed > 0 {
		keep = min(keep, o.MaxUsed)
	}
	if o.MinFree > 0 && free < o.MinFree {
		keep = min(keep, total-(o.MinFree-free))
	}
	return max(keep, o.Reserved)
}

// Prune removes what options choose and nobody uses. What others were made of goes after them: without it they would not be found. each is told what went; space is what that frees. With bounds, the
// records stay as identities.
func (c *Cache) Prune(ctx context.Context, opts PruneOptions, each func(Usage)) (space int64, err error) {
	now := c.opts.Now()
	m, err := compile(opts.Filters, now)
	if err != nil {
		return 0, err
	}
	c.pruning.Lock()
	defer c.pruning.Unlock()
	p := &pruning{c: c, opts: opts, match: m, before: now.Add(-opts.KeepDuration), each: each, byKey: map[digest.Digest]*item{}, frees: map[*item]bool{}}
	if err := p.begin(ctx); err != nil {
		return 0, fmt.Errorf("prune build cache: %w", err)
	}
	err = p.run(ctx)
	if err == nil && opts.All && len(opts.Filters) == 0 && opts.KeepDuration == 0 && !opts.bounded() {
		err = c.forgetIdentities()
	}
	if err != nil {
		err = fmt.Errorf("prune build cache: %w", err)
	}
	c.trim()
	return p.space, err
}

// pruning is one call of Prune.
type pruning struct {
	c      *Cache
	opts   PruneOptions
	match  matcher
	before time.Time
	each   func(Usage)
	byKey  map[digest.Digest]*item
	frees  map[*item]bool
	queue  queue
	total  int64
	keep   int64
	space  int64
}

func (p *pruning) begin(ctx context.Context) error {
	items, err := p.c.items(ctx)
	if err != nil {
		return err
	}
	for _, it := range items {
		if it.key != "" {
			p.byKey[it.key] = it
		}
		if !it.Shared {
			p.total += it.Size
		}
	}
	var free int64
	if p.opts.MinFree > 0 {
		if free, _, err = p.c.space(); err != nil {
			return err
		}
	}
	p.keep = p.opts.keep(p.total, free)
	for _, it := range items {
		p.offer(it)
	}
	return nil
}

// offer queues an item that may go now.
func (p *pruning) offer(it *item) {
	switch {
	case it.InUse, it.kids > 0, !p.match.match(&it.Usage), p.opts.KeepDuration > 0 && it.used().After(p.before):
		return
	case !p.opts.All && (it.Shared || it.Kind == "internal" || it.Kind == "frontend"):
		return
	}
	heap.Push(&p.queue, it)
}

func (p *pruning) run(ctx context.Context) error {
	for p.queue.Len() > 0 && (!p.opts.bounded() || p.total > p.keep) {
		if err := ctx.Err(); err != nil {
			return err
		}
		it := heap.Pop(&p.queue).(*item)
		if p.opts.bounded() && !p.helps(it) {
			continue
		}
		gone, err := p.remove(ctx, it)
		if errors.Is(err, errs.Conflict) {
			continue // used, or made anew, since it was listed
		}
		if err != nil {
			return err
		}
		if !gone {
			continue
		}
		if !it.Shared {
			p.total -= it.Size
			p.space += it.Size
		}
		p.c.log.Info("pruned from the build cache", "id", it.ID, "kind", it.Kind, "bytes", it.Size, "what", it.Description)
		if p.each != nil {
			p.each(it.Usage)
		}
		for _, in := range it.inputs {
			if up := p.byKey[in]; up != nil {
				if up.kids--; up.kids == 0 {
					p.offer(up)
				}
			}
		}
	}
	return nil
}

// helps tells whether it frees something when an item goes, or what can only go after it does.
func (p *pruning) helps(it *item) bool {
	if known, ok := p.frees[it]; ok {
		return known
	}
	frees := !it.Shared && it.Size > 0
	p.frees[it] = frees
	for _, in := range it.inputs {
		if up := p.byKey[in]; up != nil && p.helps(up) {
			frees = true
		}
	}
	p.frees[it] = frees
	return frees
}

func (p *pruning) remove(ctx context.Context, it *item) (bool, error) {
	if it.other != nil {
		err := it.other.Drop(ctx, it.ID)
		if errors.Is(err, errs.NotFound) {
			return false, nil
		}
		return err == nil, err
	}
	if it.mut != "" {
		return p.c.removeMutable(ctx, it.mut)
	}
	rec, err := p.c.forget(it.key, p.opts.bounded())
	if err != nil {
		return false, err
	}
	return true, p.c.letGo(ctx, rec)
}

// forget takes a record out, or its layers only; what it held is the caller's. errs.Conflict while it is used. One that others were made of stays as an identity.
func (c *Cache) forget(key digest.Digest, identity bool) (stored, error) {
	c.order.Lock()
	defer c.order.Unlock()
	c.mu.RLock()
	e := c.byKey[key]
	busy := c.refs[key] > 0 || c.kids[key].here > 0
	identity = identity || c.kids[key].all > 0
	c.mu.RUnlock()
	if e == nil || busy {
		return stored{}, errs.New(errs.Conflict, "record %s is in use", key)
	}
	next := &entry{stored: e.stored}
	next.Holds = nil
	if !identity {
		next = nil
	}
	// Shown first: who looks from here on does not find the layers that are about to go.
	c.mu.Lock()
	if c.refs[key] > 0 { // nothing else changes without the order
		c.mu.Unlock()
		return stored{}, errs.New(errs.Conflict, "record %s is in use", key)
	}
	held := e.stored
	c.set(key, next)
	c.mu.Unlock()
	var err error
	if next == nil {
		err = c.records.Delete(key.String())
	} else if len(held.Holds) > 0 {
		err = c.records.Put(key.String(), next.stored)
	}
	if err != nil {
		// A full disk must not keep its own cure from happening.
		c.log.Warn("what was pruned is still recorded, until the next flush", "key", key, "error", err)
		c.mu.Lock()
		c.touched[key] = true
		c.soon()
		c.mu.Unlock()
	}
	return held, nil
}

// forgetIdentities takes out all records without layers that nobody uses.
func (c *Cache) forgetIdentities() error {
	for again := true; again; {
		again = false
		c.mu.RLock()
		var keys []digest.Digest
		for key, e := range c.byKey {
			if !e.here && c.refs[key] == 0 && c.kids[key].all == 0 {
				keys = append(keys, key)
			}
		}
		c.mu.RUnlock()
		for _, key := range keys {
			if _, err := c.forget(key, false); err != nil && !errors.Is(err, errs.Conflict) {
				return err
			} else if err == nil {
				again = true
			}
		}
	}
	return nil
}

// removeMutable takes a mutable out that nobody uses, with its files.
func (c *Cache) removeMutable(ctx context.Context, id string) (bool, error) {
	c.order.Lock()
	c.mu.Lock()
	m := c.muts[id]
	if m == nil || m.users > 0 || !m.made {
		c.mu.Unlock()
		c.order.Unlock()
		return false, nil
	}
	rec := m.mutableRecord
	c.delMutable(m)
	c.mu.Unlock()
	if err := c.mutables.Delete(id); err != nil {
		c.log.Warn("a cache mount that was pruned is still recorded", "id", id, "error", err)
	}
	c.order.Unlock()
	return true, c.unmake(ctx, rec)
}

// queue is a heap: the longest unused first, then what was used least.
type queue []*item

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return cmp.Or(q[i].used().Compare(q[j].used()), cmp.Compare(q[i].UsageCount, q[j].UsageCount), q[i].Created.Compare(q[j].Created), cmp.Compare(q[i].ID, q[j].ID)) < 0
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*item)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// Rules are the usual ones, for a disk of that many bytes; each is looked at by itself, in this order:
//
//  1. cache mounts, contexts and checkouts, which are easily made again, when nobody used them for two days and the cache takes more than 512 MB
//  2. what nobody used for 60 days
//  3. what no image has
//  4. all
//
// The last three as long as the cache takes more than 60 % of the disk (at most 100 GB), or less than 20 % of it (at most 20 GB) are free; 10 % of the disk (at most 10 GB) are the cache's in any case.
func Rules(total int64) []PruneOptions {
	const mb, gb = 1e6, 1e9
	reserved, used, free := min(total/10, 10*gb), min(total/10*6, 100*gb), min(total/5, 20*gb)
	return []PruneOptions{
		{Filters: filter.Args{"type": {"source.local", KindMount, "source.git.checkout", "source.http"}}, KeepDuration: 48 * time.Hour, MaxUsed: 512 * mb},
		{KeepDuration: 60 * 24 * time.Hour, Reserved: reserved, MaxUsed: used, MinFree: free},
		{Reserved: reserved, MaxUsed: used, MinFree: free},
		{All: true, Reserved: reserved, MaxUsed: used, MinFree: free},
	}
}

// Disk tells the size of the disk that the layers are on, for Rules.
func (c *Cache) Disk() (total int64, err error) {
	_, total, err = c.space()
	return total, err
}
