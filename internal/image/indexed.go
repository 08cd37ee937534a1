package image

import (
	"context"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// indexed is an index of an archive, with the images of it that the archive has as a whole.
type indexed struct {
	ref    *reference.Ref // nil: it has no name
	doc    manifest.Document
	images []packed
	// artifacts of the index that the archive has as a whole.
	artifacts []manifest.Document
}

// indexes finds the indexes of an archive. As with manifests, what is odd is passed over: the images themselves were found otherwise.
func (sp *spool) indexes() (all []indexed) {
	var idx ociIndex
	if !sp.has("index.json") || sp.json("index.json", &idx) != nil {
		return nil
	}
	for _, b := range idx.Manifests {
		ref, err := ociName(b)
		if err != nil || !manifest.IsIndex(b.MediaType) || len(all) == maxDocuments {
			continue
		}
		var list ociIndex
		raw, err := sp.blobJSON(b, &list)
		if err != nil {
			continue
		}
		doc, err := manifest.Parse(b.MediaType, raw)
		if err != nil || doc.Index == nil {
			continue
		}
		one := indexed{ref: ref, doc: doc}
		left := int64(MaxArtifacts)
		for i, m := range list.Manifests {
			if img, ok := sp.whole(m); ok {
				one.images = append(one.images, img)
			} else if about, ok := sp.artifact(m, doc.Index.Manifests[i], &left); ok {
				one.artifacts = append(one.artifacts, about)
			}
		}
		all = append(all, one)
	}
	return all
}

// whole reads an image of an index, if the archive has all of it.
func (sp *spool) whole(b blob) (packed, bool) {
	name, err := blobName(b.Digest)
	if err != nil || !sp.has(name) || b.MediaType != "" && !manifest.IsDocument(b.MediaType) || manifest.IsIndex(b.MediaType) {
		return packed{}, false
	}
	if _, ok, err := sp.platformOf(b); err != nil || !ok {
		return packed{}, false
	}
	img, err := sp.ociImage(b)
	if err != nil {
		return packed{}, false
	}
	for _, l := range img.layers {
		if !sp.has(l) {
			return packed{}, false
		}
	}
	return img, true
}

// siblings adds the images of other platforms to those that are loaded.
func siblings(images []packed, all []indexed) []packed {
	known := map[digest.Digest]bool{}
	for _, img := range images {
		known[digest.FromBytes(img.raw)] = true
	}
	for _, one := range all {
		for _, img := range one.images {
			if id := digest.FromBytes(img.raw); !known[id] {
				known[id] = true
				img.sibling = true
				images = append(images, img)
			}
		}
	}
	return images
}

// addIndexes keeps the indexes that were loaded, those without a name as a build without one does.
func (s *Images) addIndexes(ctx context.Context, sp *spool, all []indexed) error {
	for _, one := range all {
		if one.ref == nil {
			if err := s.addNameless(ctx, sp, one); err != nil {
				return err
			}
			continue
		}
		s.mu.RLock()
		known := s.names[one.ref.String()] != ""
		s.mu.RUnlock()
		if !known {
			continue
		}
		if err := s.loadArtifacts(ctx, sp, one.artifacts); err != nil {
			return err
		}
		if err := s.AddIndex(ctx, *one.ref, one.doc); err != nil {
			return err
		}
	}
	return nil
}

// addNameless keeps an index that the archive has no name for, if it has one of its images.
func (s *Images) addNameless(ctx context.Context, sp *spool, one indexed) error {
	var here []*entry
	s.mu.RLock()
	for _, img := range one.images {
		if e := s.byID[digest.FromBytes(img.raw)]; e != nil {
			here = append(here, e)
		}
	}
	s.mu.RUnlock()
	if len(here) == 0 {
		return nil
	}
	if err := s.loadArtifacts(ctx, sp, one.artifacts); err != nil {
		return err
	}
	return s.keepDocument(ctx, one.doc, func(t *table) error {
		name := namelessName(one.doc.Digest)
		t.names[name], t.indexes[name] = s.shown(here).id, one.doc.Digest
		t.artifacts[one.doc.Digest] = s.artifactsOf(ctx, one.doc)
		return nil
	})
}

// namelessOf is the digest that a loaded image without a name is told by: that of the index without a name that has it, else its own.
func namelessOf(id digest.Digest, all []indexed) digest.Digest {
	for _, one := range all {
		for _, img := range one.images {
			if one.ref == nil && digest.FromBytes(img.raw) == id {
				return one.doc.Digest
			}
		}
	}
	return id
}

// saveIndex writes the index that a name came as, with all its images and artifacts, if all of them can be had as they came. nil: they cannot, or there is none.
func (s *Images) saveIndex(ctx context.Context, a *archive, ref string) (*blob, error) {
	index, err := s.index(ctx, ref)
	if err != nil || index == nil {
		return nil, err
	}
	type part struct {
		e   *entry
		doc *manifest.Document
	}
	var parts []part
	for _, d := range index.Index.Manifests {
		if about := s.artifact(ctx, d); about != nil {
			parts = append(parts, part{nil, about})
			continue
		}
		e, doc := s.byManifest(ctx, d.Digest)
		if e == nil {
			return nil, nil
		}
		if as, err := s.goesAsItCame(ctx, e, doc, a.without); !as {
			return nil, err
		}
		parts = append(parts, part{e, doc})
	}
	for _, p := range parts {
		if p.e == nil {
			if err := s.saveArtifact(ctx, a, p.doc); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := s.saveAsItCame(ctx, a, p.e, p.doc); err != nil {
			return nil, err
		}
	}
	b, err := a.blob(index.Raw, index.MediaType)
	return &b, err
}
