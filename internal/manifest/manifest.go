// Package manifest is the words of what registries and layouts keep: image manifests and indexes, in OCI's form and in Docker's.
//
// It owns the media types, the bounds and the choice of a platform. It is pure. It promises that what Parse accepted is consistent (one kind of
// document, valid sha256 digests, no negative or absurd sizes, no kinds mixed), so that others use it without another look; and that the raw bytes are
// what counts: nobody writes a parsed document back.
package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
)

// Media types (image-spec media-types.md; distribution "Image Manifest V 2, Schema 2").
const (
	OCIManifest    = ocispec.MediaTypeImageManifest
	OCIIndex       = ocispec.MediaTypeImageIndex
	OCIConfig      = ocispec.MediaTypeImageConfig
	OCILayer       = ocispec.MediaTypeImageLayer
	OCILayerGzip   = ocispec.MediaTypeImageLayerGzip
	OCILayerZstd   = ocispec.MediaTypeImageLayerZstd
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerSchema1  = "application/vnd.docker.distribution.manifest.v1+json"
	DockerSigned1  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	DockerConfig   = "application/vnd.docker.container.image.v1+json"
	DockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerTar = "application/vnd.docker.image.rootfs.diff.tar"
	DockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// Bounds of a document.
const (
	MaxSize    = 4 << 20 // bytes of a manifest or index (distribution-spec: registries should take at least 4 MiB)
	MaxConfig  = 8 << 20 // bytes of a config blob
	MaxLayers  = 1024    // of one image
	MaxEntries = 4096    // of one index
)

// Document is a manifest or an index: exactly one of the two is set.
type Document struct {
	MediaType string
	Digest    digest.Digest // of the raw bytes
	Raw       []byte
	Manifest  *ocispec.Manifest
	Index     *ocispec.Index
}

// Parse reads a document. mediaType is what came beside it (a Content-Type, a descriptor), may be empty, and must agree with the document's own word.
func Parse(mediaType string, raw []byte) (Document, error) {
	doc := Document{Digest: digest.FromBytes(raw), Raw: raw}
	if len(raw) > MaxSize {
		return doc, errs.New(errs.Invalid, "manifest has %d bytes, more than %d", len(raw), MaxSize)
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	mediaType = strings.TrimSpace(mediaType)
	var probe struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(raw, &probe); err != nil {
		return doc, errs.New(errs.Invalid, "manifest is not valid JSON: %w", err)
	}
	if probe.SchemaVersion == 1 || probe.FSLayers != nil || mediaType == DockerSchema1 || mediaType == DockerSigned1 {
		return doc, errs.New(errs.Invalid, "manifest has the format of schema 1, which Docker gave up in 2024: push the image again with a tool of today")
	}
	if probe.SchemaVersion != 2 {
		return doc, errs.New(errs.Invalid, "manifest has schemaVersion %d, expected 2", probe.SchemaVersion)
	}
	isIndex, isManifest := probe.Manifests != nil, probe.Config != nil || probe.Layers != nil
	if isIndex == isManifest {
		return doc, errs.New(errs.Invalid, "manifest must list either manifests, or a config and layers")
	}
	if probe.MediaType != "" && mediaType != "" && IsDocument(mediaType) && probe.MediaType != mediaType {
		return doc, errs.New(errs.Invalid, "manifest says it is %q, but came as %q", probe.MediaType, mediaType)
	}
	doc.MediaType = probe.MediaType
	if doc.MediaType == "" {
		doc.MediaType = mediaType
	}
	switch {
	case isIndex && doc.MediaType != OCIIndex && doc.MediaType != DockerList:
		if IsDocument(doc.MediaType) {
			return doc, errs.New(errs.Invalid, "manifest of type %q lists manifests", doc.MediaType)
		}
		doc.MediaType = OCIIndex
	case isManifest && doc.MediaType != OCIManifest && doc.MediaType != DockerManifest:
		if IsDocument(doc.MediaType) {
			return doc, errs.New(errs.Invalid, "index of type %q has layers", doc.MediaType)
		}
		doc.MediaType = OCIManifest
	}
	if isIndex {
		return doc, doc.parseIndex(raw)
	}
	return doc, doc.parseManifest(raw)
}

func (doc *Document) parseIndex(raw []byte) error {
	doc.Index = &ocispec.Index{}
	if err := decode(raw, doc.Index); err != nil {
		return err
	}
	if n := len(doc.Index.Manifests); n > MaxEntries {
		return errs.New(errs.Invalid, "index has %d entries, more than %d", n, MaxEntries)
	}
	for i := range doc.Index.Manifests {
		if err := Check(doc.Index.Manifests[i]); err != nil {
			return errs.New(errs.Invalid, "index: entry %d: %w", i, err)
		}
	}
	return nil
}

func (doc *Document) parseManifest(raw []byte) error {
	doc.Manifest = &ocispec.Manifest{}
	if err := decode(raw, doc.Manifest); err != nil {
		return err
	}
	if err := Check(doc.Manifest.Config); err != nil {
		return errs.New(errs.Invalid, "manifest: config: %w", err)
	}
	if n := len(doc.Manifest.Layers); n > MaxLayers {
		return errs.New(errs.Invalid, "manifest has %d layers, more than %d", n, MaxLayers)
	}
	for i := range doc.Manifest.Layers {
		if err := Check(doc.Manifest.Layers[i]); err != nil {
			return errs.New(errs.Invalid, "manifest: layer %d: %w", i, err)
		}
	}
	return nil
}

func decode(raw []byte, into any) error {
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(into); err != nil {
		return errs.New(errs.Invalid, "manifest is not as it should be: %w", err)
	}
	return nil
}

// maxBlob bounds what a descriptor may claim: 1 TiB.
const maxBlob = 1 << 40

// Check tells whether a descriptor can be used.
func Check(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
		return errs.New(errs.Invalid, "%q is not a sha256 digest", string(d.Digest))
	}
	if d.Size < 0 || d.Size > maxBlob {
		return errs.New(errs.Invalid, "%s has a size of %d", d.Digest, d.Size)
	}
	return nil
}

// IsDocument tells whether a media type is one of a manifest or index.
func IsDocument(mediaType string) bool {
	switch mediaType {
	case OCIManifest, OCIIndex, DockerManifest, DockerList:
		return true
	}
	return false
}

// IsIndex tells whether a media type is one of an index.
func IsIndex(mediaType string) bool { return mediaType == OCIIndex || mediaType == DockerList }

// IsArtifact tells whether what an index lists is no image but something about one or beside one: an attestation (BuildKit lists it with the platform unknown/unknown), a signature,
// a chart.
func IsArtifact(d ocispec.Descriptor, doc Document) bool {
	if doc.Manifest == nil {
		return false
	}
	if d.Platform != nil && d.Platform.OS == "unknown" || d.Annotations[AnnotationReference] != "" || doc.Manifest.ArtifactType != "" {
		return true
	}
	return !IsImageConfig(doc.Manifest.Config.MediaType)
}

// IsImageConfig tells whether a media type is one that configs of images come with.
func IsImageConfig(mediaType string) bool {
	switch mediaType {
	case "", OCIConfig, DockerConfig, "application/octet-stream", "text/html": // the last two are what old registries and proxies made of it
		return true
	}
	return false
}

// Annotations of an index entry by which BuildKit says that it is about another entry.
const (
	AnnotationReference = "vnd.docker.reference.type"
	AnnotationAbout     = "vnd.docker.reference.digest"
)

// Replaced is the index with other manifests in the place of some of its entries. What was about those that went (attestations name the digest) goes, too.
func (doc Document) Replaced(by map[digest.Digest]Document) (Document, error) {
	if doc.Index == nil {
		return doc, errs.New(errs.Invalid, "%s is no index", doc.Digest)
	}
	index := *doc.Index
	index.Manifests = nil
	for _, d := range doc.Index.Manifests {
		if _, gone := by[digest.Digest(d.Annotations[AnnotationAbout])]; gone {
			continue
		}
		if now, ok := by[d.Digest]; ok {
			d.MediaType, d.Digest, d.Size, d.Data = now.MediaType, now.Digest, int64(len(now.Raw)), nil
		}
		index.Manifests = append(index.Manifests, d)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return doc, fmt.Errorf("index: %w", err)
	}
	return Parse(doc.MediaType, raw)
}

// IsForeign tells whether a layer of this media type is kept elsewhere than in the registry (image-spec "non-distributable layers").
func IsForeign(mediaType string) bool {
	return mediaType == DockerForeign || strings.Contains(mediaType, ".nondistributable.")
}
