package image

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

// An index lists more than images: attestations of BuildKit, signatures, charts. They are kept as they are, so that the index stays what it is when it goes out again.
//
//	index ─┬─▶ manifest of an image     (entry.manifests)
//	       └─▶ manifest of an artifact ─▶ config, blobs        all of it in the content room, live as long as a name leads to the index

// MaxArtifacts bounds the bytes of all artifacts of one index.
const MaxArtifacts = 256 << 20

// artifactParts lists what a manifest leads to, each blob once.
func artifactParts(doc manifest.Document) (parts []ocispec.Descriptor, size int64, err error) {
	if doc.Manifest == nil {
		return nil, 0, errs.New(errs.Invalid, "%s is an index, not an artifact", doc.Digest)
	}
	if n := doc.Manifest.Config.Size; n > manifest.MaxConfig {
		return nil, 0, errs.New(errs.Invalid, "artifact %s: its config has %d bytes, more than %d", doc.Digest, n, manifest.MaxConfig)
	}
	seen := map[digest.Digest]bool{}
	for _, d := range append([]ocispec.Descriptor{doc.Manifest.Config}, doc.Manifest.Layers...) {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		if size += d.Size; d.Size > MaxArtifacts || size > MaxArtifacts {
			return nil, 0, errs.New(errs.Invalid, "artifact %s has more than %d MB", doc.Digest, MaxArtifacts>>20)
		}
		parts = append(parts, d)
	}
	return parts, size, nil
}

// ArtifactSize is how many bytes belong to an artifact. errs.Invalid: it is none, or too large to be kept.
func ArtifactSize(doc manifest.Document) (int64, error) {
	_, size, err := artifactParts(doc)
	return size, err
}

// ReceiveArtifact is Transfers' ReceiveArtifact.
func (s *Images) ReceiveArtifact(ctx context.Context, doc manifest.Document, fetch func(context.Context, ocispec.Descriptor) ([]byte, error)) (release func(), err error) {
	parts, _, err := artifactParts(doc)
	if err != nil {
		return nil, err
	}
	held := []loose{{config: true, name: doc.Digest}}
	for _, d := range parts {
		held = append(held, loose{config: true, name: d.Digest})
	}
	s.gate.hold(held)
	release = sync.OnceFunc(func() {
		s.gate.release(held)
		s.Sweep()
	})
	if err := s.keepArtifact(ctx, doc, parts, fetch); err != nil {
		release()
		return nil, fmt.Errorf("keep artifact %s: %w", doc.Digest, err)
	}
	return release, nil
}

func (s *Images) keepArtifact(ctx context.Context, doc manifest.Document, parts []ocispec.Descriptor, fetch func(context.Context, ocispec.Descriptor) ([]byte, error)) error {
	for _, d := range parts {
		if s.hasBlob(ctx, d) {
			continue
		}
		data, err := fetch(ctx, d)
		if err != nil {
			return err
		}
		if _, err := s.blobs.Put(ctx, d.Digest, d.Size, readerOf(data)); err != nil {
			return err
		}
	}
	_, err := s.blobs.Put(ctx, doc.Digest, int64(len(doc.Raw)), readerOf(doc.Raw))
	return err
}

func (s *Images) hasBlob(ctx context.Context, d ocispec.Descriptor) bool {
	info, err := s.blobs.Stat(ctx, d.Digest)
	return err == nil && info.Size == d.Size
}

// artifactsOf finds out which artifacts of an index are here, whole, and lists their manifests and blobs.
func (s *Images) artifactsOf(ctx context.Context, index manifest.Document) (all []digest.Digest) {
	for _, d := range index.Index.Manifests {
		doc := s.artifact(ctx, d)
		if doc == nil {
			continue
		}
		parts, _, _ := artifactParts(*doc) // artifact has looked
		all = append(all, doc.Digest)
		for _, p := range parts {
			all = append(all, p.Digest)
		}
	}
	return all
}

// artifact reads the manifest that an index lists, if it is one of an artifact that is here as a whole.
func (s *Images) artifact(ctx context.Context, d ocispec.Descriptor) *manifest.Document {
	if !manifest.IsDocument(d.MediaType) || manifest.IsIndex(d.MediaType) || !s.hasBlob(ctx, d) {
		return nil
	}
	doc, err := s.document(ctx, d.Digest)
	if err != nil || !manifest.IsArtifact(d, *doc) {
		return nil
	}
	parts, _, err := artifactParts(*doc)
	if err != nil {
		return nil
	}
	for _, p := range parts {
		if !s.hasBlob(ctx, p) {
			return nil
		}
	}
	return doc
}

// outgoingArtifact implements [Outgoing]: an artifact goes out byte for byte, or not at all.
type outgoingArtifact struct {
	s      *Images
	doc    manifest.Document
	config []byte
	held   []loose
	once   sync.Once
}

// sendArtifact holds an artifact, and looks again whether it is there.
func (s *Images) sendArtifact(ctx context.Context, doc *manifest.Document) (*outgoingArtifact, error) {
	out := &outgoingArtifact{s: s, doc: *doc, held: []loose{{config: true, name: doc.Digest}, {config: true, name: doc.Manifest.Config.Digest}}}
	for _, l := range doc.Manifest.Layers {
		out.held = append(out.held, loose{config: true, name: l.Digest})
	}
	s.gate.hold(out.held)
	s.busy.Add(1)
	var err error
	if out.config, err = s.blobs.Read(ctx, doc.Manifest.Config.Digest, manifest.MaxConfig); err != nil {
		return nil, errs.Also(fmt.Errorf("artifact %s: %w", doc.Digest, err), out.Close())
	}
	return out, nil
}

func (o *outgoingArtifact) ID() digest.Digest { return o.doc.Manifest.Config.Digest }

func (o *outgoingArtifact) Config() (ocispec.Descriptor, []byte) {
	return o.doc.Manifest.Config, o.config
}

func (o *outgoingArtifact) Layers() (all []OutgoingLayer) {
	for _, l := range o.doc.Manifest.Layers {
		all = append(all, artifactBlob{o.s, l})
	}
	return all
}

func (o *outgoingArtifact) Manifest() (manifest.Document, error) { return o.doc, nil }

func (o *outgoingArtifact) Close() error {
	o.once.Do(func() {
		o.s.busy.Add(-1)
		o.s.gate.release(o.held)
		o.s.Sweep()
	})
	return nil
}

// artifactBlob implements [OutgoingLayer].
type artifactBlob struct {
	s    *Images
	desc ocispec.Descriptor
}

func (b artifactBlob) DiffID() digest.Digest { return b.desc.Digest }

func (b artifactBlob) Known() (ocispec.Descriptor, bool) { return b.desc, true }

func (b artifactBlob) Size() int64 { return b.desc.Size }

func (b artifactBlob) Origins() []string { return nil }

func (b artifactBlob) Sent(desc ocispec.Descriptor) error {
	if desc.Digest != b.desc.Digest {
		return errs.New(errs.Invalid, "blob %s of an artifact went out as %s", b.desc.Digest, desc.Digest)
	}
	return nil
}

func (b artifactBlob) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if offset < 0 {
		return nil, errs.New(errs.Invalid, "offset %d", offset)
	}
	file, _, err := b.s.blobs.Open(ctx, b.desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("open blob of an artifact: %w", err)
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return nil, errs.Also(err, file.Close())
	}
	return file, nil
}

// saveArtifact writes an artifact into an archive.
func (s *Images) saveArtifact(ctx context.Context, a *archive, doc *manifest.Document) error {
	parts, _, err := artifactParts(*doc)
	if err != nil {
		return err
	}
	for _, d := range parts {
		if a.have[d.Digest] {
			continue
		}
		data, err := s.blobs.Read(ctx, d.Digest, MaxArtifacts)
		if err != nil {
			return fmt.Errorf("artifact %s: %w", doc.Digest, err)
		}
		if _, err := a.blob(data, d.MediaType); err != nil {
			return err
		}
	}
	_, err = a.blob(doc.Raw, doc.MediaType)
	return err
}

// loadArtifacts takes the artifacts of an archive's index in. They are candidates for removal until the index is kept.
func (s *Images) loadArtifacts(ctx context.Context, sp *spool, docs []manifest.Document) error {
	for _, doc := range docs {
		parts, _, err := artifactParts(doc)
		if err != nil {
			return err
		}
		s.gate.candidate(loose{config: true, name: doc.Digest})
		for _, d := range parts {
			s.gate.candidate(loose{config: true, name: d.Digest})
		}
		err = s.keepArtifact(ctx, doc, parts, func(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
			r, _, err := sp.open("blobs/sha256/" + d.Digest.Encoded())
			if err != nil {
				return nil, err
			}
			return io.ReadAll(r)
		})
		if err != nil {
			return fmt.Errorf("artifact %s: %w", doc.Digest, err)
		}
	}
	return nil
}

// artifact reads an artifact of an index, if the archive has all of it. left is what artifacts of this index may still have.
func (sp *spool) artifact(b blob, d ocispec.Descriptor, left *int64) (manifest.Document, bool) {
	var any struct{}
	raw, err := sp.blobJSON(b, &any)
	if err != nil {
		return manifest.Document{}, false
	}
	doc, err := manifest.Parse(b.MediaType, raw)
	if err != nil || doc.Manifest == nil || !manifest.IsArtifact(d, doc) {
		return doc, false
	}
	parts, size, err := artifactParts(doc)
	if err != nil || size > *left {
		return doc, false
	}
	for _, p := range parts {
		_, m, err := sp.open("blobs/sha256/" + p.Digest.Encoded())
		if err != nil || m.size != p.Size || m.sum != p.Digest {
			return doc, false
		}
	}
	*left -= size
	return doc, true
}
