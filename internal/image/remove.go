package image

import (
	"context"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

var errDigestName = errs.New(errs.Invalid, "refusing to create a tag with a digest reference")

// Remove untags, and deletes the image when that was its last name. The rules and texts are those of `docker rmi`:
//
//	by name, other names left       only the name goes, whoever uses the image
//	by name, the last one           needs force when a stopped container uses it; a running one forbids it
//	by id, one repository at most   all its names go, then as above
//	by id, several repositories     needs force
//
// prune asks to remove untagged parent images, too. Layers that nobody else needs always go, and there are no other parents here:
// an image of ours does not keep the image alive that it was made from. So both values mean the same.
func (s *Images) Remove(ctx context.Context, ref string, force, _ bool, inUse func(id digest.Digest) (stopped, running []string)) (done []Removed, err error) {
	s.gate.begin()
	defer s.gate.end()
	s.mu.RLock()
	e, err := s.find(ref)
	nameless := s.namelessItself(ref)
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	use := func(id digest.Digest) (stopped, running []string) { return nil, nil }
	if inUse != nil {
		use = inUse
	}
	if nameless != "" {
		return s.removeNameless(ctx, nameless, ref, force, use)
	}
	stopped, running := use(e.id)
	others, kept := s.siblings(ctx, ref, e.id, use)
	var deleted []*entry
	var documents []digest.Digest
	err = s.change(func(t *table) error {
		done, deleted = nil, nil
		if t.byID[e.id] == nil {
			return noImage(ref)
		}
		mine := namesOf(t.names, e.id)
		rule := rmiRule{ref: ref, id: e.id, mine: mine, force: force, stopped: stopped, running: running}
		going, err := rule.names()
		if err != nil {
			return err
		}
		for _, r := range going {
			delete(t.names, r.String())
			if idx := t.indexes[r.String()]; idx != "" {
				documents = append(documents, idx)
			}
			done = append(done, Removed{Untagged: r.Familiar()})
		}
		if len(going) < len(mine) || len(running) > 0 && len(mine) > 0 {
			return nil
		}
		if _, byName := rule.byName(); byName && kept {
			return nil // of an index that stays
		}
		deleted = append(deleted, t.byID[e.id])
		deleted = append(deleted, t.siblingsGoing(others, going)...)
		for _, gone := range deleted {
			for _, r := range namesOf(t.names, gone.id) {
				delete(t.names, r.String())
				done = append(done, Removed{Untagged: r.Familiar()})
			}
			delete(t.byID, gone.id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, m := range documents {
		s.gate.candidate(loose{config: true, name: m})
	}
	return append(done, s.gone(deleted)...), nil
}

// looseEntry names what may have to go with an image.
func (s *Images) looseEntry(e *entry) {
	s.uses.forget(e.id)
	s.gate.candidate(loose{config: true, name: e.id})
	for _, m := range e.manifests {
		s.gate.candidate(loose{config: true, name: m})
	}
	s.gate.candidate(loose{name: e.chain()})
}

// siblings are the images of other platforms that came with the index of this name and that no container uses: they go when the last tag of the index does, since they have
// no name that a person gave them. listed tells whether another index has the image itself.
func (s *Images) siblings(ctx context.Context, ref string, id digest.Digest, use func(digest.Digest) (stopped, running []string)) (all []digest.Digest, listed bool) {
	index, err := s.index(ctx, ref)
	if err != nil || index == nil {
		return nil, s.listedElsewhere(ctx, "")[id]
	}
	kept := s.listedElsewhere(ctx, index.Digest)
	for _, d := range index.Index.Manifests {
		other, _ := s.byManifest(ctx, d.Digest)
		if other == nil || other.id == id || kept[other.id] {
			continue
		}
		if stopped, running := use(other.id); len(stopped)+len(running) == 0 {
			all = append(all, other.id)
		}
	}
	return all, kept[id]
}

// listedElsewhere are the images that indexes list which are not this one, and which somebody gave a tag or built without a name.
func (s *Images) listedElsewhere(ctx context.Context, index digest.Digest) map[digest.Digest]bool {
	s.mu.RLock()
	others := map[digest.Digest]bool{}
	for name, other := range s.indexes {
		if r, err := reference.Parse(name); err != nil || r.Digest == "" { // those of a digest go with the last tag of their repository
			others[other] = other != index
		}
	}
	s.mu.RUnlock()
	listed := map[digest.Digest]bool{}
	for other, differs := range others {
		doc, err := s.document(ctx, other)
		if !differs || err != nil || doc.Index == nil {
			continue
		}
		for _, d := range doc.Index.Manifests {
			if e, _ := s.byManifest(ctx, d.Digest); e != nil {
				listed[e.id] = true
			}
		}
	}
	return listed
}

// siblingsGoing are those of the siblings whose only names are digests in the repositories of the names that went, or in those that have no tag any more: an index that was
// tagged into another repository leaves its images under the digests of the first.
func (t *table) siblingsGoing(ids []digest.Digest, went []reference.Ref) (going []*entry) {
	tagged := map[string]bool{}
	for name := range t.names {
		if r, err := reference.Parse(name); err == nil && r.Tag != "" {
			tagged[r.Name()] = true
		}
	}
	repos := map[string]bool{}
	for _, r := range went {
		repos[r.Name()] = true
	}
	for _, id := range ids {
		e := t.byID[id]
		free := e != nil
		for _, r := range namesOf(t.names, id) {
			free = free && r.Digest != "" && (repos[r.Name()] || !tagged[r.Name()])
		}
		if free {
			going = append(going, e)
		}
	}
	return going
}

// layersGone names the chains that no other image has, topmost first, as `docker rmi` prints them.
func (s *Images) layersGone(e *entry) (gone []Removed) {
	live := s.Live()
	for i := len(e.chains) - 1; i >= 0; i-- {
		if live(e.chains[i]) {
			break
		}
		gone = append(gone, Removed{Deleted: e.chains[i].String()})
	}
	return gone
}

func namesOf(names map[string]digest.Digest, id digest.Digest) (mine []reference.Ref) {
	for name, other := range names {
		if other != id {
			continue
		}
		if r, err := reference.Parse(name); err == nil {
			mine = append(mine, r)
		}
	}
	sort.Slice(mine, func(i, j int) bool { return mine[i].String() < mine[j].String() })
	return mine
}

// rmiRule decides which names go.
type rmiRule struct {
	ref              string
	id               digest.Digest
	mine             []reference.Ref
	force            bool
	stopped, running []string
}

func (r rmiRule) names() ([]reference.Ref, error) {
	named, byName := r.byName()
	if !byName {
		return r.byID()
	}
	// Names with a digest go together with the last tag of their repository.
	lastTag := true
	for _, m := range r.mine {
		if m != named && m.Digest == "" && m.Name() == named.Name() {
			lastTag = false
		}
	}
	var going []reference.Ref
	for _, m := range r.mine {
		if m == named || lastTag && m.Digest != "" && m.Name() == named.Name() {
			going = append(going, m)
		}
	}
	if len(going) < len(r.mine) {
		return going, nil
	}
	going = r.mine
	if users := append(append([]string(nil), r.running...), r.stopped...); len(users) > 0 && !r.force {
		return nil, errs.New(errs.Conflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
			r.ref, short(users[0]), r.id.Encoded()[:12])
	}
	return going, nil
}

// byName tells which of the names was meant, if it was one.
func (r rmiRule) byName() (reference.Ref, bool) {
	if strings.HasPrefix(r.id.Encoded(), strings.TrimPrefix(r.ref, "sha256:")) {
		// An id, unless there is an image of that very name.
		ref, err := reference.Parse(r.ref)
		if err != nil || !contains(r.mine, ref.WithDefaultTag()) {
			return reference.Ref{}, false
		}
	}
	ref, err := reference.Parse(r.ref)
	if err != nil {
		return ref, false
	}
	if ref = ref.WithDefaultTag(); contains(r.mine, ref) {
		return ref, true
	}
	if ref.Digest != "" { // name:tag@digest
		both := ref
		both.Tag = ""
		if contains(r.mine, both) {
			return both, true
		}
	}
	return ref, false
}

func contains(all []reference.Ref, one reference.Ref) bool {
	for _, r := range all {
		if r == one {
			return true
		}
	}
	return false
}

func (r rmiRule) byID() ([]reference.Ref, error) {
	repos := map[string]bool{}
	for _, m := range r.mine {
		repos[m.Name()] = true
	}
	id := r.id.Encoded()[:12]
	switch {
	case len(r.running) > 0:
		return nil, errs.New(errs.Conflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", id, short(r.running[0]))
	case r.force:
	case len(repos) > 1:
		return nil, errs.New(errs.Conflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", id)
	case len(r.stopped) > 0:
		return nil, errs.New(errs.Conflict, "conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", id, short(r.stopped[0]))
	}
	return r.mine, nil
}

func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}
