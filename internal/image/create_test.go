package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// step makes a relaxed layer with one file, held as the cache of a build does.
func step(t *testing.T, h house, chain snapshot.ChainID, name string) snapshot.Layer {
	t.Helper()
	if err := h.snaps.Prepare(ctx, "step", chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	m, err := h.snaps.Mount(ctx, "step")
	if err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile("/proc/self/fd/"+strconv.Itoa(int(m.Root.Fd()))+"/"+name, bytes.Repeat([]byte(name), 10000), 0o644)
	if err = errors.Join(err, m.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := h.snaps.Turn(ctx, "step", snapshot.TurnOptions{Relaxed: true, Hold: "test/" + name})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func configOf(t *testing.T, arch string, layers ...snapshot.Layer) []byte {
	t.Helper()
	cfg := image.Config{Architecture: arch, OS: "linux", RootFS: image.RootFS{Type: "layers"}}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.DiffID)
	}
	raw, err := json.MarshalIndent(cfg, "", "   ") // the bytes are the caller's
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func names(t *testing.T, all ...string) (refs []reference.Ref) {
	t.Helper()
	for _, s := range all {
		r, err := reference.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, r)
	}
	return refs
}

func TestCreate(t *testing.T) {
	h := open(t, t.TempDir())
	a := step(t, h, "", "a")
	b := step(t, h, a.Chain, "b")
	raw := configOf(t, "amd64", a, b)
	if _, err := h.Create(ctx, image.CreateOptions{Config: raw, Chain: a.Chain}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a config of another chain: %v", err)
	}
	if _, err := h.Create(ctx, image.CreateOptions{Config: []byte("{"), Chain: b.Chain}); !errors.Is(err, errs.Invalid) {
		t.Errorf("no config: %v", err)
	}
	img, err := h.Create(ctx, image.CreateOptions{Config: raw, Chain: b.Chain, Names: names(t, "app", "app:v1")})
	if err != nil || img.ID != digest.FromBytes(raw) || !bytes.Equal(img.Raw, raw) || !slices.Equal(img.Tags, []string{"app:latest", "app:v1"}) || img.Chain != b.Chain {
		t.Fatalf("%+v %v", img, err)
	}
	before := stamp(t, h)
	if again, err := h.Create(ctx, image.CreateOptions{Config: raw, Chain: b.Chain, Names: names(t, "app")}); err != nil || again.ID != img.ID || stamp(t, h) != before {
		t.Errorf("the same image again: %v, and the index was written: %v", err, stamp(t, h) != before)
	}
	other, err := h.Create(ctx, image.CreateOptions{Config: configOf(t, "arm64", a), Chain: a.Chain, Names: names(t, "app")})
	if err != nil || !slices.Equal(other.Tags, []string{"app:latest"}) {
		t.Fatal(other.Tags, err)
	}
	scratch, err := h.Create(ctx, image.CreateOptions{Config: configOf(t, "amd64"), Names: names(t, "empty")})
	if err != nil || scratch.Chain != "" {
		t.Error(scratch, err)
	}
	h = open(t, h.root)
	if got, err := h.Get(ctx, "app:v1"); err != nil || got.ID != img.ID || !slices.Equal(got.Tags, []string{"app:v1"}) {
		t.Errorf("%v %v", got.Tags, err)
	}
	// The cache holds what it has, whatever becomes of the image; and the image keeps what it has, whatever becomes of the cache.
	for _, ref := range []string{"app:v1", "app"} {
		if _, err := h.Remove(ctx, ref, false, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.snaps.Stat(ctx, b.Chain); err != nil {
		t.Error("a layer that is held went with its image")
	}
	if _, err := h.Create(ctx, image.CreateOptions{Config: configOf(t, "amd64", a), Chain: a.Chain, Names: names(t, "below")}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.snaps.Release(ctx, "test/a"), h.snaps.Release(ctx, "test/b")); err != nil {
		t.Fatal(err)
	}
	h.DropLayers(b.Chain, a.Chain)
	if _, err := h.snaps.Stat(ctx, b.Chain); !errors.Is(err, errs.NotFound) {
		t.Error("a layer that nobody needs is still there", err)
	}
	if _, err := h.snaps.Stat(ctx, a.Chain); err != nil {
		t.Error("the layer of an image went with its hold", err)
	}
	if _, err := h.Remove(ctx, "below", false, true, nil); err != nil {
		t.Fatal(err)
	}
	if left, _ := h.snaps.Layers(ctx); len(left) > 0 {
		t.Error(left)
	}
}

func stamp(t *testing.T, h house) string {
	t.Helper()
	st, err := os.Stat(h.root + "/images/images.json")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(st.ModTime().UnixNano(), st.Size())
}

// An image for two platforms with an attestation goes out as it was made, also after a restart; nothing but trees was kept of its layers.
func TestCreateIndex(t *testing.T) {
	h := open(t, t.TempDir())
	base := step(t, h, "", "base")
	var all []image.CreateOptions
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i, arch := range []string{"s390x", "amd64"} {
		top := step(t, h, base.Chain, "top-"+arch)
		opts := image.CreateOptions{Config: configOf(t, arch, base, top), Chain: top.Chain}
		level := 1
		how := image.Compression{Type: []string{"zstd", "gzip"}[i], Level: &level, Force: true}
		layers, err := h.LayerBlobs(ctx, opts, how, nil)
		if err != nil || len(layers) != 2 {
			t.Fatal(layers, err)
		}
		if again, err := h.LayerBlobs(ctx, opts, how, func(int, int64, int64) { t.Error("compressed again") }); err != nil || !slices.EqualFunc(layers, again, same) {
			t.Error(again, err)
		}
		doc := document(t, ocispec.Manifest{Versioned: index.Versioned, MediaType: ocispec.MediaTypeImageManifest, Layers: layers, Annotations: map[string]string{"of": arch},
			Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(opts.Config), Size: int64(len(opts.Config))}})
		opts.Manifest = &doc
		all = append(all, opts)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw)), Platform: &ocispec.Platform{OS: "linux", Architecture: arch}})
	}
	statement, empty := []byte(`{"predicate":1}`), []byte(`{}`)
	about := document(t, ocispec.Manifest{Versioned: index.Versioned, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(empty), Size: 2},
		Layers: []ocispec.Descriptor{{MediaType: "application/vnd.in-toto+json", Digest: digest.FromBytes(statement), Size: int64(len(statement))}}})
	release, err := h.ReceiveArtifact(ctx, about, func(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
		if d.Size == 2 {
			return empty, nil
		}
		return statement, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: about.MediaType, Digest: about.Digest, Size: int64(len(about.Raw)), Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{manifest.AnnotationReference: "attestation-manifest", manifest.AnnotationAbout: all[0].Manifest.Digest.String()}})
	doc := document(t, index)
	if _, err := h.CreateIndex(ctx, image.IndexOptions{Index: doc, Images: []image.CreateOptions{{Config: all[0].Config, Chain: all[0].Chain}}}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	img, err := h.CreateIndex(ctx, image.IndexOptions{Names: names(t, "multi:1"), Index: doc, Images: all})
	if err != nil || img.ID != digest.FromBytes(all[1].Config) || !slices.Equal(img.Tags, []string{"multi:1"}) {
		t.Fatalf("%+v %v", img, err)
	}
	release()
	if left := files(t, h.root, "content/blobs/sha256/*"); len(left) != 8 { // two configs and manifests, the index, an artifact's manifest and two blobs
		t.Errorf("%d blobs", len(left))
	}
	h = open(t, h.root)
	for _, ref := range []string{"multi:1", "again:1"} {
		if ref == "again:1" {
			if err := h.Tag(ctx, "multi:1", ref); err != nil {
				t.Fatal(err)
			}
		}
		outs, got, err := h.Send(ctx, ref, image.SendOptions{AllPlatforms: true})
		if err != nil || got == nil || got.Digest != doc.Digest || len(outs) != 3 {
			t.Fatal(len(outs), got, err)
		}
		for _, out := range outs {
			for _, l := range out.Layers() {
				d, ok := l.Known()
				r, err := l.Open(ctx, 0)
				if err != nil || !ok {
					t.Fatal(ok, err)
				}
				data, err := io.ReadAll(r)
				if err = errors.Join(err, r.Close()); err != nil || digest.FromBytes(data) != d.Digest || int64(len(data)) != d.Size {
					t.Errorf("layer %s is %d bytes of %d, %v", d.Digest, len(data), d.Size, err)
				}
			}
			if now, err := out.Manifest(); err != nil || !slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == now.Digest }) {
				t.Error(now.Digest, err)
			}
			if err := out.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for _, name := range []string{"base", "top-s390x", "top-amd64"} {
		if err := h.snaps.Release(ctx, "test/"+name); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range []string{"multi:1", "again:1"} {
		if _, err := h.Remove(ctx, ref, false, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	layers, err := h.snaps.Layers(ctx)
	if left := files(t, h.root, "content/blobs/sha256/*"); err != nil || len(left)+len(layers) > 0 {
		t.Error(left, layers, err)
	}
}

func same(a, b ocispec.Descriptor) bool {
	return a.Digest == b.Digest && a.Size == b.Size && a.MediaType == b.MediaType
}

func document(t *testing.T, v any) manifest.Document {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := manifest.Parse("", raw)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestSendBuilt(t *testing.T) {
	h := open(t, t.TempDir())
	a := step(t, h, "", "a")
	for _, how := range []image.Compression{{}, {Type: "zstd", Force: true}, {Type: "uncompressed", Force: true}} {
		out, err := h.SendBuilt(ctx, image.CreateOptions{Config: configOf(t, "amd64", a), Chain: a.Chain}, how)
		if err != nil {
			t.Fatal(err)
		}
		l := out.Layers()[0]
		r, err := l.Open(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close(), l.Sent(ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))})); err != nil {
			t.Fatal(err)
		}
		doc, err := out.Manifest()
		want := map[string]string{"": manifest.OCILayerGzip, "zstd": manifest.OCILayerZstd, "uncompressed": manifest.OCILayer}[how.Type]
		if err != nil || doc.Manifest.Layers[0].MediaType != want || doc.Manifest.Layers[0].Digest != digest.FromBytes(data) {
			t.Errorf("%q: %+v %v", how.Type, doc.Manifest, err)
		}
		if err := out.Close(); err != nil {
			t.Error(err)
		}
	}
	if list, err := h.List(ctx); err != nil || len(list) > 0 {
		t.Error(list, err)
	}
	level := 10
	if _, err := h.SendBuilt(ctx, image.CreateOptions{Config: configOf(t, "amd64", a), Chain: a.Chain}, image.Compression{Level: &level}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}
