package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// pullIndex makes and pulls an image of two platforms as the engine does with --all-platforms.
func (h house) pullIndex(t *testing.T, name string, more ...ocispec.Descriptor) (index manifest.Document, parts map[string]remote) {
	t.Helper()
	base := snapshottest.Tar(t, snapshottest.Dir("etc", 0o755), snapshottest.File("etc/base", strings.Repeat("base", 1000)))
	parts = map[string]remote{}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIIndex}
	for _, arch := range []string{"amd64", "arm64"} {
		r := makeRemote(t, arch, gzipped(t), base, snapshottest.Tar(t, snapshottest.Dir("bin", 0o755), snapshottest.File("bin/"+arch, arch)))
		parts[arch] = r
		idx.Manifests = append(idx.Manifests, ocispec.Descriptor{MediaType: r.doc.MediaType, Digest: r.doc.Digest, Size: int64(len(r.doc.Raw)), Platform: &ocispec.Platform{OS: "linux", Architecture: arch}})
	}
	idx.Manifests = append(idx.Manifests, more...)
	raw, err := json.Marshal(idx)
	if err != nil {
		t.Fatal(err)
	}
	if index, err = manifest.Parse("", raw); err != nil {
		t.Fatal(err)
	}
	for arch, r := range parts {
		names := []string{name + "@" + r.doc.Digest.String()}
		if arch == "amd64" {
			names = append(names, name+":1", name+"@"+index.Digest.String())
		}
		if _, err := h.pull(t, r, names...); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.AddIndex(ctx, ref(t, name+":1"), index); err != nil {
		t.Fatal(err)
	}
	return index, parts
}

func TestPlatforms(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{Platform: "linux/amd64"})
	index, parts := h.pullIndex(t, "reg.io/multi")
	for range 2 {
		for arch, r := range parts {
			img, err := h.GetFor(ctx, "reg.io/multi:1", manifest.Platform{OS: "linux", Arch: arch})
			if err != nil || img.ID != digest.FromBytes(r.config) {
				t.Errorf("%s: %v %v", arch, img.ID, err)
			}
		}
		if _, err := h.GetFor(ctx, "reg.io/multi:1", manifest.Platform{OS: "linux", Arch: "riscv64"}); !errors.Is(err, errs.NotFound) {
			t.Error(err)
		}
		all, doc, err := h.Send(ctx, "reg.io/multi:1", image.SendOptions{AllPlatforms: true})
		if err != nil || len(all) != 2 || doc == nil || doc.Digest != index.Digest {
			t.Fatal(all, doc, err)
		}
		for i, out := range all {
			if m, err := out.Manifest(); err != nil || m.Digest != index.Index.Manifests[i].Digest {
				t.Errorf("%s %v", m.Raw, err)
			}
			out.Close()
		}
		h.Images.Close()
		h = openWith(t, h.root, image.Options{Platform: "linux/amd64"})
	}
	// Through an archive, both platforms and the index stay what they are.
	var saved bytes.Buffer
	if err := h.Save(ctx, []string{"reg.io/multi:1"}, nil, &saved); err != nil {
		t.Fatal(err)
	}
	other := openWith(t, t.TempDir(), image.Options{Platform: "linux/amd64"})
	if names, err := other.Load(ctx, bytes.NewReader(saved.Bytes()), nil); err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	other.settle(t)
	var again bytes.Buffer
	if err := other.Save(ctx, []string{"reg.io/multi:1"}, nil, &again); err != nil || !bytes.Equal(saved.Bytes(), again.Bytes()) {
		t.Error("saved again it has other bytes", err)
	}
	all, doc, err := other.Send(ctx, "reg.io/multi:1", image.SendOptions{AllPlatforms: true})
	if err != nil || len(all) != 2 || doc == nil || doc.Digest != index.Digest {
		t.Fatal(all, doc, err)
	}
	for _, out := range all {
		out.Close()
	}
	// A pushed index is remembered under its digest.
	img, err := h.Get(ctx, "reg.io/multi:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Tag(ctx, "reg.io/multi:1", "other.io/x:2"); err != nil {
		t.Fatal(err)
	}
	// Under its other name it has all its platforms: one of them went out, as if nothing else had come in.
	all, doc, err = h.Send(ctx, "other.io/x:2", image.SendOptions{AllPlatforms: true})
	if err != nil || len(all) != 2 || doc == nil || doc.Digest != index.Digest {
		t.Fatal(all, doc, err)
	}
	for _, out := range all {
		out.Close()
	}
	if err := h.Pushed(ctx, ref(t, "other.io/x:2"), img.ID, index); err != nil {
		t.Fatal(err)
	}
	if img, err = h.Get(ctx, "other.io/x@"+index.Digest.String()); err != nil || len(img.Digests) != 3+0 {
		t.Errorf("%v %v", img.Digests, err)
	}
	// The last tag takes the images of the other platforms with it, also when it is in another repository than they came from.
	for _, name := range []string{"reg.io/multi:1", "other.io/x:2"} {
		if _, err := h.Remove(ctx, name, false, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	left, err := h.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range left {
		t.Errorf("%s is left: %v %v", img.ID, img.Tags, img.Digests)
	}
	h.isEmpty(t)
}

// An index that lists more than is here goes out as one of what is here.
func TestPartOfIndex(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{Platform: "linux/amd64"})
	index, _ := h.pullIndex(t, "reg.io/multi", ocispec.Descriptor{MediaType: manifest.OCIManifest, Digest: digest.FromString("elsewhere"), Size: 9, Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}})
	all, doc, err := h.Send(ctx, "reg.io/multi:1", image.SendOptions{AllPlatforms: true})
	if err != nil || len(all) != 2 || doc == nil || doc.Digest == index.Digest || len(doc.Index.Manifests) != 2 {
		t.Fatal(all, doc, err)
	}
	for _, out := range all {
		out.Close()
	}
	if err := h.AddIndex(ctx, ref(t, "reg.io/nobody:1"), index); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

// A layer that was never compressed gets its form with the first push, and keeps it.
func TestFirstPush(t *testing.T) {
	for _, compression := range []string{"gzip", "zstd"} {
		h := open(t, t.TempDir())
		if _, err := h.Import(ctx, bytes.NewReader(layersFor(t, 1)[0]), image.ImportOptions{Ref: "reg.io/new"}); err != nil {
			t.Fatal(err)
		}
		out := sendOne(t, h, "reg.io/new", compression)
		l := out.Layers()[0]
		if _, known := l.Known(); known {
			t.Error("known already")
		}
		if _, err := out.Manifest(); !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
		data := readLayer(t, l, 0)
		if !bytes.Equal(data[100:], readLayer(t, l, 100)) {
			t.Error("after an offset it has other bytes")
		}
		desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
		if err := l.Sent(desc); err != nil {
			t.Fatal(err)
		}
		doc, err := out.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Pushed(ctx, ref(t, "reg.io/new:latest"), out.ID(), doc); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		h.Images.Close()
		h = open(t, h.root)
		again := sendOne(t, h, "reg.io/new", "")
		l = again.Layers()[0]
		if d, ok := l.Known(); !ok || d.Digest != desc.Digest || !strings.Contains(d.MediaType, compression) || len(l.Origins()) != 1 || !bytes.Equal(readLayer(t, l, 0), data) {
			t.Errorf("%s: %v %v %v", compression, d, ok, l.Origins())
		}
		if m, err := again.Manifest(); err != nil || m.Digest != doc.Digest {
			t.Errorf("%s: %s %v", compression, m.Raw, err)
		}
		again.Close()
		if u, err := h.blobs.Usage(); err != nil || u.Blobs != 2 {
			t.Errorf("%+v %v", u, err)
		}
	}
	if _, _, err := open(t, t.TempDir()).Send(ctx, "x", image.SendOptions{Compression: "lzw"}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

func noUsers(digest.Digest) (stopped, running []string) { return nil, nil }

// An image of two platforms was shown and saved as whichever the name showed; what was asked for by --platform was refused even when it was here.
func TestPartsOfPlatforms(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{Platform: "linux/amd64"})
	missing := ocispec.Descriptor{MediaType: manifest.OCIManifest, Digest: digest.FromString("not pulled"), Size: 10, Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}}
	about := ocispec.Descriptor{MediaType: manifest.OCIManifest, Digest: digest.FromString("attestation"), Size: 10, Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{manifest.AnnotationReference: "attestation-manifest", manifest.AnnotationAbout: missing.Digest.String()}}
	index, parts := h.pullIndex(t, "reg.io/multi", missing, about)
	amd, arm := manifest.Platform{OS: "linux", Arch: "amd64"}, manifest.Platform{OS: "linux", Arch: "arm64"}
	all, err := h.Parts(ctx, digest.FromBytes(parts["amd64"].config))
	if err != nil || len(all) != 4 {
		t.Fatal(all, err)
	}
	for i, p := range all {
		want := index.Index.Manifests[i]
		here := i < 2
		if p.Descriptor.Digest != want.Digest || p.Available != here || (p.Image != nil) != here || (p.Content > 0) != here {
			t.Errorf("part %d: %+v", i, p)
		}
	}
	if all[2].Kind != image.PartImage || all[3].Kind != image.PartAttestation || all[3].About != missing.Digest || all[1].Image.ID != digest.FromBytes(parts["arm64"].config) {
		t.Errorf("%+v", all)
	}
	// Saved for the other platform, the name leads to that one where it is loaded, and there is no index.
	var saved bytes.Buffer
	if err := h.SaveFor(ctx, []string{"reg.io/multi:1"}, []manifest.Platform{arm}, &saved); err != nil {
		t.Fatal(err)
	}
	other := openWith(t, t.TempDir(), image.Options{Platform: "linux/amd64"})
	if _, err := other.LoadFor(ctx, bytes.NewReader(saved.Bytes()), []manifest.Platform{amd}, nil); !errors.Is(err, errs.Invalid) {
		t.Error("loaded an image of another platform", err)
	}
	if names, err := other.LoadFor(ctx, bytes.NewReader(saved.Bytes()), []manifest.Platform{arm}, nil); err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	if img, err := other.Get(ctx, "reg.io/multi:1"); err != nil || img.ID != digest.FromBytes(parts["arm64"].config) {
		t.Error(img.ID, err)
	}
	if all, err := other.Parts(ctx, digest.FromBytes(parts["arm64"].config)); err != nil || len(all) != 1 {
		t.Error(all, err)
	}
	// The platform that the name shows goes: the name shows the other one. The last one takes the name with it.
	if _, err := h.RemoveFor(ctx, "reg.io/multi:1", manifest.Platform{OS: "linux", Arch: "riscv64"}, false, noUsers); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	busy := func(digest.Digest) (stopped, running []string) { return nil, []string{"c1"} }
	if _, err := h.RemoveFor(ctx, "reg.io/multi:1", amd, true, busy); !errors.Is(err, errs.Conflict) {
		t.Error("removed under a running container", err)
	}
	// A tag that somebody gave to the image of one platform is not taken away with the platform of another name.
	id := digest.FromBytes(parts["amd64"].config).String()
	if err := h.Tag(ctx, id, "mine:only"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.RemoveFor(ctx, "reg.io/multi:1", amd, false, noUsers); !errors.Is(err, errs.Conflict) {
		t.Error("removed with the tag of another", err)
	}
	if img, err := h.Get(ctx, "mine:only"); err != nil || img.ID.String() != id {
		t.Error(img.ID, err)
	}
	if _, err := h.Remove(ctx, "mine:only", false, true, noUsers); err != nil {
		t.Fatal(err)
	}
	if _, err := h.RemoveFor(ctx, "reg.io/multi:1", amd, false, noUsers); err != nil {
		t.Fatal(err)
	}
	if img, err := h.Get(ctx, "reg.io/multi:1"); err != nil || img.ID != digest.FromBytes(parts["arm64"].config) {
		t.Error(img.ID, err)
	}
	if _, err := h.GetFor(ctx, "reg.io/multi:1", amd); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if _, err := h.RemoveFor(ctx, "reg.io/multi:1", arm, false, noUsers); err != nil {
		t.Fatal(err)
	}
	if list, err := h.List(ctx); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}
