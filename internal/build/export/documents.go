package export

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd/platforms"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

// Attestations of an image are layers of a manifest of their own, which the index lists behind the images (BuildKit, docs/attestations/attestation-storage.md).
const (
	typeInToto          = "application/vnd.in-toto+json"
	typeAttestations    = "application/vnd.docker.attestation.manifest.v1+json"
	predicateAnnotation = "in-toto.io/predicate-type"
	attestationManifest = "attestation-manifest"
)

// parcel is all that leaves under one name: images, what is said about them, and the index that lists both.
type parcel struct {
	images  []packedImage
	about   []artifact
	index   *manifest.Document // nil: a single image
	created time.Time
}

// root is what the name leads to.
func (p *parcel) root() manifest.Document {
	if p.index != nil {
		return *p.index
	}
	return p.images[0].doc
}

// packedImage is one image with the manifest that lists its layers as they went out.
type packedImage struct {
	t   *target
	out image.Outgoing
	doc manifest.Document
}

// artifact is a manifest of attestations, with its blobs.
type artifact struct {
	doc   manifest.Document
	blobs map[digest.Digest][]byte // config and statements
}

// descriptor is how an index lists a document.
func descriptor(doc manifest.Document) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw))}
}

// attested tells whether any platform has attestations.
func (x *exporting) attested() bool {
	for _, t := range x.targets {
		if len(t.attests) > 0 {
			return true
		}
	}
	return false
}

// pack makes the documents, when the layers of all images are settled or sent.
func (x *exporting) pack(ctx context.Context, outs []image.Outgoing) (*parcel, error) {
	oci := x.opts.ociTypes(x.attested())
	notes, err := x.notes()
	if err != nil {
		return nil, err
	}
	p := &parcel{}
	var list []ocispec.Descriptor
	var about []ocispec.Descriptor
	for i, t := range x.targets {
		doc, err := imageManifest(t, outs[i], oci, notes.of(exptypes.AnnotationManifest, t))
		if err != nil {
			return nil, err
		}
		p.images = append(p.images, packedImage{t, outs[i], doc})
		t.blobs = doc.Manifest.Layers
		d := descriptor(doc)
		d.Platform = plain(t.platform)
		d.Annotations = notes.of(exptypes.AnnotationManifestDescriptor, t)
		list = append(list, d)
		if len(t.attests) > 0 {
			a, err := x.attestationManifest(ctx, t, doc)
			if err != nil {
				return nil, err
			}
			p.about = append(p.about, a)
			about = append(about, aboutDescriptor(a.doc, doc))
		}
	}
	p.created = created(x.targets[0])
	if !x.many() && len(about) == 0 {
		if notes.any(exptypes.AnnotationIndex) || notes.any(exptypes.AnnotationIndexDescriptor) {
			return nil, errs.New(errs.Invalid, "index annotations need an index: build for several platforms, or with attestations")
		}
		return p, nil
	}
	p.index, err = index(append(list, about...), oci, notes.of(exptypes.AnnotationIndex, nil))
	return p, err
}

// created is the time that the config of an image says.
func created(t *target) time.Time {
	if cfg, err := image.ParseConfig(t.config); err == nil && cfg.Created != nil {
		return *cfg.Created
	}
	return time.Unix(0, 0).UTC() // finish sets one
}

// plain is a platform as indexes have it.
func plain(p ocispec.Platform) *ocispec.Platform {
	p = platforms.Normalize(p)
	return &p
}

func aboutDescriptor(doc, image manifest.Document) ocispec.Descriptor {
	d := descriptor(doc)
	d.ArtifactType = "" // listed as BuildKit does
	d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	d.Annotations = map[string]string{manifest.AnnotationReference: attestationManifest, manifest.AnnotationAbout: image.Digest.String()}
	return d
}

// imageManifest lists the layers as they went out.
func imageManifest(t *target, out image.Outgoing, oci bool, annotations map[string]string) (manifest.Document, error) {
	asSent, err := out.Manifest()
	if err != nil {
		return manifest.Document{}, err
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIManifest, Layers: []ocispec.Descriptor{}, Annotations: annotations}
	m.Config = ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(t.config), Size: int64(len(t.config))}
	if !oci {
		m.MediaType, m.Config.MediaType = manifest.DockerManifest, manifest.DockerConfig
	}
	for _, l := range asSent.Manifest.Layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: layerType(l.MediaType, oci), Digest: l.Digest, Size: l.Size})
	}
	return document(m.MediaType, m)
}

// layerType is the word for a layer among OCI's types, or Docker's.
func layerType(t string, oci bool) string {
	switch compressionOf(t) {
	case "zstd":
		if oci {
			return manifest.OCILayerZstd
		}
		return manifest.DockerLayerTar + ".zstd"
	case "uncompressed":
		if oci {
			return manifest.OCILayer
		}
		return manifest.DockerLayerTar
	}
	if oci {
		return manifest.OCILayerGzip
	}
	return manifest.DockerLayer
}

func index(list []ocispec.Descriptor, oci bool, annotations map[string]string) (*manifest.Document, error) {
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIIndex, Manifests: list, Annotations: annotations}
	if !oci {
		idx.MediaType = manifest.DockerList
	}
	doc, err := document(idx.MediaType, idx)
	return &doc, err
}

// document writes a manifest or index, indented as BuildKit's are.
func document(mediaType string, v any) (manifest.Document, error) {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return manifest.Document{}, err
	}
	return manifest.Parse(mediaType, raw)
}

// attestationManifest writes the statements about an image, and the manifest that has them as layers.
func (x *exporting) attestationManifest(ctx context.Context, t *target, doc manifest.Document) (artifact, error) {
	a := artifact{blobs: map[digest.Digest][]byte{}}
	subject := descriptor(doc)
	asArtifact := x.opts.artifact == nil || *x.opts.artifact
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIManifest, Layers: []ocispec.Descriptor{}}
	self := x.subjects(t, doc)
	var diffs []digest.Digest
	for _, att := range t.attests {
		stmt, err := att.statement(ctx, self)
		if err != nil {
			return a, err
		}
		if att.core && att.predicateType == spdxURI {
			if stmt.Predicate, err = x.withLayers(ctx, t, stmt.Predicate); err != nil {
				return a, fmt.Errorf("attestation %s: %w", att.path, err)
			}
		}
		raw, err := json.Marshal(stmt)
		if err != nil {
			return a, fmt.Errorf("attestation %s: %w", att.path, err)
		}
		d := ocispec.Descriptor{MediaType: typeInToto, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Annotations: map[string]string{predicateAnnotation: stmt.PredicateType}}
		a.blobs[d.Digest] = raw
		diffs = append(diffs, d.Digest)
		m.Layers = append(m.Layers, d)
	}
	if asArtifact {
		m.ArtifactType, m.Subject, m.Config = typeAttestations, &subject, ocispec.DescriptorEmptyJSON
		a.blobs[m.Config.Digest] = m.Config.Data
	} else {
		config, err := json.Marshal(ocispec.Image{Platform: ocispec.Platform{Architecture: "unknown", OS: "unknown"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffs}})
		if err != nil {
			return a, err
		}
		m.Config = ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
		a.blobs[m.Config.Digest] = config
	}
	var err error
	a.doc, err = document(m.MediaType, m)
	return a, err
}

// subjects are the names of an image as package URLs, with its digest.
func (x *exporting) subjects(t *target, doc manifest.Document) (all []Subject) {
	sum := map[string]string{doc.Digest.Algorithm().String(): doc.Digest.Encoded()}
	for _, r := range x.opts.names {
		all = append(all, Subject{imageURL(r, &t.platform), sum})
	}
	if len(all) == 0 {
		all = []Subject{{"_", sum}}
	}
	return all
}

// fetch gives the blobs of an artifact.
func (a artifact) fetch(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	raw, ok := a.blobs[d.Digest]
	if !ok {
		return nil, errs.New(errs.NotFound, "attestation blob %s: not found", d.Digest)
	}
	return raw, nil
}
