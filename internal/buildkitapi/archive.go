package buildkitapi

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// The media types of a .dockerbuild file, which Docker Desktop and `buildx history export` speak. It is a tar in gzip with an OCI layout:
//
//	index.json ─▶ manifest ─▶ config: the record of the build, as the control API's BuildHistoryRecord in JSON
//	                      └─▶ layers: what happened: messages of StatusResponse, each after its length (4 bytes, little endian); the provenance of the results
//
// Several builds have an index between index.json and their manifests. What a build made is not in it: history keeps no results.
const (
	recordType    = "application/vnd.buildkit.historyrecord.v0"
	statusType    = "application/vnd.buildkit.status.v0"
	refAnnotation = "vnd.buildkit.history.reference"
)

// archived is the record of a build in a file.
type archived struct {
	*control.BuildHistoryRecord
	DefaultPlatform string
}

// Archive writes builds of the past as a .dockerbuild file, in the order of refs. errs.NotFound, errs.Conflict for one that is under way; nothing is written then.
func (d *Door) Archive(ctx context.Context, refs []string, w io.Writer) error {
	past := map[string]builds.Build{}
	err := d.Builds.History(ctx, false, func(b builds.Build) error {
		past[b.Ref] = b
		return nil
	})
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if b, ok := past[ref]; !ok {
			return errs.New(errs.NotFound, "no such build: %s", ref)
		} else if b.Completed.IsZero() {
			return errs.New(errs.Conflict, "build %s is under way", ref)
		}
	}
	a := &archive{blobs: map[digest.Digest]bool{}}
	gz := gzip.NewWriter(w)
	a.tar = tar.NewWriter(gz)
	if err := a.file(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`)); err != nil {
		return err
	}
	var list []ocispec.Descriptor
	for _, ref := range refs {
		desc, err := d.archiveOne(ctx, a, past[ref])
		if err != nil {
			return fmt.Errorf("build %s: %w", ref, err)
		}
		list = append(list, desc)
	}
	if len(list) > 1 {
		desc, err := a.json(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
		if err != nil {
			return err
		}
		list = []ocispec.Descriptor{desc}
	} else {
		list[0].Annotations = nil
	}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: list})
	if err != nil {
		return err
	}
	if err := a.file(ocispec.ImageIndexFile, index); err != nil {
		return err
	}
	if err := a.tar.Close(); err != nil {
		return err
	}
	return gz.Close()
}

// archiveOne writes the blobs of one build.
func (d *Door) archiveOne(ctx context.Context, a *archive, b builds.Build) (desc ocispec.Descriptor, err error) {
	logs, err := d.logs(ctx, b.Ref)
	if err != nil {
		return desc, err
	}
	status, err := a.blob(statusType, logs)
	if err != nil {
		return desc, err
	}
	layers := []ocispec.Descriptor{status}
	for _, doc := range b.Provenance {
		raw, err := d.Builds.Document(ctx, doc.Digest)
		if err != nil {
			return desc, err
		}
		layer, err := a.blob(attestationType, raw)
		if err != nil {
			return desc, err
		}
		layer.Annotations = map[string]string{"in-toto.io/predicate-type": doc.Type}
		layers = append(layers, layer)
	}
	rec := historyEvent(b).Record
	rec.Logs = &control.Descriptor{MediaType: status.MediaType, Digest: status.Digest.String(), Size: status.Size}
	cfg := archived{BuildHistoryRecord: rec}
	if names := d.Builds.PlatformNames(); len(names) > 0 {
		cfg.DefaultPlatform = names[0]
	}
	config, err := a.json(recordType, cfg)
	if err != nil {
		return desc, err
	}
	desc, err = a.json(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
	})
	desc.Annotations = map[string]string{refAnnotation: b.Ref}
	return desc, err
}

// archive is a layout that is being written.
type archive struct {
	tar   *tar.Writer
	blobs map[digest.Digest]bool
}

func (a *archive) file(name string, data []byte) error {
	if err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o444, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := a.tar.Write(data)
	return err
}

// blob writes a blob, unless it is there.
func (a *archive) blob(kind string, data []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if a.blobs[desc.Digest] {
		return desc, nil
	}
	a.blobs[desc.Digest] = true
	return desc, a.file(path.Join(ocispec.ImageBlobsDir, desc.Digest.Algorithm().String(), desc.Digest.Encoded()), data)
}

func (a *archive) json(kind string, doc any) (ocispec.Descriptor, error) {
	data, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return a.blob(kind, data)
}
