package travel

import (
	"context"
	"errors"
	"slices"

	v1 "github.com/moby/buildkit/cache/remotecache/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// collector makes a document of the steps of results.
type collector struct {
	ctx   context.Context
	trees Trees
	cache build.Cache
	// old is what the place has: it knows the diff ids of chains whose layers are gone here. May be nil.
	old *cache

	own   own
	at    map[snapshot.ChainID]int
	keys  map[digest.Digest]bool
	here  []snapshot.ChainID // outputs whose layers are here
	walks []solve.Step       // all steps, for their cache mounts
	older map[snapshot.ChainID]int
}

func newCollector(ctx context.Context, c *Caches, old *cache) *collector {
	col := &collector{ctx: ctx, trees: c.opts.Trees, cache: c.opts.Cache, old: old, own: own{Version: version}, at: map[snapshot.ChainID]int{"": -1}, keys: map[digest.Digest]bool{},
		older: map[snapshot.ChainID]int{}}
	if old != nil {
		for i, chain := range old.chains {
			col.older[chain] = i
		}
	}
	return col
}

// add notes a step, if a record says the same of its key: what a step gave that read files while they changed has none.
func (c *collector) add(step solve.Step) error {
	c.walks = append(c.walks, step)
	if step.Source || step.Key == "" || c.keys[step.Key] {
		return nil
	}
	rec, ok, err := c.cache.Lookup(c.ctx, step.Key)
	if err != nil || !ok || len(rec.Outputs) < len(step.Outputs) || len(rec.Outputs) > maxOutputs {
		return err
	}
	for i, out := range step.Outputs {
		if out.Files != nil || out.Chain != rec.Outputs[i] {
			return nil
		}
	}
	kept := record{Key: step.Key, Inputs: step.Inputs, Description: clip(rec.Description), Kind: rec.Kind, Created: rec.Created, Taken: max(rec.Taken, 0)}
	for _, chain := range rec.Outputs {
		at, err := c.chain(chain)
		if err != nil {
			return err
		}
		kept.Outputs = append(kept.Outputs, at)
	}
	c.keys[step.Key] = true
	c.own.Records = append(c.own.Records, kept)
	return nil
}

func clip(s string) string { return s[:min(len(s), maxText)] }

// chain notes a chain, with all below it.
func (c *collector) chain(chain snapshot.ChainID) (int, error) {
	if at, known := c.at[chain]; known {
		return at, nil
	}
	// From the top down, without recursion: a chain may be long.
	var missing []link
	var names []snapshot.ChainID
	parent := 0
	for top := chain; ; {
		at, known := c.at[top]
		if known {
			parent = at
			break
		}
		l, below, err := c.below(top)
		if err != nil {
			return 0, err
		}
		missing, names = append(missing, l), append(names, top)
		if l.Diff == "" {
			parent = -1
			break
		}
		top = below
	}
	for i := len(missing) - 1; i >= 0; i-- {
		missing[i].Parent = parent
		parent = len(c.own.Chains)
		c.at[names[i]] = parent
		c.own.Chains = append(c.own.Chains, missing[i])
	}
	return parent, nil
}

// below finds out what the topmost layer of a chain is: from the layer itself, or from what the place knew.
func (c *collector) below(chain snapshot.ChainID) (link, snapshot.ChainID, error) {
	l, err := c.trees.Stat(c.ctx, chain)
	if err == nil {
		c.here = append(c.here, chain)
		return link{Diff: l.DiffID}, l.Parent, nil
	}
	if !errors.Is(err, errs.NotFound) {
		return link{}, "", err
	}
	if at, known := c.older[chain]; known && c.old.own.Chains[at].Diff != "" {
		return link{Diff: c.old.own.Chains[at].Diff}, c.old.chain(c.old.own.Chains[at].Parent), nil
	}
	return link{Name: chain}, "", nil
}

// diffs lists the diff ids of a chain, lowest first.
func (c *collector) diffs(chain snapshot.ChainID) (all []digest.Digest) {
	for at := c.at[chain]; at >= 0; at = c.own.Chains[at].Parent {
		all = append(all, c.own.Chains[at].Diff)
	}
	slices.Reverse(all)
	return all
}

// tops are the chains of a set that no other one of it stands on.
func (c *collector) tops(set []snapshot.ChainID) (tops []snapshot.ChainID) {
	under := map[int]bool{}
	for _, chain := range set {
		if at := c.at[chain]; at >= 0 {
			for at = c.own.Chains[at].Parent; at >= 0 && !under[at]; at = c.own.Chains[at].Parent {
				under[at] = true
			}
		}
	}
	seen := map[snapshot.ChainID]bool{"": true}
	for _, chain := range set {
		if !seen[chain] && !under[c.at[chain]] {
			tops = append(tops, chain)
		}
		seen[chain] = true
	}
	return tops
}

// document writes it all down. blobs are the layers that the place has, by diff id.
func (c *collector) document(blobs map[digest.Digest]ocispec.Descriptor) (doc document, layers []ocispec.Descriptor) {
	own := c.own
	doc.Own = &own
	position := map[int]int{} // of a chain among the layers
	seen := map[digest.Digest]bool{}
	for at, l := range own.Chains {
		d, ok := blobs[l.Diff]
		if !ok || l.Diff == "" {
			continue
		}
		parent := -1
		if below, ok := position[l.Parent]; ok {
			parent = below
		}
		position[at] = len(doc.Layers)
		doc.Layers = append(doc.Layers, v1.CacheLayer{Blob: d.Digest, ParentIndex: parent, Annotations: &v1.LayerAnnotations{MediaType: d.MediaType, DiffID: l.Diff, Size: d.Size}})
		if !seen[d.Digest] {
			seen[d.Digest] = true
			d.Annotations = map[string]string{"containerd.io/uncompressed": l.Diff.String()}
			layers = append(layers, d)
		}
	}
	index := map[digest.Digest]int{}
	for i, rec := range own.Records {
		index[rec.Key] = i
	}
	for _, rec := range own.Records {
		r := v1.CacheRecord{Digest: rec.Key}
		for _, in := range rec.Inputs {
			if at, ok := index[in]; ok {
				r.Inputs = append(r.Inputs, []v1.CacheInput{{LinkIndex: at}})
			}
		}
		for _, out := range rec.Outputs {
			if at, ok := position[out]; ok {
				r.Results = append(r.Results, v1.CacheResult{LayerIndex: at, CreatedAt: rec.Created})
			}
		}
		doc.Records = append(doc.Records, r)
	}
	return doc, layers
}
