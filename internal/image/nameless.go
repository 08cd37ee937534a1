package image

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/reference"
)

// An index that was built without a name is kept as Docker's containerd store keeps it: it dangles, is found by its digest, and goes with `prune`. In the table it has a name that nobody
// can write, "@" and its digest, which leads to the image that it shows. Its other images are not listed beside it, and go with it.

// namelessName is the name of such an index in the table.
func namelessName(index digest.Digest) string { return "@" + index.String() }

func isNameless(name string) bool { return strings.HasPrefix(name, "@") }

// nameless finds the index without a name that ref means: by its digest, or a beginning of it, else by that of the image that it shows. "" when there is none, or several. It needs mu.
func (s *Images) nameless(ref string) string {
	if own := s.namelessItself(ref); own != "" {
		return own
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	if !isHex(prefix) {
		return ""
	}
	found := ""
	for name := range s.indexes {
		if isNameless(name) && strings.HasPrefix(s.names[name].Encoded(), prefix) && (found == "" || name < found) {
			found = name
		}
	}
	return found
}

// namelessItself is nameless for the digest of the index only: an image that begins so is meant first. It needs mu.
func (s *Images) namelessItself(ref string) string {
	prefix := strings.TrimPrefix(ref, "sha256:")
	if !isHex(prefix) {
		return ""
	}
	for id := range s.byID {
		if strings.HasPrefix(id.Encoded(), prefix) {
			return ""
		}
	}
	found := ""
	for name, index := range s.indexes {
		if !isNameless(name) || !strings.HasPrefix(index.Encoded(), prefix) {
			continue
		}
		if found != "" {
			return ""
		}
		found = name
	}
	return found
}

func isHex(prefix string) bool {
	return prefix != "" && strings.Trim(prefix, "0123456789abcdef") == ""
}

// indexItself is the index that ref names by the index's own digest, alone or behind a repository; "" for any other reference. It needs mu.
func (s *Images) indexItself(ref string) digest.Digest {
	if r, err := reference.Parse(ref); err == nil && r.Digest != "" {
		r.Tag = ""
		if index := s.indexes[r.String()]; index.String() == r.Digest {
			return index
		}
	}
	return s.indexes[s.namelessItself(ref)]
}

// indexOf is the index that ref leads to: that of a name, else one without. It needs mu.
func (s *Images) indexOf(ref string) digest.Digest {
	if r, err := reference.Parse(ref); err == nil {
		name := r.WithDefaultTag().String()
		if s.names[name] != "" {
			return s.indexes[name]
		}
	}
	return s.indexes[s.nameless(ref)]
}

// dropNameless drops the indexes without a name whose image went, and those that have a name now. It lists them.
func (t *table) dropNameless() (going []digest.Digest) {
	named := map[digest.Digest]bool{}
	for name, index := range t.indexes {
		named[index] = named[index] || !isNameless(name)
	}
	for name, id := range t.names {
		if index := t.indexes[name]; isNameless(name) && (t.byID[id] == nil || named[index]) {
			going = append(going, index)
			delete(t.names, name)
			delete(t.indexes, name)
		}
	}
	return going
}

// removeNameless removes an index that has no name. Its images go with it, but those that have a name, that a container uses or that another index lists.
func (s *Images) removeNameless(ctx context.Context, name, ref string, force bool, use func(digest.Digest) (stopped, running []string)) (done []Removed, err error) {
	s.mu.RLock()
	index, shows := s.indexes[name], s.names[name]
	s.mu.RUnlock()
	doc, err := s.index(ctx, ref)
	if err != nil {
		return nil, err
	}
	if doc == nil {
		return nil, noImage(ref) // removed a moment ago
	}
	kept := s.listedElsewhere(ctx, index)
	images := []digest.Digest{shows}
	stopped, running := use(shows)
	for _, d := range doc.Index.Manifests {
		e, _ := s.byManifest(ctx, d.Digest)
		if e == nil || e.id == shows {
			continue
		}
		if stopped, running := use(e.id); len(stopped)+len(running) == 0 {
			images = append(images, e.id)
		}
	}
	var deleted []*entry
	err = s.change(func(t *table) error {
		done, deleted = nil, nil
		if t.indexes[name] != index {
			return noImage(ref)
		}
		delete(t.names, name)
		delete(t.indexes, name)
		for _, id := range images {
			e := t.byID[id]
			if e == nil || kept[id] || len(namesOf(t.names, id)) > 0 {
				continue
			}
			if id == shows {
				if _, err := (rmiRule{ref: ref, id: index, force: force, stopped: stopped, running: running}).byID(); err != nil {
					return err
				}
			}
			deleted = append(deleted, e)
			delete(t.byID, id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.gate.candidate(loose{config: true, name: index})
	done = append(done, Removed{Deleted: index.String()})
	return append(done, s.gone(deleted)...), nil
}

// gone lets go what the images had that are not in the table any more, and tells it.
func (s *Images) gone(deleted []*entry) (done []Removed) {
	for _, e := range deleted {
		done = append(done, Removed{Deleted: e.id.String()})
		s.looseEntry(e)
		for _, layer := range s.layersGone(e) {
			if !slices.Contains(done, layer) { // several may have had it
				done = append(done, layer)
			}
		}
	}
	return done
}
