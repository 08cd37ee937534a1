package image

import (
	"context"
	"fmt"
	"runtime"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

func processors() int { return runtime.GOMAXPROCS(0) }

func (e *entry) platform() manifest.Platform {
	return manifest.Platform{OS: e.cfg.OS, Arch: e.cfg.Architecture, Variant: e.cfg.Variant}
}

var _ Platforms = (*Images)(nil)

// GetFor implements [Platforms].
func (s *Images) GetFor(ctx context.Context, ref string, p manifest.Platform) (Image, error) {
	e, err := s.findFor(ctx, ref, p)
	if err != nil {
		return Image{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.describe(e), nil
}

func (s *Images) findFor(ctx context.Context, ref string, p manifest.Platform) (*entry, error) {
	s.mu.RLock()
	e, err := s.find(ref)
	s.mu.RUnlock()
	if err != nil || p == (manifest.Platform{}) || p.Match(e.platform()) == 3 {
		return e, err
	}
	best, score := e, p.Match(e.platform())
	index, err := s.index(ctx, ref)
	if err != nil {
		return nil, err
	}
	if index != nil {
		for _, d := range index.Index.Manifests {
			if other, _ := s.byManifest(ctx, d.Digest); other != nil && p.Match(other.platform()) > score {
				best, score = other, p.Match(other.platform())
			}
		}
	}
	if score == 0 {
		return nil, errs.New(errs.NotFound, "image with reference %s was found but does not provide the specified platform (%s): pull it with --platform", ref, p)
	}
	return best, nil
}

// index reads the index that a name came as, or that is kept without one; nil when it came as a single image.
func (s *Images) index(ctx context.Context, ref string) (*manifest.Document, error) {
	s.mu.RLock()
	dgst := s.indexOf(ref)
	s.mu.RUnlock()
	if dgst == "" {
		return nil, nil
	}
	doc, err := s.document(ctx, dgst)
	if err != nil {
		return nil, fmt.Errorf("index of %s: %w", ref, err)
	}
	if doc.Index == nil {
		return nil, fmt.Errorf("index of %s: %s is a manifest", ref, dgst)
	}
	return doc, nil
}

// AddIndex is Transfers' AddIndex.
func (s *Images) AddIndex(ctx context.Context, name reference.Ref, index manifest.Document) error {
	if index.Index == nil {
		return errs.New(errs.Invalid, "%s is no index", index.Digest)
	}
	return s.keepDocument(ctx, index, func(t *table) error {
		t.artifacts[index.Digest] = s.artifactsOf(ctx, index)
		id := t.names[name.String()]
		if id == "" {
			return noImage(name.Familiar())
		}
		t.indexes[name.String()] = index.Digest
		name.Tag, name.Digest = "", index.Digest.String()
		t.names[name.String()] = id
		t.indexes[name.String()] = index.Digest
		return nil
	})
}

// Pushed is Transfers' Pushed.
func (s *Images) Pushed(ctx context.Context, name reference.Ref, img digest.Digest, doc manifest.Document) error {
	name.Tag, name.Digest = "", doc.Digest.String()
	err := s.keepDocument(ctx, doc, func(t *table) error {
		e := t.byID[img]
		if e == nil {
			return noImage(img.String())
		}
		if doc.Manifest != nil {
			again := *e
			again.came(doc.Digest)
			t.byID[img] = &again
		} else {
			t.indexes[name.String()] = doc.Digest
			t.artifacts[doc.Digest] = s.artifactsOf(ctx, doc)
		}
		t.names[name.String()] = img
		return nil
	})
	if err != nil || doc.Manifest == nil {
		return err
	}
	s.mu.RLock()
	e := s.byID[img]
	s.mu.RUnlock()
	if e == nil || len(doc.Manifest.Layers) != len(e.cfg.RootFS.DiffIDs) {
		return nil
	}
	for i, l := range doc.Manifest.Layers {
		if err := s.forms.edit(e.cfg.RootFS.DiffIDs[i], l, false, func(f *form) { f.origin(name.Name()) }); err != nil {
			return fmt.Errorf("remember where %s is: %w", name.Familiar(), err)
		}
	}
	return nil
}

// keepDocument stores a manifest or index and changes the table so that it is referred to.
func (s *Images) keepDocument(ctx context.Context, doc manifest.Document, edit func(*table) error) error {
	held := []loose{{config: true, name: doc.Digest}}
	s.gate.hold(held)
	defer func() {
		s.gate.release(held)
		s.Sweep()
	}()
	if _, err := s.blobs.Put(ctx, doc.Digest, int64(len(doc.Raw)), readerOf(doc.Raw)); err != nil {
		return fmt.Errorf("keep manifest %s: %w", doc.Digest, err)
	}
	return s.change(edit)
}
