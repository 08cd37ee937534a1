package travel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

// folder is an OCI layout of the asker as a [Target].
type folder struct {
	blobs build.Blobs
	store string
}

// Has implements [Target].
func (f *folder) Has(ctx context.Context, d digest.Digest) (bool, error) {
	r, _, err := f.blobs.Reader(ctx, f.store, d)
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

// PushLayers implements [Target]. A layer that was never compressed is compressed twice, because a folder wants the digest before the bytes; the second time by how the first one went.
func (f *folder) PushLayers(ctx context.Context, out image.Outgoing, progress build.Progress) error {
	todo, err := image.Settle(ctx, out)
	if err != nil {
		return err
	}
	for _, l := range out.Layers() {
		d, ok := todo[l.DiffID()]
		if !ok {
			continue // sent already
		}
		delete(todo, l.DiffID())
		if has, err := f.Has(ctx, d.Digest); err != nil || has {
			if err != nil {
				return err
			}
			continue
		}
		part := "writing layer " + d.Digest.String()
		if progress != nil {
			progress.Status(part, 0, d.Size, false)
		}
		r, err := l.Open(ctx, 0)
		if err == nil {
			err = errors.Join(f.blobs.Write(ctx, f.store, d.Digest, d.Size, r), r.Close())
		}
		if err != nil {
			return err
		}
		if progress != nil {
			progress.Status(part, d.Size, d.Size, true)
		}
	}
	return nil
}

// PushBlob implements [Target].
func (f *folder) PushBlob(ctx context.Context, raw []byte) error {
	return f.blobs.Write(ctx, f.store, digest.FromBytes(raw), int64(len(raw)), bytes.NewReader(raw))
}

// PushManifest implements [Target]. BuildKit's clients write index.json themselves, by the response.
func (f *folder) PushManifest(ctx context.Context, tag string, doc manifest.Document) error {
	if err := f.PushBlob(ctx, doc.Raw); err != nil {
		return err
	}
	d, err := json.Marshal(ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw)), Annotations: map[string]string{ocispec.AnnotationRefName: tag}})
	if err != nil {
		return err
	}
	if err := f.blobs.SetRef(ctx, f.store, tag, d); err != nil && !errors.Is(err, errs.NotImplemented) {
		return err
	}
	return nil
}
