package buildkitapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

var _ build.Blobs = (*client)(nil)

// storeID is what clients call a store: those of caches ("local:<path>") and of an exported layout have the name that the room has for them, layouts that a build reads have a prefix.
func storeID(store string) string {
	if store == "export" || strings.HasPrefix(store, "local:") {
		return store
	}
	return "oci:" + store
}

// Reader implements [build.Blobs] by the client's content store.
func (c *client) Reader(ctx context.Context, store string, dgst digest.Digest) (io.ReadCloser, int64, error) {
	ra, err := sessioncontent.NewCallerStore(c.caller, storeID(store)).ReaderAt(ctx, ocispec.Descriptor{Digest: dgst})
	if errdefs.IsNotFound(err) {
		return nil, 0, errs.New(errs.NotFound, "blob %s of %s: not found", dgst, store)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("blob %s of %s: %w", dgst, store, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(ra, 0, ra.Size()), ra}, ra.Size(), nil
}

// Write implements [build.Blobs].
func (c *client) Write(ctx context.Context, store string, dgst digest.Digest, size int64, r io.Reader) error {
	desc := ocispec.Descriptor{Digest: dgst, Size: size}
	err := content.WriteBlob(ctx, sessioncontent.NewCallerStore(c.caller, storeID(store)), "corten-"+dgst.Encoded(), r, desc)
	if err != nil {
		return fmt.Errorf("write blob %s to %s: %w", dgst, store, err)
	}
	return nil
}

// Ref implements [build.Blobs]. The content API has no names: clients resolve those of their layouts themselves, and ask by digest.
func (c *client) Ref(ctx context.Context, store, name string) ([]byte, error) {
	dgst, err := digest.Parse(name)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s of %s: this client gives blobs by digest only", name, store)
	}
	info, err := sessioncontent.NewCallerStore(c.caller, storeID(store)).Info(ctx, dgst)
	if errdefs.IsNotFound(err) {
		return nil, errs.New(errs.NotFound, "blob %s of %s: not found", dgst, store)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s of %s: %w", dgst, store, err)
	}
	desc := ocispec.Descriptor{Digest: dgst, Size: info.Size}
	desc.MediaType, err = c.mediaType(ctx, store, dgst)
	if err != nil {
		return nil, err
	}
	return json.Marshal(desc)
}

// mediaType is what a document says of itself; an OCI document need not, then its members tell.
func (c *client) mediaType(ctx context.Context, store string, dgst digest.Digest) (kind string, err error) {
	r, _, err := c.Reader(ctx, store, dgst)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var doc struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	const most = 4 << 20
	if err := json.NewDecoder(io.LimitReader(r, most)).Decode(&doc); err != nil {
		return "", errs.New(errs.Invalid, "%s of %s is no manifest: %v", dgst, store, err)
	}
	switch {
	case doc.MediaType != "":
		return doc.MediaType, nil
	case doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	}
	return ocispec.MediaTypeImageManifest, nil
}

// SetRef implements [build.Blobs]: BuildKit's clients write the index of a local cache themselves, from the response's "cache.manifest".
func (c *client) SetRef(context.Context, string, string, []byte) error { return nil }
