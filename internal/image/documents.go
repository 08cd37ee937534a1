package image

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
)

// maxDocuments bounds how many manifests of an archive are looked at.
const maxDocuments = 4096

// manifests finds the manifests that an archive's index leads to, by the config that they name. Whatever is odd about them only means that an image comes in without one.
func (sp *spool) manifests() map[digest.Digest]manifest.Document {
	var idx ociIndex
	if !sp.has("index.json") || sp.json("index.json", &idx) != nil {
		return nil
	}
	found := map[digest.Digest]manifest.Document{}
	seen := map[digest.Digest]bool{}
	var walk func(list []blob, depth int)
	walk = func(list []blob, depth int) {
		for _, b := range list {
			if seen[b.Digest] || len(seen) == maxDocuments || depth == maxNesting {
				continue
			}
			seen[b.Digest] = true
			name, err := blobName(b.Digest)
			if err != nil || !sp.has(name) || b.MediaType != "" && !manifest.IsDocument(b.MediaType) {
				continue
			}
			var any struct{ Manifests []blob }
			raw, err := sp.blobJSON(b, &any)
			if err != nil {
				continue
			}
			doc, err := manifest.Parse(b.MediaType, raw)
			switch {
			case err != nil:
			case doc.Index != nil:
				walk(any.Manifests, depth+1)
			default:
				if _, double := found[doc.Manifest.Config.Digest]; !double {
					found[doc.Manifest.Config.Digest] = doc
				}
			}
		}
	}
	walk(idx.Manifests, 0)
	return found
}

// attach gives an image its manifest, if the layers of the archive are those that the manifest lists.
func (sp *spool) attach(img *packed, docs map[digest.Digest]manifest.Document) {
	doc, ok := docs[digest.FromBytes(img.raw)]
	if !ok || len(doc.Manifest.Layers) != len(img.layers) {
		return
	}
	for i, l := range doc.Manifest.Layers {
		if !sp.has(img.layers[i]) && path.Base(img.layers[i]) == l.Digest.Encoded() {
			continue // left out: the layer is here already
		}
		_, m, err := sp.open(img.layers[i])
		if err != nil || m.sum != l.Digest || m.size != l.Size {
			return
		}
	}
	img.doc = &doc
}

// formsHere tells whether the layers that an archive leaves out can be given out in the form that its manifest names.
func (s *Images) formsHere(ctx context.Context, sp *spool, img packed) bool {
	cfg, err := ParseConfig(img.raw)
	if err != nil {
		return false // told where the image is added
	}
	for i, l := range img.doc.Manifest.Layers {
		diff := cfg.RootFS.DiffIDs[i]
		if sp.has(img.layers[i]) || l.Digest == diff {
			continue
		}
		if f, ok := s.forms.find(diff, l.Digest); !ok || !s.canMake(ctx, f) {
			return false
		}
	}
	return true
}

// keepForms remembers the compressed forms of a loaded image and takes the blobs in, so that a push gives the digests that the manifest has.
func (s *Images) keepForms(ctx context.Context, sp *spool, img packed) error {
	if img.doc == nil {
		return nil
	}
	if _, err := s.blobs.Put(ctx, img.doc.Digest, int64(len(img.doc.Raw)), readerOf(img.doc.Raw)); err != nil {
		return err
	}
	s.gate.candidate(loose{config: true, name: img.doc.Digest})
	cfg, err := ParseConfig(img.raw)
	if err != nil {
		return err
	}
	for i, l := range img.doc.Manifest.Layers {
		diff := cfg.RootFS.DiffIDs[i]
		if err := s.keepForm(ctx, sp, img.layers[i], diff, l); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return nil
}

func (s *Images) keepForm(ctx context.Context, sp *spool, name string, diff digest.Digest, l ocispec.Descriptor) error {
	if l.Digest == diff {
		return nil // the tar itself: nothing to remember
	}
	if f, ok := s.forms.find(diff, l.Digest); ok && s.canMake(ctx, f) {
		return nil
	}
	if s.keep != KeepNever {
		r, _, err := sp.open(name)
		if err != nil {
			return err
		}
		if _, err := s.blobs.Put(ctx, l.Digest, l.Size, r); err != nil {
			return err
		}
	}
	return s.keepBlob(ctx, diff, l)
}

// goesAsItCame tells whether all layers of an image can be given out as its manifest has them. The topmost layers of the chains in without are not given out.
func (s *Images) goesAsItCame(ctx context.Context, e *entry, doc *manifest.Document, without []snapshot.ChainID) (bool, error) {
	if doc == nil {
		return false, nil
	}
	for i, l := range doc.Manifest.Layers {
		diff := e.cfg.RootFS.DiffIDs[i]
		if l.Digest == diff {
			continue
		}
		f, ok := s.forms.find(diff, l.Digest)
		if !ok || !s.canMake(ctx, f) {
			return false, nil
		}
		if slices.Contains(without, e.chains[i]) {
			continue
		}
		if ok, err := s.canMakeNow(ctx, diff, e.chains[i], f); !ok {
			return false, err
		}
	}
	return true, nil
}

// saveAsItCame writes the blobs of the manifest as they are.
func (s *Images) saveAsItCame(ctx context.Context, a *archive, e *entry, doc *manifest.Document) (blob, error) {
	for i, l := range doc.Manifest.Layers {
		if a.have[l.Digest] || slices.Contains(a.without, e.chains[i]) {
			continue
		}
		a.have[l.Digest] = true
		if err := a.header("blobs/sha256/"+l.Digest.Encoded(), l.Size); err != nil {
			return blob{}, err
		}
		layer := &outgoingLayer{s: s, diff: e.cfg.RootFS.DiffIDs[i], chain: e.chains[i], known: &l}
		r, err := layer.openForm(ctx, l.Digest, 0)
		if err != nil {
			return blob{}, err
		}
		if r == nil {
			return blob{}, fmt.Errorf("compressed layer %s went away", l.Digest)
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{a.tw}, struct{ io.Reader }{r}, make([]byte, 256<<10))
		if err = errs.Also(err, r.Close()); err != nil {
			return blob{}, err
		}
	}
	if _, err := a.blob(e.raw, doc.Manifest.Config.MediaType); err != nil {
		return blob{}, err
	}
	return a.blob(doc.Raw, doc.MediaType)
}
