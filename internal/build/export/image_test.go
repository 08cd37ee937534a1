package export_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build/export"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

func TestImageIsWhatWasBuilt(t *testing.T) {
	h := open(t)
	chain := twoLayers(t, h)
	said := h.export(t, single(chain), "image", "name=app,team/app:1", "unpack=true")
	img, err := h.images.Get(ctx, "app")
	if err != nil {
		t.Fatal(err)
	}
	if img.Chain != chain || !slices.Equal(img.Tags, []string{"app:latest", "team/app:1"}) || len(img.Digests) != 0 {
		t.Errorf("%+v", img)
	}
	want := map[string]string{"containerimage.config.digest": img.ID.String(), "containerimage.digest": img.ID.String(), "image.name": "docker.io/library/app:latest,docker.io/team/app:1"}
	for key, value := range want {
		if said[key] != value {
			t.Errorf("%s is %q, want %q", key, said[key], value)
		}
	}
	if !strings.Contains(string(img.Raw), `"unknown.field":{"kept":true}`) {
		t.Errorf("config lost something: %s", img.Raw)
	}
	// The history accounts for each layer, and all times are those of the steps.
	var said2 []string
	for _, e := range img.Config.History {
		said2 = append(said2, e.CreatedBy+" "+e.Comment)
		if e.Created == nil || !e.Created.Equal(layerTime) {
			t.Errorf("%s created %v", e.CreatedBy, e.Created)
		}
	}
	if !slices.Equal(said2, []string{"COPY app /bin/app buildkit.dockerfile.v0", `CMD ["/bin/app"] `, "RUN something buildkit.exporter.image.v0"}) || !img.Config.Created.Equal(layerTime) {
		t.Errorf("%q %v", said2, img.Config.Created)
	}
	// The same again is the same image, and nothing is left of a try.
	if again := h.export(t, single(chain), "image", "name=app"); again["containerimage.digest"] != img.ID.String() {
		t.Errorf("a rebuild has another id: %v", again)
	}
	if all, err := h.images.List(ctx); err != nil || len(all) != 1 {
		t.Errorf("%v %v", all, err)
	}
}

func TestNameMovesFromTheOldImage(t *testing.T) {
	h := open(t)
	first := h.export(t, single(h.layer(t, "", snapshottest.File("f", "1"))), "moby", "name=app")
	second := h.export(t, single(h.layer(t, "", snapshottest.File("f", "2"))), "moby", "name=app")
	old, err := h.images.Get(ctx, first["containerimage.digest"])
	if err != nil || len(old.Tags) != 0 {
		t.Errorf("the old image: %+v %v", old, err)
	}
	if now, err := h.images.Get(ctx, "app"); err != nil || now.ID.String() != second["containerimage.digest"] {
		t.Errorf("%v %v", now.ID, err)
	}
}

func TestTimesOfTheEpoch(t *testing.T) {
	h := open(t)
	res := single(twoLayers(t, h))
	res.Metadata["source.date.epoch"] = []byte("1600000000")
	h.export(t, res, "image", "name=app")
	img, err := h.images.Get(ctx, "app")
	if err != nil {
		t.Fatal(err)
	}
	if img.Config.Created.Unix() != 1600000000 {
		t.Errorf("created %v", img.Config.Created)
	}
	for _, e := range img.Config.History {
		if e.Created.Unix() != 1600000000 {
			t.Errorf("%+v", e)
		}
	}
}

// What a base image says of its own layers keeps its times; words added without a new layer have the last of them.
func TestTimesOfABaseImage(t *testing.T) {
	h := open(t)
	h.forgot = true
	res := single(h.layer(t, "", snapshottest.File("f", "x")))
	old := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	res.Metadata["containerimage.config"] = []byte(`{"architecture":"amd64","os":"linux","history":[{"created":"2020-01-02T03:04:05Z","created_by":"base"},{"created_by":"ENV a=b","empty_layer":true}]}`)
	first := h.export(t, res, "image", "name=app")
	img, err := h.images.Get(ctx, "app")
	if err != nil {
		t.Fatal(err)
	}
	if !img.Config.Created.Equal(old) || !img.Config.History[1].Created.Equal(old) {
		t.Errorf("%v %v", img.Config.Created, img.Config.History[1].Created)
	}
	if again := h.export(t, res, "image", "name=app"); again["containerimage.digest"] != first["containerimage.digest"] {
		t.Error("a rebuild has another id")
	}
}

func TestIndexInTheStore(t *testing.T) {
	h := open(t)
	a, b := twoLayers(t, h), h.layer(t, "", snapshottest.File("f", "arm64"))
	said := h.export(t, several(t, map[string]snapshot.ChainID{"linux/arm64": b, "linux/amd64": a}), "image", "name=app")
	img, err := h.images.Get(ctx, "app")
	if err != nil || img.Config.Architecture != "amd64" {
		t.Fatalf("%+v %v", img, err)
	}
	arm, err := h.images.GetFor(ctx, "app", manifest.Platform{OS: "linux", Arch: "arm64"})
	if err != nil || arm.Chain != b {
		t.Errorf("%+v %v", arm, err)
	}
	raw, err := base64.StdEncoding.DecodeString(said["containerimage.descriptor"])
	var d ocispec.Descriptor
	if err = errors.Join(err, json.Unmarshal(raw, &d)); err != nil || d.Digest.String() != said["containerimage.digest"] || d.MediaType != manifest.OCIIndex {
		t.Errorf("%s %v", raw, err)
	}
}

func TestExporterRefuses(t *testing.T) {
	for spec, want := range map[string]string{
		"image colour=red":          `attribute colour: not known`,
		"image tar=false":           `attribute tar: not known for this type`,
		"gha":                       `exporter "gha" could not be found`,
		"image compression=estargz": `estargz is not made here`,
		"image compression=lz4":     `"lz4" is not known`,
		"image push=true":           `name is required for push`,
		"image push=maybe":          `"maybe" is neither true nor false`,
		"image name=a:1 push=true push-by-digest=true":   `can't push tagged ref a:1 by digest`,
		"oci compression=zstd oci-mediatypes=false":      `conflicts with oci-mediatypes=false`,
		"oci compression-level=12":                       `gzip has 0 to 9`,
		"local name=x":                                   `not known for this type`,
		"local annotation.a=b":                           `only images have annotations`,
		"image annotation-nothing.a=b":                   `unrecognized annotation type nothing`,
		"local mode=move":                                `choose copy or delete`,
		"image store=false":                              `leaves nothing`,
		"image source-date-epoch=yesterday":              `is not a number of seconds`,
		"image name=a@sha256:" + strings.Repeat("0", 64): `cannot have a digest`,
	} {
		words := strings.Fields(spec)
		if err := export.Check(specOf(words)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", spec, err, want)
		}
	}
	for _, good := range []string{"cacheonly", "registry name=a", "docker dest=-", "image", "image name=", "oci tar=false dest=x", "image annotation-index[linux/amd64].a=b"} {
		if err := export.Check(specOf(strings.Fields(good))); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	h := open(t)
	for attr, want := range map[string]error{"annotation-index.a=b": errs.Invalid, "annotation[linux/s390x].a=b": errs.Invalid} {
		if _, err := h.Export(ctx, spec("image", attr), h.job(single(twoLayers(t, h)))); !errors.Is(err, want) {
			t.Errorf("%s: %v", attr, err)
		}
	}
}

func specOf(words []string) export.Spec { return spec(words[0], words[1:]...) }

// Clients ask for provenance by themselves (buildx: mode=min,inline-only=true). An image that only goes into the store stays free: nothing is compressed for it.
func TestPlainImageHasNoDocuments(t *testing.T) {
	h := open(t)
	for attest, plain := range map[string]bool{"mode=min,inline-only=true": true, "mode=min": false} {
		said, err := h.Export(ctx, spec("image", "name=app"), traced(h.job(single(twoLayers(t, h))), attest))
		if err != nil {
			t.Fatal(err)
		}
		if got := said["containerimage.descriptor"] == ""; got != plain {
			t.Errorf("%s: %v", attest, said)
		}
	}
}
