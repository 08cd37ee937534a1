package travel

import (
	"encoding/json"
	"time"

	v1 "github.com/moby/buildkit/cache/remotecache/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
)

// Bounds of a document.
const (
	maxDocument = 64 << 20
	maxChains   = 200_000
	maxRecords  = 200_000
	maxOutputs  = 1024 // and inputs, of one record
	maxMounts   = 1000
	maxText     = 16 << 10
	version     = 1
)

// document is the cache's config blob.
type document struct {
	v1.CacheConfig
	Own *own `json:"corten.dev/cache,omitempty"`
}

// own is our part. Fields are only ever added.
type own struct {
	Version int      `json:"version"`
	Chains  []link   `json:"chains,omitempty"`
	Records []record `json:"records,omitempty"`
	Mounts  []mount  `json:"mounts,omitempty"`
}

// link is one layer on top of another: a chain. One whose layers nobody has any more has a name only.
type link struct {
	Parent int              `json:"parent"` // position of the chain below, which comes before; -1: none
	Diff   digest.Digest    `json:"diff,omitempty"`
	Name   snapshot.ChainID `json:"name,omitempty"` // without Diff
}

// record is what a step gave.
type record struct {
	Key         digest.Digest   `json:"key"`
	Outputs     []int           `json:"outputs"` // positions of chains; -1 is the empty tree
	Inputs      []digest.Digest `json:"inputs,omitempty"`
	Description string          `json:"description,omitempty"`
	Kind        string          `json:"kind,omitempty"`
	Created     time.Time       `json:"created"`
	Taken       time.Duration   `json:"taken,omitempty"`
}

// mount is what a cache mount held.
type mount struct {
	ID    string `json:"id"`
	Base  int    `json:"base"`  // the chain that it began with; -1: none
	Chain int    `json:"chain"` // the base and what was written since
}

// cache is a document that was read, verified as far as it can be by itself.
type cache struct {
	own    own
	chains []snapshot.ChainID // by the diff ids
	depth  []int
	keys   map[digest.Digest]*record
	// blobs are the layers that the place has, by diff id.
	blobs map[digest.Digest]ocispec.Descriptor
}

// read verifies a document. One of BuildKit's has nothing for us.
func read(raw []byte) (*cache, error) {
	if len(raw) > maxDocument {
		return nil, errs.New(errs.Invalid, "cache document has %d bytes, more than %d", len(raw), maxDocument)
	}
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, errs.New(errs.Invalid, "cache document: %w", err)
	}
	c := &cache{keys: map[digest.Digest]*record{}, blobs: map[digest.Digest]ocispec.Descriptor{}}
	if doc.Own == nil {
		return c, nil
	}
	c.own = *doc.Own
	if c.own.Version != version {
		return nil, errs.New(errs.Invalid, "cache document of version %d: this engine knows %d", c.own.Version, version)
	}
	if err := c.readChains(); err != nil {
		return nil, err
	}
	if err := c.readRecords(); err != nil {
		return nil, err
	}
	for _, l := range doc.Layers {
		if a := l.Annotations; a != nil && valid(a.DiffID) {
			d := ocispec.Descriptor{MediaType: a.MediaType, Digest: l.Blob, Size: a.Size}
			if manifest.Check(d) == nil {
				c.blobs[a.DiffID] = d
			}
		}
	}
	return c, nil
}

func valid(d digest.Digest) bool { return d.Validate() == nil && d.Algorithm() == digest.SHA256 }

// readChains computes the chains from the diff ids. A chain stands on an earlier one only, so that there are no cycles.
func (c *cache) readChains() error {
	if n := len(c.own.Chains); n > maxChains {
		return errs.New(errs.Invalid, "cache document has %d chains, more than %d", n, maxChains)
	}
	for i, l := range c.own.Chains {
		if l.Parent < -1 || l.Parent >= i {
			return errs.New(errs.Invalid, "cache document: chain %d stands on %d", i, l.Parent)
		}
		var parent snapshot.ChainID
		depth := 1
		if l.Parent >= 0 {
			parent, depth = c.chains[l.Parent], c.depth[l.Parent]+1
		}
		switch {
		case l.Diff == "" && l.Parent < 0 && valid(l.Name):
			c.chains, c.depth = append(c.chains, l.Name), append(c.depth, manifest.MaxLayers+1) // nothing can be brought
			continue
		case !valid(l.Diff) || l.Name != "":
			return errs.New(errs.Invalid, "cache document: chain %d has no sha256 digest", i)
		}
		c.chains, c.depth = append(c.chains, snapshot.ChainOf(parent, l.Diff)), append(c.depth, depth)
	}
	return nil
}

func (c *cache) readRecords() error {
	if n := len(c.own.Records); n > maxRecords {
		return errs.New(errs.Invalid, "cache document has %d records, more than %d", n, maxRecords)
	}
	for i := range c.own.Records {
		rec := &c.own.Records[i]
		if !valid(rec.Key) || c.keys[rec.Key] != nil {
			return errs.New(errs.Invalid, "cache document: key %q of record %d is none, or there twice", rec.Key, i)
		}
		if len(rec.Outputs) > maxOutputs || len(rec.Inputs) > maxOutputs || len(rec.Description) > maxText || len(rec.Kind) > maxText || rec.Taken < 0 {
			return errs.New(errs.Invalid, "cache document: record %d is too large", i)
		}
		for _, at := range rec.Outputs {
			if at < -1 || at >= len(c.chains) {
				return errs.New(errs.Invalid, "cache document: record %d names chain %d of %d", i, at, len(c.chains))
			}
		}
		for _, in := range rec.Inputs {
			if in != "" && !valid(in) {
				return errs.New(errs.Invalid, "cache document: record %d has the input %q", i, in)
			}
		}
		c.keys[rec.Key] = rec
	}
	if n := len(c.own.Mounts); n > maxMounts {
		return errs.New(errs.Invalid, "cache document has %d mounts, more than %d", n, maxMounts)
	}
	for _, m := range c.own.Mounts {
		for _, at := range []int{m.Base, m.Chain} {
			if at < -1 || at >= len(c.chains) {
				return errs.New(errs.Invalid, "cache document: mount %q names chain %d of %d", m.ID, at, len(c.chains))
			}
		}
		if m.ID == "" || len(m.ID) > maxText {
			return errs.New(errs.Invalid, "cache document: a mount without an id, or with one of %d bytes", len(m.ID))
		}
	}
	return nil
}

// chain gives the chain at a position.
func (c *cache) chain(at int) snapshot.ChainID {
	if at < 0 {
		return ""
	}
	return c.chains[at]
}

// layer is one layer of a chain that is to be brought.
type layer struct {
	diff  digest.Digest
	chain snapshot.ChainID
}

// layers lists those of a chain, lowest first; nil when they are not known, or too many.
func (c *cache) layers(at int) []layer {
	if at < 0 || c.depth[at] > manifest.MaxLayers {
		return nil
	}
	all := make([]layer, c.depth[at])
	for i := len(all) - 1; i >= 0; i-- {
		all[i] = layer{c.own.Chains[at].Diff, c.chains[at]}
		at = c.own.Chains[at].Parent
	}
	return all
}
