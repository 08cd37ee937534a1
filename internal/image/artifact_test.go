package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

// attestation is what BuildKit puts beside an image: the config is one of an image of no platform, the layers are statements.
func attestation(t *testing.T, about digest.Digest) (doc manifest.Document, entry ocispec.Descriptor, blobs map[digest.Digest][]byte) {
	t.Helper()
	put := func(kind string, data []byte) ocispec.Descriptor {
		d := digest.FromBytes(data)
		if blobs == nil {
			blobs = map[digest.Digest][]byte{}
		}
		blobs[d] = data
		return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
	}
	sbom := put("application/vnd.in-toto+json", []byte(`{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","about":"`+about+`"}`))
	config := put(manifest.OCIConfig, []byte(`{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":["`+sbom.Digest.String()+`"]}}`))
	raw, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIManifest, Config: config, Layers: []ocispec.Descriptor{sbom, sbom}})
	if err != nil {
		t.Fatal(err)
	}
	if doc, err = manifest.Parse("", raw); err != nil {
		t.Fatal(err)
	}
	entry = ocispec.Descriptor{MediaType: manifest.OCIManifest, Digest: doc.Digest, Size: int64(len(raw)), Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{manifest.AnnotationReference: "attestation-manifest", manifest.AnnotationAbout: about.String()}}
	return doc, entry, blobs
}

func fetchFrom(blobs map[digest.Digest][]byte) func(context.Context, ocispec.Descriptor) ([]byte, error) {
	return func(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
		if data, ok := blobs[d.Digest]; ok {
			return data, nil
		}
		return nil, errs.New(errs.NotFound, "no %s", d.Digest)
	}
}

// Nearly every image of Docker Hub has attestations. An index that was pulled with all its platforms went out as a new and smaller one, with another digest, because they were not kept.
func TestAttestations(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{Platform: "linux/amd64"})
	doc, entry, blobs := attestation(t, digest.FromString("another image"))
	entry.Annotations = nil
	release, err := h.ReceiveArtifact(ctx, doc, fetchFrom(blobs))
	if err != nil {
		t.Fatal(err)
	}
	index, _ := h.pullIndex(t, "reg.io/multi", entry)
	release()
	check := func(h house, name string) {
		t.Helper()
		all, out, err := h.Send(ctx, name, image.SendOptions{AllPlatforms: true})
		if err != nil || len(all) != 3 || out == nil || out.Digest != index.Digest {
			t.Fatal(len(all), out, err)
		}
		last := all[2]
		if m, err := last.Manifest(); err != nil || m.Digest != doc.Digest || !bytes.Equal(m.Raw, doc.Raw) {
			t.Errorf("%s %v", m.Raw, err)
		}
		if d, raw := last.Config(); digest.FromBytes(raw) != d.Digest || last.ID() != d.Digest {
			t.Errorf("%s is %s", raw, d.Digest)
		}
		for _, l := range last.Layers() {
			d, ok := l.Known()
			if !ok || l.DiffID() != d.Digest || l.Size() != d.Size || l.Origins() != nil {
				t.Error(d, ok)
			}
			if !bytes.Equal(readLayer(t, l, 3), blobs[d.Digest][3:]) {
				t.Error("other bytes")
			}
			if err := errors.Join(l.Sent(d)); err != nil || l.Sent(ocispec.Descriptor{Digest: entry.Digest}) == nil {
				t.Error("an artifact that went out changed", err)
			}
		}
		for _, o := range all {
			o.Close()
		}
	}
	for range 2 {
		check(h, "reg.io/multi:1")
		h.Images.Close()
		h = openWith(t, h.root, image.Options{Platform: "linux/amd64"})
	}
	gone, err := h.Collect(ctx, image.Policy{Garbage: 1}, nil, nil)
	if err != nil || len(gone) > 0 {
		t.Error("collected", gone, err)
	}
	check(h, "reg.io/multi:1")
	var saved, again bytes.Buffer
	if err := h.Save(ctx, []string{"reg.io/multi:1"}, nil, &saved); err != nil {
		t.Fatal(err)
	}
	other := openWith(t, t.TempDir(), image.Options{Platform: "linux/amd64"})
	if names, err := other.Load(ctx, bytes.NewReader(saved.Bytes()), nil); err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	check(other, "reg.io/multi:1")
	other.settle(t)
	if err := other.Save(ctx, []string{"reg.io/multi:1"}, nil, &again); err != nil || !bytes.Equal(saved.Bytes(), again.Bytes()) {
		t.Error("saved again it has other bytes", err)
	}
	// They are there as long as a name leads to the index.
	if err := h.Tag(ctx, "reg.io/multi:1", "other.io/x:2"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"reg.io/multi:1", "other.io/x:2"} {
		check(h, name)
		if _, err := h.Remove(ctx, name, false, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	h.isEmpty(t)
	if _, err := other.Collect(ctx, image.Policy{MaxAge: 1, Tagged: true}, nil, nil); err != nil {
		t.Fatal(err)
	}
	other.isEmpty(t)
}

// What is about an image that is not here does not go out; what breaks off leaves nothing.
func TestAttestationsInPart(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{Platform: "linux/amd64"})
	doc, entry, blobs := attestation(t, digest.FromString("another image"))
	if _, err := h.ReceiveArtifact(ctx, doc, func(context.Context, ocispec.Descriptor) ([]byte, error) { return nil, io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if _, err := h.ReceiveArtifact(ctx, doc, func(context.Context, ocispec.Descriptor) ([]byte, error) { return []byte("lies"), nil }); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	release, err := h.ReceiveArtifact(ctx, doc, fetchFrom(blobs))
	if err != nil {
		t.Fatal(err)
	}
	release() // without an index that has it
	if u, err := h.blobs.Usage(); err != nil || u.Blobs != 0 {
		t.Error(u, err)
	}
	huge := *doc.Manifest
	huge.Layers = []ocispec.Descriptor{{MediaType: "x/y", Digest: digest.FromString("huge"), Size: image.MaxArtifacts + 1}}
	if _, err := h.ReceiveArtifact(ctx, manifest.Document{Digest: doc.Digest, Manifest: &huge}, fetchFrom(nil)); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if release, err = h.ReceiveArtifact(ctx, doc, fetchFrom(blobs)); err != nil {
		t.Fatal(err)
	}
	missing := ocispec.Descriptor{MediaType: manifest.OCIManifest, Digest: digest.FromString("another image"), Size: 9, Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}}
	h.pullIndex(t, "reg.io/multi", entry, missing)
	release()
	all, out, err := h.Send(ctx, "reg.io/multi:1", image.SendOptions{AllPlatforms: true})
	if err != nil || len(all) != 2 || len(out.Index.Manifests) != 2 {
		t.Fatal(len(all), out, err)
	}
	for _, o := range all {
		o.Close()
	}
	// The name moves on to another index: what only the first one had goes.
	h.pullIndex(t, "reg.io/multi")
	if _, err := h.Remove(ctx, "reg.io/multi:1", true, true, nil); err != nil {
		t.Fatal(err)
	}
	h.isEmpty(t)
}
