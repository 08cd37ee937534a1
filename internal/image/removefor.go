package image

import (
	"context"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

// RemoveFor implements [Platforms].
//
//	name ─▶ index ─┬─▶ image that the name shows   its names show the best other one first, then it goes
//	               └─▶ image of another platform   goes
func (s *Images) RemoveFor(ctx context.Context, ref string, p manifest.Platform, force bool, inUse func(id digest.Digest) (stopped, running []string)) ([]Removed, error) {
	shows, err := s.findFor(ctx, ref, manifest.Platform{})
	if err != nil {
		return nil, err
	}
	e, err := s.findFor(ctx, ref, p)
	if err != nil {
		return nil, err
	}
	index, err := s.index(ctx, ref)
	if err != nil {
		return nil, err
	}
	var rest []*entry
	if index != nil {
		for _, d := range index.Index.Manifests {
			if other, _ := s.byManifest(ctx, d.Digest); other != nil && other.id != e.id {
				rest = append(rest, other)
			}
		}
	}
	if len(rest) == 0 {
		return s.Remove(ctx, ref, force, true, inUse)
	}
	if stopped, running := inUse(e.id); len(running) > 0 || len(stopped) > 0 && !force {
		return s.Remove(ctx, e.id.String(), force, true, inUse) // refused, in the words for that
	}
	if also := s.taggedBeside(e.id, index.Digest); also != "" && !force {
		return nil, errs.New(errs.Conflict, "conflict: unable to remove %s of %s (must be forced) - it is also the image of %s", e.platform(), ref, also)
	}
	if e.id == shows.id {
		err := s.change(func(t *table) error {
			for name, id := range t.names {
				if id == e.id && t.indexes[name] == index.Digest {
					t.names[name] = s.shown(rest).id
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return s.Remove(ctx, e.id.String(), true, true, inUse)
}

// taggedBeside is a tag that leads to an image otherwise than by this index.
func (s *Images) taggedBeside(id, index digest.Digest) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range namesOf(s.names, id) {
		if r.Tag != "" && s.indexes[r.String()] != index {
			return r.Familiar()
		}
	}
	return ""
}
