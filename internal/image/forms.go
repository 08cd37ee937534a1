package image

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image/recipe"
	"corten.dev/corten/internal/record"
)

// forms remembers the compressed forms of layers: what blobs a diff id came as or went out as, where they are known to be, and how to make them again.
//
//	forms/<hex of the diff id>.json
//
// Life of a form that was pulled:
//
//	seen (Receive) ─▶ kept (Keep: the blob is ours) ─▶ recipe found, whole blob compared ─▶ recipe durable ─▶ blob deleted
//	                                                └▶ no recipe: tried, the blob stays
//
// A program with other compressors compares the recipes again (proven), in the background and before it relies on one. One that does not hold any more is dropped: the layer goes out
// compressed anew then, unless the registry has the blob.
type forms struct {
	dir *record.Dir[layerForms]
	log *slog.Logger

	mu  sync.Mutex // guards all; never held over the disk
	all map[digest.Digest]layerForms
	put sync.Mutex // one record write at a time, in the order of the changes; taken before mu
}

// layerForms are the forms of one diff. A value is never changed; a change puts a new one in its place.
type layerForms struct {
	Forms []form
}

type form struct {
	MediaType string
	Digest    digest.Digest
	Size      int64
	Origins   []string       `json:",omitempty"` // repositories, "docker.io/library/debian"; latest first
	Kept      bool           `json:",omitempty"` // the blob in the content room belongs to this layer
	Tried     int            `json:",omitempty"` // recipe.Version of who found that nothing compresses like that
	Recipe    *recipe.Recipe `json:",omitempty"` // gives the blob, compared as a whole
	By        string         `json:",omitempty"` // recipe.Compressors that it was compared with; with others, it has to be compared again
}

func (f form) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: f.MediaType, Digest: f.Digest, Size: f.Size}
}

// stale tells whether the recipe is to be compared again, because the compressors are others than those that it was compared with.
func (f form) stale(compressors string) bool {
	return f.Recipe != nil && f.Recipe.Algo != recipe.Plain && f.By != compressors
}

const (
	maxOrigins = 16
	maxForms   = 32 // of one diff, not counting those that can be opened here
)

func openForms(dir string, log *slog.Logger) (*forms, error) {
	d, err := record.Open[layerForms](dir, log)
	if err != nil {
		return nil, err
	}
	names, err := d.All()
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	t := &forms{dir: d, log: log, all: map[digest.Digest]layerForms{}}
	for name, rec := range names {
		diff := digest.NewDigestFromEncoded(digest.SHA256, name)
		if diff.Validate() == nil {
			t.all[diff] = rec
		}
	}
	return t, nil
}

// get lists the forms of a diff.
func (t *forms) get(diff digest.Digest) []form {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[diff].Forms
}

// keeps tells whether a blob is the compressed form of a layer.
func (t *forms) keeps(blob digest.Digest) (kept bool) {
	t.each(func(_ digest.Digest, f form) { kept = kept || f.Kept && f.Digest == blob })
	return kept
}

// find returns one form of a diff.
func (t *forms) find(diff, blob digest.Digest) (form, bool) {
	for _, f := range t.get(diff) {
		if f.Digest == blob {
			return f, true
		}
	}
	return form{}, false
}

// edit changes one form, or adds it, and writes the record when that made a difference.
func (t *forms) edit(diff digest.Digest, desc ocispec.Descriptor, durable bool, change func(*form)) error {
	t.put.Lock()
	defer t.put.Unlock()
	old := t.get(diff)
	list := slices.Clone(old)
	i := slices.IndexFunc(list, func(f form) bool { return f.Digest == desc.Digest })
	if i < 0 {
		if len(list) >= maxForms {
			if drop := slices.IndexFunc(list, func(f form) bool { return !f.Kept && f.Recipe == nil }); drop >= 0 {
				list = slices.Delete(list, drop, drop+1)
			}
		}
		i = len(list)
		list = append(list, form{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
	}
	was := list[i]
	change(&list[i])
	if len(list) == len(old) && i < len(old) && old[i].Digest == desc.Digest && same(was, list[i]) {
		return nil
	}
	rec := layerForms{Forms: list}
	if err := t.dir.Put(diff.Encoded(), rec, durable); err != nil {
		return err
	}
	t.mu.Lock()
	t.all[diff] = rec
	t.mu.Unlock()
	return nil
}

func same(a, b form) bool {
	return a.Kept == b.Kept && a.Tried == b.Tried && a.By == b.By && a.Recipe == b.Recipe && slices.Equal(a.Origins, b.Origins)
}

// origin notes that a repository has the blob.
func (f *form) origin(repo string) {
	if repo == "" || len(f.Origins) > 0 && f.Origins[0] == repo {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(f.Origins), func(o string) bool { return o == repo })
	f.Origins = append([]string{repo}, rest[:min(len(rest), maxOrigins-1)]...)
}

// forget drops what is known about a diff whose last layer is gone, and returns the blobs that were kept for it.
func (t *forms) forget(diff digest.Digest) (kept []digest.Digest, err error) {
	t.put.Lock()
	defer t.put.Unlock()
	for _, f := range t.get(diff) {
		if f.Kept {
			kept = append(kept, f.Digest)
		}
	}
	t.mu.Lock()
	_, known := t.all[diff]
	delete(t.all, diff)
	t.mu.Unlock()
	if !known {
		return nil, nil
	}
	return kept, t.dir.Delete(diff.Encoded(), false)
}

// diffs lists all diffs that something is known about.
func (t *forms) diffs() (all []digest.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for diff := range t.all {
		all = append(all, diff)
	}
	return all
}

// each calls fn for every form.
func (t *forms) each(fn func(diff digest.Digest, f form)) {
	t.mu.Lock()
	all := make(map[digest.Digest]layerForms, len(t.all))
	for diff, rec := range t.all {
		all[diff] = rec
	}
	t.mu.Unlock()
	for diff, rec := range all {
		for _, f := range rec.Forms {
			fn(diff, f)
		}
	}
}

// dropForms lets go of the compressed forms of a diff that no layer has any more.
func (s *Images) dropForms(ctx context.Context, diff digest.Digest) {
	if _, err := s.snaps.ByDiff(ctx, diff); !errors.Is(err, errs.NotFound) {
		return
	}
	kept, err := s.forms.forget(diff)
	if err != nil {
		s.log.Warn("record of a removed layer stays", "layer", diff, "error", err)
	}
	live := s.Live()
	for _, blob := range kept {
		if live(blob) {
			continue // an artifact's as well
		}
		// What a pull has in hand stays; nobody else's, it is garbage after that.
		if _, err := s.gate.unlessHeld(blob, func() error { return s.blobs.Delete(ctx, blob) }); err != nil {
			s.log.Warn("blob of a removed layer stays", "digest", blob, "error", err)
		}
	}
}
