package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image/recipe"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// outgoing implements [Outgoing].
type outgoing struct {
	s      *Images
	e      *entry
	doc    *manifest.Document // that the image came with; nil for none
	config ocispec.Descriptor
	layers []*outgoingLayer
	held   []loose
	once   sync.Once
}

// Send is Transfers' Send.
func (s *Images) Send(ctx context.Context, ref string, opts SendOptions) ([]Outgoing, *manifest.Document, error) {
	rec, err := recipe.For(opts.Compression)
	if err != nil {
		return nil, nil, err
	}
	if opts.AllPlatforms {
		return s.sendAll(ctx, ref, rec)
	}
	e, err := s.findFor(ctx, ref, opts.Platform)
	if err != nil {
		return nil, nil, err
	}
	out, err := s.send(ctx, e, ref, nil, rec)
	if err != nil {
		return nil, nil, fmt.Errorf("send image %s: %w", ref, err)
	}
	return []Outgoing{out}, nil, nil
}

// sendAll gives the images of an index. The index stays what it is when all of it is here, attestations included; else it is one of what is here.
func (s *Images) sendAll(ctx context.Context, ref string, rec recipe.Recipe) (all []Outgoing, _ *manifest.Document, err error) {
	index, err := s.index(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			for _, out := range all {
				err = errs.Also(err, out.Close())
			}
			all = nil
		}
	}()
	if index == nil {
		e, err := s.findFor(ctx, ref, manifest.Platform{})
		if err != nil {
			return nil, nil, err
		}
		out, err := s.send(ctx, e, ref, nil, rec)
		if err != nil {
			return nil, nil, fmt.Errorf("send image %s: %w", ref, err)
		}
		return []Outgoing{out}, nil, nil
	}
	rest := *index.Index
	rest.Manifests = nil
	images := map[digest.Digest]bool{}
	for _, d := range index.Index.Manifests {
		e, doc := s.byManifest(ctx, d.Digest)
		if e == nil {
			continue
		}
		images[d.Digest] = true
		out, err := s.send(ctx, e, ref, doc, rec)
		if err != nil {
			return all, nil, fmt.Errorf("send image %s: %w", ref, err)
		}
		all = append(all, out)
	}
	if len(all) == 0 {
		return nil, nil, errs.New(errs.NotFound, "send image %s: none of the images of its index is here", ref)
	}
	for _, d := range index.Index.Manifests {
		doc := s.artifact(ctx, d)
		about := digest.Digest(d.Annotations[manifest.AnnotationAbout])
		if !images[d.Digest] && (doc == nil || about != "" && !images[about]) {
			continue
		}
		rest.Manifests = append(rest.Manifests, d)
		if doc == nil || images[d.Digest] {
			continue
		}
		out, err := s.sendArtifact(ctx, doc)
		if err != nil {
			return all, nil, fmt.Errorf("send image %s: %w", ref, err)
		}
		all = append(all, out)
	}
	if len(rest.Manifests) == len(index.Index.Manifests) {
		return all, index, nil
	}
	raw, err := json.Marshal(rest)
	if err != nil {
		return all, nil, err
	}
	doc, err := manifest.Parse(index.MediaType, raw)
	return all, &doc, err
}

// byManifest finds the image that has a manifest.
func (s *Images) byManifest(ctx context.Context, dgst digest.Digest) (*entry, *manifest.Document) {
	s.mu.RLock()
	var found *entry
	for _, e := range s.byID {
		if slices.Contains(e.manifests, dgst) {
			found = e
			break
		}
	}
	s.mu.RUnlock()
	if found == nil {
		return nil, nil
	}
	doc, err := s.document(ctx, dgst)
	if err != nil {
		s.log.Warn("manifest cannot be read", "digest", dgst, "error", err)
		return nil, nil
	}
	return found, doc
}

// document reads a manifest or index from the content room.
func (s *Images) document(ctx context.Context, dgst digest.Digest) (*manifest.Document, error) {
	raw, err := s.blobs.Read(ctx, dgst, manifest.MaxSize)
	if err != nil {
		return nil, err
	}
	doc, err := manifest.Parse("", raw)
	if err != nil {
		return nil, err
	}
	return &doc, nil
}

// manifestFor chooses among the manifests of an image the one that the repository knows it by, else the latest.
func (s *Images) manifestFor(ctx context.Context, e *entry, ref string) *manifest.Document {
	list := slices.Clone(e.manifests)
	if r, err := reference.Parse(ref); err == nil {
		r.Tag = ""
		slices.SortStableFunc(list, func(a, b digest.Digest) int {
			return s.rank(r, b) - s.rank(r, a)
		})
	}
	for _, m := range list {
		doc, err := s.document(ctx, m)
		if err == nil && doc.Manifest != nil && doc.Manifest.Config.Digest == e.id && len(doc.Manifest.Layers) == len(e.chains) {
			return doc
		}
		s.log.Warn("manifest of an image cannot be used", "image", e.id, "manifest", m, "error", err)
	}
	return nil
}

func (s *Images) rank(repo reference.Ref, m digest.Digest) int {
	if repo.Digest != "" && repo.Digest == m.String() {
		return 2
	}
	repo.Digest = m.String()
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.names[repo.String()] != "" {
		return 1
	}
	return 0
}

func (s *Images) send(ctx context.Context, e *entry, ref string, doc *manifest.Document, rec recipe.Recipe) (*outgoing, error) {
	if doc == nil {
		doc = s.manifestFor(ctx, e, ref)
	}
	return s.sendAs(ctx, e, doc, rec, false)
}

// sendAs is send with the manifest that the image is to go out as; nil: none yet. force: layers go out compressed by rec whatever they came as.
func (s *Images) sendAs(ctx context.Context, e *entry, doc *manifest.Document, rec recipe.Recipe, force bool) (*outgoing, error) {
	out := &outgoing{s: s, e: e, doc: doc, config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: e.id, Size: int64(len(e.raw))}}
	out.held = append(out.held, loose{config: true, name: e.id})
	for i, chain := range e.chains {
		l := &outgoingLayer{s: s, diff: e.cfg.RootFS.DiffIDs[i], chain: chain, first: rec, force: force}
		out.held = append(out.held, loose{name: chain}, loose{form: true, name: l.diff})
		out.layers = append(out.layers, l)
	}
	if doc != nil {
		out.config = doc.Manifest.Config
		out.held = append(out.held, loose{config: true, name: doc.Digest})
	}
	s.gate.hold(out.held)
	s.busy.Add(1)
	for i, l := range out.layers {
		layer, err := s.snaps.Stat(ctx, l.chain)
		if err != nil {
			return nil, errs.Also(err, out.Close())
		}
		l.tarSize = layer.TarSize
		if doc != nil {
			l.given = &doc.Manifest.Layers[i]
		}
		l.choose(ctx)
	}
	return out, nil
}

// ID is Outgoing's ID.
func (o *outgoing) ID() digest.Digest { return o.e.id }

// Config is Outgoing's Config.
func (o *outgoing) Config() (ocispec.Descriptor, []byte) { return o.config, o.e.raw }

// Layers is Outgoing's Layers.
func (o *outgoing) Layers() []OutgoingLayer {
	all := make([]OutgoingLayer, len(o.layers))
	for i, l := range o.layers {
		all[i] = l
	}
	return all
}

// Manifest is Outgoing's Manifest.
func (o *outgoing) Manifest() (manifest.Document, error) {
	asGiven := o.doc != nil
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{},
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: o.e.id, Size: int64(len(o.e.raw))}}
	for i, l := range o.layers {
		now, ok := l.current()
		if !ok {
			return manifest.Document{}, errs.New(errs.Invalid, "layer %d (%s) of %s was not sent", i+1, l.diff, o.e.id)
		}
		if asGiven && now.Digest != o.doc.Manifest.Layers[i].Digest {
			asGiven = false
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ociLayerType(now.MediaType), Digest: now.Digest, Size: now.Size})
	}
	if asGiven {
		return *o.doc, nil
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return manifest.Document{}, err
	}
	return manifest.Parse(m.MediaType, raw)
}

// ociLayerType is OCI's word for a layer of Docker's.
func ociLayerType(t string) string {
	switch t {
	case manifest.DockerLayer, "":
		return manifest.OCILayerGzip
	case manifest.DockerLayerTar:
		return manifest.OCILayer
	case manifest.DockerLayerTar + ".zstd":
		return manifest.OCILayerZstd
	}
	return t
}

// Close is Outgoing's Close.
func (o *outgoing) Close() error {
	o.once.Do(func() {
		o.s.busy.Add(-1)
		o.s.gate.release(o.held)
		o.s.Sweep()
	})
	return nil
}
