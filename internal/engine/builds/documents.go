package builds

import (
	"errors"
	"slices"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// documents are what a build of the past names by digest.
type documents map[digest.Digest][]byte

// document notes something about the build.
func (r *running) document(doc Document, raw []byte) {
	doc.Digest, doc.Size = digest.FromBytes(raw), int64(len(raw))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.documents == nil {
		r.documents = documents{}
	}
	r.documents[doc.Digest] = raw
	r.provenance = append(r.provenance, doc)
}

// document reads what a build of the past names.
func (h *history) document(dgst digest.Digest) ([]byte, error) {
	none := errs.New(errs.NotFound, "document %s: no build of the past has it", dgst)
	h.mu.Lock()
	i := slices.IndexFunc(h.past, func(b Build) bool {
		return slices.ContainsFunc(b.Provenance, func(d Document) bool { return d.Digest == dgst })
	})
	var ref string
	var run *running
	if i >= 0 {
		ref = h.past[i].Ref
		run = h.ending[ref]
	}
	h.mu.Unlock()
	if i < 0 {
		return nil, none
	}
	var kept documents
	if run != nil {
		run.mu.Lock()
		kept = run.documents // does not change any more
		run.mu.Unlock()
	} else {
		var err error
		if kept, err = h.documents.Get(historyKey(ref)); err != nil && !errors.Is(err, errs.NotFound) {
			return nil, err
		}
	}
	if raw, ok := kept[dgst]; ok {
		return raw, nil
	}
	return nil, none
}
