package image_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

// multi is an index of images that have one layer each, as a build makes it.
func multi(t *testing.T, h house, archs ...string) (manifest.Document, []image.CreateOptions) {
	t.Helper()
	var all []image.CreateOptions
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, arch := range archs {
		layer := step(t, h, "", arch)
		opts := image.CreateOptions{Config: configOf(t, arch, layer), Chain: layer.Chain}
		layers, err := h.LayerBlobs(ctx, opts, image.Compression{Type: "gzip"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		doc := document(t, ocispec.Manifest{Versioned: index.Versioned, MediaType: ocispec.MediaTypeImageManifest, Layers: layers,
			Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(opts.Config), Size: int64(len(opts.Config))}})
		opts.Manifest = &doc
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw)), Platform: &ocispec.Platform{OS: "linux", Architecture: arch}})
		all = append(all, opts)
	}
	return document(t, index), all
}

// An index that was built without a name was not kept: nothing told of it but its images, and a push of the digest that the build had given found nothing.
func TestIndexWithoutName(t *testing.T) {
	h := open(t, t.TempDir())
	doc, all := multi(t, h, "amd64", "arm64")
	img, err := h.CreateIndex(ctx, image.IndexOptions{Index: doc, Images: all})
	if err != nil {
		t.Fatal(err)
	}
	before := stamp(t, h)
	if _, err := h.CreateIndex(ctx, image.IndexOptions{Index: doc, Images: all}); err != nil || stamp(t, h) != before {
		t.Error("the same once more is written again", err)
	}
	check := func(when string) {
		t.Helper()
		for _, ref := range []string{doc.Digest.String(), doc.Digest.Encoded()[:12]} {
			if got, err := h.Get(ctx, ref); err != nil || got.ID != img.ID || len(got.Tags) > 0 {
				t.Errorf("%s: %s: %+v %v", when, ref, got, err)
			}
			if got, err := h.GetFor(ctx, ref, manifest.Platform{OS: "linux", Arch: "arm64"}); err != nil || got.Config.Architecture != "arm64" {
				t.Errorf("%s: %s for arm64: %+v %v", when, ref, got, err)
			}
		}
		if parts, err := h.Parts(ctx, img.ID); err != nil || len(parts) != 2 {
			t.Errorf("%s: %v %v", when, parts, err)
		}
		dangling := h.Dangling(ctx)
		list, err := h.List(ctx)
		if err != nil || len(list) != 2 {
			t.Errorf("%s: %v %v", when, list, err)
		}
		for _, one := range list {
			if dangling(one.ID) != (one.ID == img.ID) {
				t.Errorf("%s: %s dangles: %v", when, one.Config.Architecture, dangling(one.ID))
			}
		}
	}
	check("built")
	h = open(t, h.root)
	check("after a restart")

	// With a name it is a named one; without that, all of it goes.
	if err := h.Tag(ctx, doc.Digest.String(), "multi:1"); err != nil {
		t.Fatal(err)
	}
	if got, err := h.GetFor(ctx, "multi:1", manifest.Platform{OS: "linux", Arch: "arm64"}); err != nil || got.Config.Architecture != "arm64" || h.Dangling(ctx)(img.ID) {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := h.Remove(ctx, "multi:1", false, true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.CreateIndex(ctx, image.IndexOptions{Index: doc, Images: all}); err != nil {
		t.Fatal(err)
	}
	check("built again")
	if _, err := h.Remove(ctx, img.ID.String(), false, true, nil); err != nil {
		t.Fatal(err)
	}
	h.Sweep()
	if list, err := h.List(ctx); err != nil || len(list) > 0 {
		t.Errorf("%v %v", list, err)
	}
	if _, err := h.Get(ctx, doc.Digest.String()); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if left := files(t, h.root, "content/blobs/sha256/*"); len(left) > 0 {
		t.Errorf("%d blobs stay", len(left))
	}
}

// What is built goes out without ever being an image.

// Two multi-platform builds without a name that had an image in common were one after the removal of the other: the image that both show went, and what it stood for with it.
func TestIndexesWithoutNameShareAnImage(t *testing.T) {
	h := open(t, t.TempDir())
	build := func(refs []string, archs ...string) digest.Digest {
		t.Helper()
		doc, all := multi(t, h, archs...)
		if _, err := h.CreateIndex(ctx, image.IndexOptions{Index: doc, Images: all, Names: names(t, refs...)}); err != nil {
			t.Fatal(err)
		}
		return doc.Digest
	}
	whole := func(ref digest.Digest, archs ...string) {
		t.Helper()
		for _, arch := range archs {
			if got, err := h.GetFor(ctx, ref.String(), manifest.Platform{OS: "linux", Arch: arch}); err != nil || got.Config.Architecture != arch {
				t.Errorf("%s: %v", arch, err)
			}
		}
	}
	first, second := build(nil, "amd64", "arm64"), build(nil, "amd64", "arm64", "s390x")
	build([]string{"named:1"}, "amd64", "riscv64")
	if _, err := h.Remove(ctx, "named:1", false, true, nil); err != nil {
		t.Fatal(err)
	}
	whole(first, "amd64", "arm64")
	whole(second, "amd64", "arm64", "s390x")
	done, err := h.Remove(ctx, second.Encoded()[:12], false, true, nil)
	if err != nil || len(done) == 0 || done[0].Deleted != second.String() {
		t.Fatal(done, err)
	}
	whole(first, "amd64", "arm64")
	if _, err := h.Get(ctx, second.String()); err == nil {
		t.Error("the second index is still there")
	}
	used := func(digest.Digest) (stopped, running []string) { return []string{"c0ffee"}, nil }
	if _, err := h.Remove(ctx, first.String(), false, true, used); err == nil {
		t.Error("an index whose image is in use was removed without force")
	}
	whole(first, "amd64", "arm64")
	if _, err := h.Remove(ctx, first.String(), false, true, nil); err != nil {
		t.Fatal(err)
	}
	if list, err := h.List(ctx); err != nil || len(list) > 0 {
		t.Errorf("left: %+v %v", list, err)
	}
}

// `save` of a multi-platform build by its digest wrote this host's image only.
func TestIndexWithoutNameTravels(t *testing.T) {
	from, to := open(t, t.TempDir()), open(t, t.TempDir())
	doc, all := multi(t, from, "amd64", "arm64")
	if _, err := from.CreateIndex(ctx, image.IndexOptions{Index: doc, Images: all}); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{doc.Digest.String(), doc.Digest.Encoded()[:10]} {
		var archive bytes.Buffer
		if err := from.Save(ctx, []string{ref}, nil, &archive); err != nil {
			t.Fatal(err)
		}
		names, err := to.Load(ctx, &archive, nil)
		if err != nil || len(names) != 1 || names[0] != doc.Digest.String() {
			t.Fatal(names, err)
		}
		for _, arch := range []string{"amd64", "arm64"} {
			if got, err := to.GetFor(ctx, doc.Digest.String(), manifest.Platform{OS: "linux", Arch: arch}); err != nil || got.Config.Architecture != arch {
				t.Errorf("%s: %v", arch, err)
			}
		}
		if _, err := to.Remove(ctx, doc.Digest.String(), false, true, nil); err != nil {
			t.Fatal(err)
		}
		if list, err := to.List(ctx); err != nil || len(list) > 0 {
			t.Errorf("left: %+v %v", list, err)
		}
	}
}
