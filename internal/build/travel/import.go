package travel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"

	v1 "github.com/moby/buildkit/cache/remotecache/v1/types"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

// maxImages bounds how many images of an index are looked at for a cache that they carry.
const maxImages = 32

// Import gives the cache at a place. It is read when it is first asked; what is wrong with it is said then, and the build goes on without it.
func (c *Caches) Import(_ context.Context, from Option, job Job) (solve.Import, error) {
	p, err := parse(from, false)
	if err != nil {
		return nil, err
	}
	return &imported{c: c, p: p, job: job}, nil
}

// imported implements [solve.Import].
type imported struct {
	c   *Caches
	p   *place
	job Job

	mu    sync.Mutex // held over the reading: who asks meanwhile waits for it
	done  bool
	err   error
	from  Source
	cache *cache
}

// get reads the cache once.
func (i *imported) get(ctx context.Context) (_ *cache, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.done {
		return i.cache, i.err
	}
	if i.job.Begin != nil {
		p, done := i.job.Begin("importing cache manifest from " + i.p.String())
		i.job.Progress = p
		defer func() { done(err) }()
	}
	err = i.read(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // whoever asks next tries again
	}
	i.done = true
	if err != nil {
		i.err = fmt.Errorf("cache at %s: %w", i.p, err)
		if i.p.ignoreErrors {
			i.cache, i.err = &cache{}, nil
			i.job.warn("cache at %s is left out: %v", i.p, err)
		}
		return i.cache, i.err
	}
	if i.p.mounts.any() {
		i.c.restore(ctx, i)
	}
	return i.cache, nil
}

func (i *imported) read(ctx context.Context) (err error) {
	if i.from, _, err = i.c.reach(ctx, i.p, i.job.Session); err != nil {
		return err
	}
	i.cache, err = i.c.load(ctx, i.from, i.p.tagOrDigest())
	return err
}

// load reads and verifies the cache that a name leads to.
func (c *Caches) load(ctx context.Context, from Source, name string) (*cache, error) {
	root, err := from.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	if root.Manifest != nil && root.Manifest.Config.MediaType == v1.CacheConfigMediaTypeV0 {
		return loadDocument(ctx, from, root.Manifest.Config, root.Manifest.Layers)
	}
	if root.Index == nil {
		return loadInline(ctx, from, []manifest.Document{root})
	}
	var images []manifest.Document
	for _, d := range root.Index.Manifests {
		if d.MediaType == v1.CacheConfigMediaTypeV0 {
			return loadDocument(ctx, from, d, root.Index.Manifests)
		}
		if !manifest.IsDocument(d.MediaType) || manifest.IsIndex(d.MediaType) || d.Platform != nil && d.Platform.OS == "unknown" || len(images) == maxImages {
			continue
		}
		doc, err := from.Resolve(ctx, d.Digest.String())
		if err != nil {
			return nil, err
		}
		images = append(images, doc)
	}
	return loadInline(ctx, from, images)
}

// loadDocument reads a cache of its own. Only blobs that the manifest lists count, as it lists them.
func loadDocument(ctx context.Context, from Source, config ocispec.Descriptor, listed []ocispec.Descriptor) (*cache, error) {
	raw, err := from.Blob(ctx, config, maxDocument)
	if err != nil {
		return nil, err
	}
	c, err := read(raw)
	if err != nil {
		return nil, err
	}
	known := map[digest.Digest]ocispec.Descriptor{}
	for _, d := range listed {
		known[d.Digest] = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	}
	maps.DeleteFunc(c.blobs, func(_ digest.Digest, d ocispec.Descriptor) bool { return known[d.Digest].Digest == "" })
	for diff, d := range c.blobs {
		c.blobs[diff] = known[d.Digest]
	}
	return c, nil
}

// loadInline reads what the configs of images carry. Their layers are those of the cache.
func loadInline(ctx context.Context, from Source, images []manifest.Document) (*cache, error) {
	var found *cache
	for _, doc := range images {
		if doc.Manifest == nil || !manifest.IsImageConfig(doc.Manifest.Config.MediaType) {
			continue
		}
		raw, err := from.Blob(ctx, doc.Manifest.Config, manifest.MaxConfig)
		if err != nil {
			return nil, err
		}
		var carried struct {
			Cache []byte `json:"moby.buildkit.cache.v0"`
		}
		cfg, err := image.ParseConfig(raw)
		if err == nil {
			err = json.Unmarshal(raw, &carried)
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "config %s: %w", doc.Manifest.Config.Digest, err)
		}
		if carried.Cache == nil {
			continue
		}
		one, err := read(carried.Cache)
		if err != nil {
			return nil, err
		}
		if len(cfg.RootFS.DiffIDs) != len(doc.Manifest.Layers) {
			return nil, errs.New(errs.Invalid, "manifest %s has %d layers, its config %d", doc.Digest, len(doc.Manifest.Layers), len(cfg.RootFS.DiffIDs))
		}
		for n, l := range doc.Manifest.Layers {
			one.blobs[cfg.RootFS.DiffIDs[n]] = ocispec.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}
		}
		found = merge(found, one)
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "it carries no cache")
	}
	return found, nil
}

// merge adds the records of another platform's image.
func merge(a, b *cache) *cache {
	if a == nil {
		return b
	}
	shift := len(a.chains)
	moved := func(at int) int {
		if at < 0 {
			return at
		}
		return at + shift
	}
	for _, l := range b.own.Chains {
		l.Parent = moved(l.Parent)
		a.own.Chains = append(a.own.Chains, l)
	}
	a.chains, a.depth = append(a.chains, b.chains...), append(a.depth, b.depth...)
	for key, rec := range b.keys {
		if a.keys[key] != nil {
			continue
		}
		own := *rec
		own.Outputs = make([]int, len(rec.Outputs))
		for i, at := range rec.Outputs {
			own.Outputs[i] = moved(at)
		}
		a.keys[key] = &own
	}
	maps.Copy(a.blobs, b.blobs)
	return a
}

// Lookup implements [solve.Import].
func (i *imported) Lookup(ctx context.Context, key digest.Digest) (build.Record, []build.Output, bool, error) {
	c, err := i.get(ctx)
	if err != nil {
		return build.Record{}, nil, false, err
	}
	kept := c.keys[key]
	if kept == nil {
		return build.Record{}, nil, false, nil
	}
	rec := build.Record{Key: kept.Key, Inputs: kept.Inputs, Description: kept.Description, Kind: kept.Kind, Created: kept.Created, Taken: kept.Taken}
	for _, at := range kept.Outputs {
		rec.Outputs = append(rec.Outputs, c.chain(at))
	}
	outputs := make([]build.Output, len(kept.Outputs))
	for n, at := range kept.Outputs {
		outputs[n].Chain = rec.Outputs[n]
		layers := c.layers(at)
		ok, err := i.c.canFetch(ctx, c, layers)
		if err != nil {
			return rec, nil, false, err
		}
		if ok {
			outputs[n].Fetch = func(ctx context.Context, p build.Progress) error {
				return i.fetch(ctx, c, layers, p, func(ctx context.Context) error { return i.c.opts.Cache.Save(ctx, rec) })
			}
		}
	}
	return rec, outputs, true, nil
}

// canFetch tells whether the layers can be had: each of them is at the place, or here.
func (c *Caches) canFetch(ctx context.Context, from *cache, layers []layer) (bool, error) {
	if len(layers) == 0 {
		return false, nil
	}
	for _, l := range layers {
		if _, ok := from.blobs[l.diff]; ok {
			continue
		}
		_, err := c.opts.Trees.Stat(ctx, l.chain)
		if errors.Is(err, errs.NotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// fetch brings layers here, as a pull of an image that has them would. keep is called while nothing can take them away.
func (i *imported) fetch(ctx context.Context, c *cache, layers []layer, p build.Progress, keep func(context.Context) error) error {
	cfg := image.Config{OS: "linux", RootFS: image.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIManifest}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diff)
		d, ok := c.blobs[l.diff]
		if !ok {
			d = ocispec.Descriptor{MediaType: manifest.OCILayer, Digest: l.diff} // here: its blob is not asked for
		}
		m.Layers = append(m.Layers, d)
	}
	config, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	m.Config = ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	doc, err := manifest.Parse(m.MediaType, raw)
	if err != nil {
		return err
	}
	if err := i.from.Fetch(ctx, doc, config, p, keep); err != nil {
		return fmt.Errorf("cache at %s: %w", i.p, err)
	}
	return nil
}
