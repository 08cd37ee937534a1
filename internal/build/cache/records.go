package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// Lookup is build.Cache's Lookup. It looks into memory only.
func (c *Cache) Lookup(_ context.Context, key digest.Digest) (build.Record, bool, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.byKey[key]
	if e == nil {
		return build.Record{}, false, nil
	}
	return e.Record, true, nil
}

// Save is build.Cache's Save. It is durable with the next Flush, a few seconds later at the latest. A record whose layers are not here is kept all the same, as an identity.
func (c *Cache) Save(ctx context.Context, rec build.Record) error {
	if err := rec.Key.Validate(); err != nil {
		return errs.New(errs.Invalid, "save a record: key %q: %w", string(rec.Key), err)
	}
	if c.known(rec) {
		return nil
	}
	e := &entry{stored: stored{Record: rec, Used: c.opts.Now(), Count: 1}, here: true}
	if e.Created.IsZero() {
		e.Created = e.Used
	}
	if err := c.hold(ctx, e); err != nil {
		return fmt.Errorf("save record %s: %w", rec.Key, err)
	}
	old, err := c.replace(e)
	if err != nil {
		return errors.Join(fmt.Errorf("save record %s: %w", rec.Key, err), c.letGo(ctx, e.stored))
	}
	if old == nil || c.putOff(old.stored) {
		return nil
	}
	return c.letGo(ctx, old.stored)
}

// putOff keeps what a replaced record held until nobody uses its key: who found it stands on its layers.
func (c *Cache) putOff(rec stored) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refs[rec.Key] == 0 || len(rec.Holds) == 0 {
		return false
	}
	c.replaced[rec.Key] = append(c.replaced[rec.Key], rec)
	return true
}

// known tells whether there is such a record with its layers; then this is only a use of it.
func (c *Cache) known(rec build.Record) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.byKey[rec.Key]
	if old == nil || !old.here || !slices.Equal(old.Outputs, rec.Outputs) || !slices.Equal(old.Inputs, rec.Inputs) || old.Kind != rec.Kind || old.Description != rec.Description {
		return false
	}
	c.use(old)
	return true
}

// use counts a use. It needs mu.
func (c *Cache) use(e *entry) {
	e.Count++
	c.touch(e)
}

func (c *Cache) touch(e *entry) {
	e.Used = c.opts.Now()
	c.touched[e.Key] = true
	c.soon()
}

// hold holds the outputs, all of them or none. Names are used once, so that who releases the holds of a record never meets those of the next one under its key.
func (c *Cache) hold(ctx context.Context, e *entry) error {
	e.Holds = make([]string, len(e.Outputs))
	for i, chain := range e.Outputs {
		if chain == "" {
			continue
		}
		name := holdPrefix + newID()
		err := c.opts.Layers.Hold(ctx, name, chain)
		if err == nil {
			e.Holds[i] = name
			continue
		}
		err = errors.Join(err, c.release(ctx, e.Holds))
		e.Holds, e.here = nil, false
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		return err
	}
	return nil
}

func (c *Cache) release(ctx context.Context, holds []string) (err error) {
	for _, name := range holds {
		if name != "" {
			err = errors.Join(err, c.opts.Layers.Release(ctx, name))
		}
	}
	return err
}

// letGo releases what a record held, and removes the layers that nobody else needs.
func (c *Cache) letGo(ctx context.Context, recs ...stored) (err error) {
	var chains []snapshot.ChainID
	for _, rec := range recs {
		if len(rec.Holds) == 0 {
			continue
		}
		err = errors.Join(err, c.release(ctx, rec.Holds))
		chains = append(chains, rec.Outputs...)
	}
	if len(chains) > 0 {
		c.opts.Images.DropLayers(chains...)
	}
	return err
}

// replace writes and shows a record, and gives the one it replaces.
func (c *Cache) replace(e *entry) (old *entry, err error) {
	c.order.Lock()
	defer c.order.Unlock()
	if err := c.records.Put(e.Key.String(), e.stored); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old = c.byKey[e.Key]
	c.set(e.Key, e)
	c.soon()
	return old, nil
}

// set puts a record in place of the one under its key; nil: none. It needs mu.
func (c *Cache) set(key digest.Digest, e *entry) {
	if old := c.byKey[key]; old != nil {
		c.count(old, -1)
		delete(c.byKey, key)
	}
	if e != nil {
		c.count(e, 1)
		c.byKey[key] = e
	}
}

func (c *Cache) count(e *entry, n int) {
	for _, in := range e.Inputs {
		k := c.kids[in]
		k.all += n
		if e.here {
			k.here += n
		}
		if c.kids[in] = k; k == (kin{}) {
			delete(c.kids, in)
		}
	}
	if !e.here {
		return
	}
	for _, chain := range e.Outputs {
		if c.outputs[chain] += n; c.outputs[chain] == 0 {
			delete(c.outputs, chain)
		}
	}
}

// Use is build.Cache's Use. A key may be used before there is a record.
func (c *Cache) Use(_ context.Context, keys ...digest.Digest) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		c.refs[key]++
		if e := c.byKey[key]; e != nil && c.refs[key] == 1 {
			c.use(e) // a build uses it once, however often it looks
		}
	}
	return sync.OnceFunc(func() {
		if err := c.letGo(context.Background(), c.unuse(keys)...); err != nil {
			c.log.Warn("layers of records that were replaced stay held", "error", err)
		}
	})
}

// unuse ends uses, and gives the replaced records that waited for that.
func (c *Cache) unuse(keys []digest.Digest) (gone []stored) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		if c.refs[key]--; c.refs[key] > 0 {
			continue
		}
		delete(c.refs, key)
		if e := c.byKey[key]; e != nil {
			c.touch(e)
		}
		gone = append(gone, c.replaced[key]...)
		delete(c.replaced, key)
	}
	return gone
}

// pin is a hold that builds share.
type pin struct {
	users int
	name  string
	ready chan struct{} // closed when it is held, or cannot be
}

// Pin keeps layers that belong to no record (those of a base image that may be removed meanwhile) until release. A chain that is not here is kept from nothing.
func (c *Cache) Pin(chain snapshot.ChainID) (release func()) {
	if chain == "" {
		return func() {}
	}
	c.mu.Lock()
	p := c.pins[chain]
	first := p == nil
	if first {
		p = &pin{name: holdPrefix + newID(), ready: make(chan struct{})}
		c.pins[chain] = p
	}
	p.users++
	c.mu.Unlock()
	if first {
		if err := c.opts.Layers.Hold(context.Background(), p.name, chain); err != nil && !errors.Is(err, errs.NotFound) {
			c.log.Warn("layers that a build uses cannot be held", "chain", chain, "error", err)
		}
		close(p.ready)
	}
	<-p.ready
	return sync.OnceFunc(func() { c.unpin(chain, p) })
}

func (c *Cache) unpin(chain snapshot.ChainID, p *pin) {
	c.mu.Lock()
	if p.users--; p.users > 0 {
		c.mu.Unlock()
		return
	}
	delete(c.pins, chain)
	c.mu.Unlock()
	if err := c.opts.Layers.Release(context.Background(), p.name); err != nil {
		c.log.Warn("layers that a build used stay held", "chain", chain, "error", err)
		return
	}
	// Asked after the release: a record that is forgotten before it finds the layer pinned and leaves it to us; one that is forgotten later finds it free.
	c.mu.RLock()
	recorded := c.outputs[chain] > 0
	c.mu.RUnlock()
	if !recorded {
		c.opts.Images.DropLayers(chain)
	}
}
