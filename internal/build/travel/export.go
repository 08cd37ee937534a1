package travel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/moby/buildkit/cache/remotecache/v1/types"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
)

// ManifestKey is where the response of an export has the descriptor of the manifest: BuildKit's clients write index.json of a local cache by it.
const ManifestKey = "cache.manifest"

// Export takes the cache of results to a place:
//
//	what the place has is read ─▶ steps to records and chains ─▶ layers sent ─▶ document ─▶ manifest
//
// mode=min sends the layers of the results, mode=max those of all steps that are here; layers that are not here stay known by what the place had of them.
func (c *Caches) Export(ctx context.Context, to Option, results []Result, job Job) (map[string]string, error) {
	p, err := parse(to, true)
	if err != nil {
		return nil, err
	}
	said, err := c.export(ctx, p, results, job)
	if err != nil && p.ignoreErrors && ctx.Err() == nil {
		job.warn("cache is not exported to %s: %v", p, err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("export cache to %s: %w", p, err)
	}
	return said, nil
}

func (j Job) warn(format string, args ...any) {
	if j.Progress != nil {
		j.Progress.Warn(build.Warning{Level: 1, Short: fmt.Appendf(nil, format, args...)})
	}
}

func (j Job) say(id string, done bool) {
	if j.Progress != nil {
		j.Progress.Status(id, 0, 0, done)
	}
}

func (c *Caches) export(ctx context.Context, p *place, results []Result, job Job) (map[string]string, error) {
	if p.kind == "inline" {
		return nil, nil // it went with the image
	}
	from, target, err := c.reach(ctx, p, job.Session)
	if err != nil {
		return nil, err
	}
	job.say("preparing build cache for export", false)
	old, err := c.load(ctx, from, p.tagOrDigest())
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		c.opts.Log.Info("the cache that is replaced cannot be read", "at", p, "err", err)
	}
	col, wanted, err := c.collect(ctx, p, results, old)
	if err != nil {
		return nil, err
	}
	drop, err := c.collectMounts(ctx, p, col, job)
	defer drop()
	if err != nil {
		return nil, err
	}
	for _, m := range col.own.Mounts {
		for chain, at := range col.at {
			if at == m.Chain {
				wanted = append(wanted, chain)
			}
		}
	}
	blobs, err := c.send(ctx, p, col, wanted, target, job)
	if err != nil {
		return nil, err
	}
	if err := keepOld(ctx, col, old, target, blobs); err != nil {
		return nil, err
	}
	doc, layers := col.document(blobs)
	job.say("preparing build cache for export", true)
	return c.write(ctx, p, doc, layers, target, job)
}

// collect walks the results, and tells the chains whose layers are to be sent.
func (c *Caches) collect(ctx context.Context, p *place, results []Result, old *cache) (*collector, []snapshot.ChainID, error) {
	col := newCollector(ctx, c, old)
	var wanted []snapshot.ChainID
	for _, res := range results {
		if err := res.Walk(col.add); err != nil {
			return nil, nil, err
		}
		out, err := res.Bring(ctx)
		if err != nil {
			return nil, nil, err
		}
		if out.Files != nil || out.Chain == "" {
			continue
		}
		if _, err := col.chain(out.Chain); err != nil {
			return nil, nil, err
		}
		wanted = append(wanted, out.Chain)
	}
	if p.max {
		wanted = append(wanted, col.here...)
	}
	return col, wanted, nil
}

// send brings layers to the place, and tells what blobs they are.
func (c *Caches) send(ctx context.Context, p *place, col *collector, wanted []snapshot.ChainID, target Target, job Job) (map[digest.Digest]ocispec.Descriptor, error) {
	blobs := map[digest.Digest]ocispec.Descriptor{}
	for _, chain := range col.tops(wanted) {
		diffs := col.diffs(chain)
		config, err := json.Marshal(image.Config{OS: "linux", RootFS: image.RootFS{Type: "layers", DiffIDs: diffs}})
		if err != nil {
			return nil, err
		}
		out, err := c.opts.Images.SendBuilt(ctx, image.CreateOptions{Config: config, Chain: chain}, p.how)
		if errors.Is(err, errs.NotFound) && p.max {
			continue // collected meanwhile; its record stays
		}
		if err != nil {
			return nil, err
		}
		err = target.PushLayers(ctx, out, job.Progress)
		var doc manifest.Document
		if err == nil {
			doc, err = out.Manifest()
		}
		if err = errors.Join(err, out.Close()); err != nil {
			return nil, err
		}
		for i, l := range doc.Manifest.Layers {
			blobs[diffs[i]] = l
		}
	}
	return blobs, nil
}

// keepOld adds the layers that the place has already and that are not here any more.
func keepOld(ctx context.Context, col *collector, old *cache, target Target, blobs map[digest.Digest]ocispec.Descriptor) error {
	if old == nil {
		return nil
	}
	for _, l := range col.own.Chains {
		d, known := old.blobs[l.Diff]
		if _, sent := blobs[l.Diff]; sent || !known {
			continue
		}
		has, err := target.Has(ctx, d.Digest)
		if err != nil {
			return err
		}
		if has {
			blobs[l.Diff] = d
		}
	}
	return nil
}

// write sends the document, and the manifest that names all of it.
func (c *Caches) write(ctx context.Context, p *place, doc document, layers []ocispec.Descriptor, target Target, job Job) (map[string]string, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	job.say("writing config "+digest.FromBytes(raw).String(), false)
	if err := target.PushBlob(ctx, raw); err != nil {
		return nil, err
	}
	job.say("writing config "+digest.FromBytes(raw).String(), true)
	config := ocispec.Descriptor{MediaType: v1.CacheConfigMediaTypeV0, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	root, err := p.manifest(config, layers)
	if err != nil {
		return nil, err
	}
	tag := p.tag
	if p.kind == "registry" {
		tag = p.ref.Tag
	}
	job.say("writing cache manifest "+root.Digest.String(), false)
	if err := target.PushManifest(ctx, tag, root); err != nil {
		return nil, err
	}
	job.say("writing cache manifest "+root.Digest.String(), true)
	said, err := json.Marshal(ocispec.Descriptor{MediaType: root.MediaType, Digest: root.Digest, Size: int64(len(root.Raw))})
	return map[string]string{ManifestKey: string(said)}, err
}

// manifest lists document and layers, as an image's manifest or as an index.
func (p *place) manifest(config ocispec.Descriptor, layers []ocispec.Descriptor) (manifest.Document, error) {
	var v any
	kind := manifest.OCIManifest
	switch limit := manifest.MaxLayers; {
	case p.asIndex:
		if limit = manifest.MaxEntries - 1; len(layers) > limit {
			return manifest.Document{}, errs.New(errs.Invalid, "%d layers are more than the %d of an index: choose mode=min", len(layers), limit)
		}
		kind = manifest.OCIIndex
		if p.docker {
			kind = manifest.DockerList
			for i := range layers {
				layers[i].MediaType = dockerType(layers[i].MediaType)
			}
		}
		v = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: kind, Manifests: append(layers, config)}
	case len(layers) > limit:
		return manifest.Document{}, errs.New(errs.Invalid, "%d layers are more than the %d of a manifest: choose image-manifest=false or mode=min", len(layers), limit)
	default:
		if layers == nil {
			layers = []ocispec.Descriptor{}
		}
		v = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: kind, Config: config, Layers: layers}
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return manifest.Document{}, err
	}
	return manifest.Parse(kind, raw)
}

// dockerType is Docker's word for a layer's media type.
func dockerType(t string) string {
	if t == manifest.OCILayer {
		return manifest.DockerLayerTar
	}
	return manifest.DockerLayer
}

// Inline gives what the config of an image carries of the cache of its result: the records, without blobs, which are the image's own layers.
func (c *Caches) Inline(ctx context.Context, res Result) ([]byte, error) {
	col, _, err := c.collect(ctx, &place{kind: "inline"}, []Result{res}, nil)
	if err != nil {
		return nil, fmt.Errorf("inline cache: %w", err)
	}
	doc, _ := col.document(nil)
	return json.Marshal(doc)
}
