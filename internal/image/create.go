package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image/recipe"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

var _ Maker = (*Images)(nil)

// built checks what is to become an image. It is not of the table.
func (s *Images) built(ctx context.Context, opts CreateOptions) (*entry, error) {
	e, err := s.newEntry(ctx, digest.FromBytes(opts.Config), opts.Config, s.now())
	if err != nil {
		return nil, err
	}
	if e.chain() != opts.Chain {
		return nil, errs.New(errs.Invalid, "image config lists layers that make %q, not the chain %q", e.chain(), opts.Chain)
	}
	if m := opts.Manifest; m != nil {
		if m.Manifest == nil || m.Manifest.Config.Digest != e.id || len(m.Manifest.Layers) != len(e.chains) {
			return nil, errs.New(errs.Invalid, "manifest %s is not one of the image %s", m.Digest, e.id)
		}
		e.manifests = []digest.Digest{m.Digest}
	}
	return e, nil
}

// Create is Maker's Create.
func (s *Images) Create(ctx context.Context, opts CreateOptions) (Image, error) {
	img, err := s.create(ctx, opts.Names, nil, []CreateOptions{opts})
	if err != nil {
		return Image{}, fmt.Errorf("create image: %w", err)
	}
	return img, nil
}

// CreateIndex is Maker's CreateIndex.
func (s *Images) CreateIndex(ctx context.Context, opts IndexOptions) (Image, error) {
	img, err := s.createIndex(ctx, opts)
	if err != nil {
		return Image{}, fmt.Errorf("create image: %w", err)
	}
	return img, nil
}

func (s *Images) createIndex(ctx context.Context, opts IndexOptions) (Image, error) {
	if opts.Index.Index == nil {
		return Image{}, errs.New(errs.Invalid, "%s is no index", opts.Index.Digest)
	}
	if len(opts.Images) == 0 {
		return Image{}, errs.New(errs.Invalid, "an index without images")
	}
	for _, one := range opts.Images {
		listed := func(d ocispec.Descriptor) bool { return d.Digest == one.Manifest.Digest }
		if one.Manifest == nil || !slices.ContainsFunc(opts.Index.Index.Manifests, listed) {
			return Image{}, errs.New(errs.Invalid, "an image has no manifest that the index lists")
		}
	}
	return s.create(ctx, opts.Names, &opts.Index, opts.Images)
}

// create stores configs and documents, and then names them in one change.
func (s *Images) create(ctx context.Context, names []reference.Ref, index *manifest.Document, all []CreateOptions) (Image, error) {
	for _, r := range names {
		if r.Digest != "" {
			return Image{}, errDigestName
		}
	}
	s.gate.begin()
	defer s.gate.end()
	var entries []*entry
	for _, opts := range all {
		e, err := s.built(ctx, opts)
		if err != nil {
			return Image{}, err
		}
		entries = append(entries, e)
	}
	top := s.shown(entries)
	names = slices.Clone(names)
	for i, r := range names {
		names[i] = r.WithDefaultTag()
	}
	if s.registered(names, index, entries, top) {
		for _, e := range entries {
			s.Used(e.id, s.now())
		}
		return s.byTop(top)
	}
	if err := s.snaps.Flush(ctx); err != nil {
		return Image{}, err
	}
	// What is stored from here on goes away again when the table does not get to name it.
	for i, e := range entries {
		docs := [][]byte{e.raw}
		if m := all[i].Manifest; m != nil {
			docs = append(docs, m.Raw)
		}
		if err := s.keepRaw(ctx, docs...); err != nil {
			s.looseEntries(entries)
			return Image{}, err
		}
	}
	if index != nil {
		if err := s.keepRaw(ctx, index.Raw); err != nil {
			s.looseEntries(entries)
			return Image{}, err
		}
		s.gate.candidate(loose{config: true, name: index.Digest}) // unless a name leads to it
	}
	if err := s.register(ctx, names, index, entries, top); err != nil {
		s.looseEntries(entries)
		return Image{}, err
	}
	return s.byTop(top)
}

func (s *Images) byTop(top *entry) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.byID[top.id]
	if e == nil {
		return Image{}, noImage(top.id.String()) // removed a moment ago
	}
	return s.describe(e), nil
}

func (s *Images) keepRaw(ctx context.Context, docs ...[]byte) error {
	for _, raw := range docs {
		if _, err := s.blobs.Put(ctx, digest.FromBytes(raw), int64(len(raw)), readerOf(raw)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Images) looseEntries(all []*entry) {
	for _, e := range all {
		s.gate.candidate(loose{config: true, name: e.id})
		for _, m := range e.manifests {
			s.gate.candidate(loose{config: true, name: m})
		}
	}
}

// shown is the image that a name shows.
func (s *Images) shown(all []*entry) *entry {
	best := all[0]
	for _, e := range all[1:] {
		if s.platform.Match(e.platform()) > s.platform.Match(best.platform()) {
			best = e
		}
	}
	return best
}

// register puts images and names into the table.
func (s *Images) register(ctx context.Context, names []reference.Ref, index *manifest.Document, all []*entry, top *entry) error {
	return s.change(func(t *table) error {
		for _, e := range all {
			if old := t.byID[e.id]; old != nil {
				again := *old
				for _, m := range e.manifests {
					again.came(m)
				}
				if len(names) > 0 {
					again.tagged = e.tagged
				}
				e = &again
			}
			t.byID[e.id] = e
		}
		for _, r := range names {
			t.name(r, top.id)
			if index != nil {
				t.indexes[r.String()] = index.Digest
			}
		}
		if index != nil && len(names) == 0 {
			t.names[namelessName(index.Digest)], t.indexes[namelessName(index.Digest)] = top.id, index.Digest
		}
		if index != nil {
			t.artifacts[index.Digest] = s.artifactsOf(ctx, *index)
		}
		return nil
	})
}

// registered tells whether the table says all of it already: a build that gave what is here writes nothing, and flushes nothing.
func (s *Images) registered(names []reference.Ref, index *manifest.Document, all []*entry, top *entry) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var dgst digest.Digest
	if index != nil {
		dgst = index.Digest
		if len(names) == 0 && s.names[namelessName(dgst)] != top.id {
			return false
		}
	}
	for _, r := range names {
		if s.names[r.String()] != top.id || s.indexes[r.String()] != dgst {
			return false
		}
	}
	for _, e := range all {
		old := s.byID[e.id]
		if old == nil || len(e.manifests) > 0 && (len(old.manifests) == 0 || old.manifests[0] != e.manifests[0]) {
			return false
		}
	}
	return true
}

// SendBuilt is Maker's SendBuilt.
func (s *Images) SendBuilt(ctx context.Context, opts CreateOptions, how Compression) (Outgoing, error) {
	out, err := s.sendBuilt(ctx, opts, how)
	if err != nil {
		return nil, fmt.Errorf("send image: %w", err)
	}
	return out, nil
}

func (s *Images) sendBuilt(ctx context.Context, opts CreateOptions, how Compression) (*outgoing, error) {
	rec, err := recipe.Custom(how.Type, how.Level)
	if err != nil {
		return nil, err
	}
	e, err := s.built(ctx, opts)
	if err != nil {
		return nil, err
	}
	return s.sendAs(ctx, e, opts.Manifest, rec, how.Force)
}

// LayerBlobs is Maker's LayerBlobs.
func (s *Images) LayerBlobs(ctx context.Context, opts CreateOptions, how Compression, progress func(layer int, current, total int64)) (all []ocispec.Descriptor, err error) {
	opts.Manifest = nil
	out, err := s.sendBuilt(ctx, opts, how)
	if err != nil {
		return nil, fmt.Errorf("describe layers: %w", err)
	}
	defer func() { err = errs.Also(err, out.Close()) }()
	for i, l := range out.layers {
		desc, err := s.layerBlob(ctx, l, func(current int64) {
			if progress != nil {
				progress(i, current, l.tarSize)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("describe layer %d (%s): %w", i+1, l.diff, err)
		}
		all = append(all, desc)
	}
	return all, nil
}

func (s *Images) layerBlob(ctx context.Context, l *outgoingLayer, progress func(int64)) (ocispec.Descriptor, error) {
	if f, ok := l.Known(); ok {
		if known, found := s.forms.find(l.diff, f.Digest); found {
			can, err := s.canMakeNow(ctx, l.diff, l.chain, known)
			if can || err != nil {
				f.MediaType = ociLayerType(f.MediaType)
				return f, err
			}
		}
	}
	sum := &summer{w: io.Discard, h: sha256.New()}
	if err := s.compressTold(ctx, l.chain, l.first, sum, progress); err != nil {
		return ocispec.Descriptor{}, err
	}
	got := digest.NewDigest(digest.SHA256, sum.h)
	l.mu.Lock()
	l.known, l.made, l.durable = nil, map[digest.Digest]int64{got: sum.n}, true
	l.mu.Unlock()
	if err := l.Sent(ocispec.Descriptor{Digest: got, Size: sum.n}); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, _ := l.current()
	desc.MediaType = ociLayerType(desc.MediaType)
	return desc, nil
}

// compressTold is compress, and tells how far it is.
func (s *Images) compressTold(ctx context.Context, chain snapshot.ChainID, rec recipe.Recipe, w io.Writer, progress func(int64)) error {
	zw, err := rec.NewWriter(w, processors())
	if err != nil {
		return err
	}
	return errs.Also(s.snaps.LayerTar(ctx, chain, &telling{w: zw, tell: progress}), zw.Close())
}

// telling tells how many bytes went through, each quarter of a megabyte.
type telling struct {
	w    io.Writer
	n    int64
	last int64
	tell func(int64)
}

func (t *telling) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	if t.n += int64(n); t.n-t.last >= 256<<10 {
		t.last = t.n
		t.tell(t.n)
	}
	return n, err
}

// DropLayers is Maker's DropLayers.
func (s *Images) DropLayers(chains ...snapshot.ChainID) {
	s.gate.begin()
	defer s.gate.end()
	for _, chain := range chains {
		s.gate.candidate(loose{name: chain})
	}
}
