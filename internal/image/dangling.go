package image

import (
	"context"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/reference"
)

// Dangling tells which images have no name that a person gave: no tag, and no index that a tag leads to lists them (as the other platforms of an image that came with all of
// them, or of one without a name, which its own image stands for). A digest is no such name: it stays behind when a pull moves the tag on.
func (s *Images) Dangling(ctx context.Context) func(digest.Digest) bool {
	s.mu.RLock()
	named := map[digest.Digest]bool{}
	for id, n := range s.known {
		if len(n.tags) > 0 {
			named[id] = true
		}
	}
	var indexes []digest.Digest
	for name, index := range s.indexes {
		if r, err := reference.Parse(name); isNameless(name) || err == nil && r.Digest == "" {
			indexes = append(indexes, index)
		}
	}
	shown := map[digest.Digest]bool{} // by an index without a name: it stands for the others
	for name, id := range s.names {
		if isNameless(name) && !named[id] {
			shown[id] = true
		}
	}
	s.mu.RUnlock()
	for _, index := range indexes {
		doc, err := s.document(ctx, index)
		if err != nil || doc.Index == nil {
			s.log.Warn("index cannot be read", "digest", index, "error", err)
			continue
		}
		for _, d := range doc.Index.Manifests {
			if e, _ := s.byManifest(ctx, d.Digest); e != nil {
				named[e.id] = named[e.id] || !shown[e.id]
			}
		}
	}
	return func(id digest.Digest) bool { return !named[id] }
}
