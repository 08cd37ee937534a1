package server

import (
	"encoding/json"
	"mime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

// document is what a registry has to know of a manifest. It is read here and not by manifest.Parse, because a registry keeps more than an engine can
// use: other digest algorithms, artifacts without layers, types that came after it. What it does not know it keeps as it is.
type document struct {
	mediaType    string
	artifactType string
	annotations  map[string]string
	subject      *ocispec.Descriptor
	blobs        []ocispec.Descriptor // config, layers, and the blobs of the short-lived artifact manifest
	manifests    []ocispec.Descriptor
}

// maxReferences bounds what one manifest may name: each is looked up.
const maxReferences = manifest.MaxEntries

// parseDocument reads a manifest that came with a Content-Type (may be empty).
func parseDocument(contentType string, raw []byte) (document, error) {
	var wire struct {
		SchemaVersion *int                 `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		ArtifactType  string               `json:"artifactType"`
		Annotations   map[string]string    `json:"annotations"`
		Subject       *ocispec.Descriptor  `json:"subject"`
		Config        *ocispec.Descriptor  `json:"config"`
		Layers        []ocispec.Descriptor `json:"layers"`
		Blobs         []ocispec.Descriptor `json:"blobs"`
		Manifests     []ocispec.Descriptor `json:"manifests"`
		FSLayers      json.RawMessage      `json:"fsLayers"`
	}
	if err := json.Unmarshal(raw, &wire); err != nil {
		return document{}, errs.New(errs.Invalid, "manifest is not the JSON it should be: %w", err)
	}
	mediaType, err := bareType(contentType)
	if err != nil {
		return document{}, err
	}
	if wire.FSLayers != nil || mediaType == manifest.DockerSchema1 || mediaType == manifest.DockerSigned1 {
		return document{}, errs.New(errs.Invalid, "manifest has the format of schema 1, which Docker gave up in 2024: push the image again with a tool of today")
	}
	if mediaType == "" || mediaType == "application/json" || mediaType == "application/octet-stream" {
		mediaType = wire.MediaType
	}
	if wire.MediaType != "" && wire.MediaType != mediaType {
		return document{}, errs.New(errs.Invalid, "manifest says it is %q, but came as %q", wire.MediaType, mediaType)
	}
	d := document{
		mediaType: mediaType, artifactType: wire.ArtifactType, annotations: wire.Annotations, subject: wire.Subject,
		blobs: append(wire.Layers, wire.Blobs...), manifests: wire.Manifests,
	}
	if wire.Config != nil {
		d.blobs = append(d.blobs, *wire.Config)
		if d.artifactType == "" {
			d.artifactType = wire.Config.MediaType
		}
	}
	if d.mediaType == "" {
		d.mediaType = manifest.OCIManifest
		if wire.Manifests != nil {
			d.mediaType = manifest.OCIIndex
		}
	}
	if manifest.IsDocument(d.mediaType) {
		if wire.SchemaVersion == nil || *wire.SchemaVersion != 2 {
			return d, errs.New(errs.Invalid, "manifest has no schemaVersion 2")
		}
		// A document that is an image for one reader and an index for another has no place in a registry.
		isIndex := manifest.IsIndex(d.mediaType)
		if isIndex && (wire.Config != nil || wire.Layers != nil) || !isIndex && (wire.Manifests != nil || wire.Config == nil) {
			return d, errs.New(errs.Invalid, "manifest of type %q must have either manifests, or a config and layers", d.mediaType)
		}
	}
	return d, d.check()
}

// bareType is a Content-Type without parameters.
func bareType(contentType string) (string, error) {
	if contentType == "" {
		return "", nil
	}
	bare, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		bare = strings.TrimSpace(strings.Split(contentType, ";")[0]) // bad parameters are ignored like good ones
	}
	if len(bare) > 255 || strings.ContainsFunc(bare, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", errs.New(errs.Invalid, "invalid Content-Type %.60q", contentType)
	}
	return bare, nil
}

// check refuses references that cannot be kept.
func (d *document) check() error {
	if n := len(d.blobs) + len(d.manifests); n > maxReferences {
		return errs.New(errs.Invalid, "manifest names %d others, more than %d", n, maxReferences)
	}
	for _, list := range [][]ocispec.Descriptor{d.blobs, d.manifests} {
		for i := range list {
			if err := checkDescriptor(list[i]); err != nil {
				return err
			}
		}
	}
	if d.subject != nil {
		return checkDescriptor(*d.subject)
	}
	return nil
}

func checkDescriptor(desc ocispec.Descriptor) error {
	if _, ok := parseDigest(string(desc.Digest)); !ok {
		return errs.New(errs.Invalid, "manifest names the invalid or unsupported digest %.150q", string(desc.Digest))
	}
	if desc.Size < 0 {
		return errs.New(errs.Invalid, "manifest names %s with a size of %d", desc.Digest, desc.Size)
	}
	return nil
}

// descriptor is how a manifest is listed among the referrers of its subject.
func (d *document) descriptor(dgst digest.Digest, size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.mediaType, ArtifactType: d.artifactType, Digest: dgst, Size: size, Annotations: d.annotations}
}

// optional tells whether a blob need not be here: a layer that its owner lets nobody else distribute.
func optional(desc ocispec.Descriptor) bool {
	return manifest.IsForeign(desc.MediaType) || len(desc.URLs) > 0
}
