package image_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

func gz(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(data)
	w.Close()
	return buf.Bytes()
}

func zst(data []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(data, nil)
}

func plain(data []byte) []byte { return data }

// parts collects the members of a hand-made archive.
type parts struct {
	names []string
	data  map[string][]byte
}

func (p *parts) add(name string, data []byte) {
	if p.data == nil {
		p.data = map[string][]byte{}
	}
	if p.data[name] == nil {
		p.names = append(p.names, name)
	}
	p.data[name] = data
}

func (p *parts) json(name string, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	p.add(name, data)
}

// blob adds a blob and returns its descriptor.
func (p *parts) blob(mediaType string, data []byte) map[string]any {
	d := digest.FromBytes(data)
	p.add("blobs/sha256/"+d.Encoded(), data)
	return map[string]any{"mediaType": mediaType, "digest": d, "size": len(data)}
}

func (p *parts) blobJSON(mediaType string, v any) map[string]any {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return p.blob(mediaType, data)
}

func (p *parts) tar(t testing.TB) []byte {
	var list []snapshottest.Entry
	for _, name := range p.names {
		list = append(list, snapshottest.File(name, string(p.data[name])))
	}
	return snapshottest.Tar(t, list...)
}

func layerTar(t testing.TB, i int) []byte {
	return snapshottest.Tar(t, snapshottest.File(fmt.Sprintf("f%d", i), strings.Repeat(fmt.Sprint(i), 1000)))
}

// config has a field that we do not know.
func config(arch string, layers ...[]byte) map[string]any {
	var diffs []digest.Digest
	for _, l := range layers {
		diffs = append(diffs, digest.FromBytes(l))
	}
	return map[string]any{"architecture": arch, "os": "linux", "vendor.secret": map[string]any{"n": 1e3}, "config": map[string]any{"Cmd": []string{"x"}, "Odd": true},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}, "history": []any{map[string]any{"created_by": "one"}, map[string]any{"created_by": "none", "empty_layer": true}, map[string]any{"created_by": "two"}}}
}

const (
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar+zstd"
)

func ociImage(p *parts, pack func([]byte) []byte, arch string, layers ...[]byte) map[string]any {
	var list []any
	for _, l := range layers {
		list = append(list, p.blob(ociLayer, pack(l)))
	}
	m := p.blobJSON(ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": p.blobJSON(ociConfig, config(arch, layers...)), "layers": list})
	m["platform"] = map[string]any{"os": "linux", "architecture": arch}
	return m
}

// ociArchive is an index in an index, with an image for another machine, an attestation, and blobs that are left out.
func ociArchive(t testing.TB, pack func([]byte) []byte) []byte {
	var p parts
	mine := ociImage(&p, pack, runtime.GOARCH, layerTar(t, 1), layerTar(t, 2))
	other := ociImage(&p, pack, "s390x", layerTar(t, 3))
	absent := map[string]any{"mediaType": ociManifest, "digest": digest.FromString("absent"), "size": 6, "platform": map[string]any{"os": "linux", "architecture": "ppc64le"}}
	attest := p.blobJSON(ociManifest, map[string]any{"schemaVersion": 2})
	attest["platform"] = map[string]any{"os": "unknown", "architecture": "unknown"}
	inner := p.blobJSON(ociIndex, map[string]any{"schemaVersion": 2, "manifests": []any{absent, other, mine, attest}})
	outer := p.blobJSON(ociIndex, map[string]any{"schemaVersion": 2, "manifests": []any{inner}})
	outer["annotations"] = map[string]string{"io.containerd.image.name": "reg.io/app:1", "org.opencontainers.image.ref.name": "1"}
	bare := p.blobJSON(ociIndex, map[string]any{"schemaVersion": 2, "manifests": []any{mine}})
	bare["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "app:bare"}
	p.json("index.json", map[string]any{"schemaVersion": 2, "manifests": []any{outer, bare}})
	p.add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return p.tar(t)
}

func dockerArchive(t testing.TB, pack func([]byte) []byte) []byte {
	var p parts
	one, two := layerTar(t, 1), layerTar(t, 2)
	cfg, err := json.Marshal(config(runtime.GOARCH, one, two))
	if err != nil {
		t.Fatal(err)
	}
	name := digest.FromBytes(cfg).Encoded() + ".json"
	p.json("manifest.json", []any{map[string]any{"Config": name, "RepoTags": []string{"reg.io/app:1", "app:bare"}, "Layers": []string{"a/layer.tar", "b/layer.tar"}}})
	p.add(name, cfg)
	p.add("a/layer.tar", pack(one))
	data := p.tar(t)
	// The second layer is a link to a member that comes later, as docker writes equal layers.
	tail := snapshottest.Tar(t, snapshottest.Link("b/layer.tar", "../c/layer.tar"), snapshottest.File("c/layer.tar", string(pack(two))))
	return append(data[:len(data)-1024], tail...)
}

func oldArchive(t testing.TB, pack func([]byte) []byte) []byte {
	var p parts
	p.json("aa/json", map[string]any{"id": "aa", "created": "2014-01-01T00:00:00Z", "container_config": map[string]any{"Cmd": []string{"one"}}})
	p.add("aa/layer.tar", pack(layerTar(t, 1)))
	p.json("bb/json", map[string]any{"id": "bb", "parent": "aa", "created": "2014-01-02T00:00:00Z", "architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Cmd": []string{"x"}, "Odd": true}, "vendor.secret": 1})
	p.add("bb/layer.tar", pack(layerTar(t, 2)))
	p.json("repositories", map[string]any{"reg.io/app": map[string]string{"1": "bb"}, "app": map[string]string{"bare": "bb"}})
	return p.tar(t)
}

func TestLoadFormats(t *testing.T) {
	for name, make := range map[string]func(testing.TB, func([]byte) []byte) []byte{"oci": ociArchive, "docker": dockerArchive, "old": oldArchive} {
		for pname, pack := range map[string]func([]byte) []byte{"plain": plain, "gzip": gz, "zstd": zst} {
			t.Run(name+"/"+pname, func(t *testing.T) {
				h := open(t, t.TempDir())
				calls := 0
				names, err := h.Load(ctx, bytes.NewReader(pack(make(t, pack))), func(id, status string, current, total int64) { calls++ })
				if err != nil {
					t.Fatal(err)
				}
				if len(names) != 2 || calls == 0 {
					t.Errorf("loaded %v, %d lines of progress", names, calls)
				}
				img, err := h.Get(ctx, "reg.io/app:1")
				if err != nil {
					t.Fatal(err)
				}
				if fmt.Sprint(img.Tags) != "[app:bare reg.io/app:1]" || img.Size != 2000 || img.Config.Config.Cmd[0] != "x" || !bytes.Contains(img.Raw, []byte("vendor.secret")) || !bytes.Contains(img.Raw, []byte(`"Odd":true`)) {
					t.Errorf("%v %d %s", img.Tags, img.Size, img.Raw)
				}
				if layers, _ := h.snaps.Layers(ctx); len(layers) != 2 {
					t.Errorf("layers %v", layers)
				}
				if name == "old" {
					return
				}
				hist, err := h.History(ctx, "app:bare")
				if err != nil || len(hist) != 3 || hist[0].CreatedBy != "two" || hist[0].Size != 1000 || hist[1].Size != 0 || hist[2].Size != 1000 || hist[0].ID != img.ID.String() || hist[2].ID != "<missing>" {
					t.Errorf("%+v %v", hist, err)
				}
			})
		}
	}
}

// Whoever runs app@sha256:… trusts the digest: an archive could give any image a name with any digest, and it was run.
func TestLoadOfFalseDigests(t *testing.T) {
	pinned := "app@" + digest.FromString("what the user trusts").String()
	docker := func(entry any) []byte {
		var p parts
		one := layerTar(t, 1)
		p.json("c.json", config(runtime.GOARCH, one))
		p.add("layer.tar", one)
		p.json("manifest.json", []any{entry})
		return p.tar(t)
	}
	oci := func(name func(m map[string]any) string) []byte {
		var p parts
		m := ociImage(&p, zst, runtime.GOARCH, layerTar(t, 1))
		m["annotations"] = map[string]string{"io.containerd.image.name": name(m)}
		p.json("index.json", map[string]any{"schemaVersion": 2, "manifests": []any{m}})
		return p.tar(t)
	}
	own := func(m map[string]any) string { return fmt.Sprintf("reg.io/app@%s", m["digest"]) }
	for name, c := range map[string]struct {
		archive []byte
		err     string
	}{
		"docker":        {docker(map[string]any{"Config": "c.json", "RepoTags": []string{pinned}, "Layers": []string{"layer.tar"}}), "it has a digest"},
		"docker, entry": {docker(nil), "image 1 of manifest.json names no config"},
		"oci":           {oci(func(map[string]any) string { return pinned }), "it is given to a manifest of digest sha256:"},
		"oci, its own":  {oci(own), ""},
	} {
		h := open(t, t.TempDir())
		_, err := h.Load(ctx, bytes.NewReader(c.archive), nil)
		if c.err == "" && err != nil || c.err != "" && (!errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := h.Get(ctx, pinned); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %s is there: %v", name, pinned, err)
		}
	}
}

// An archive for other machines only says so.
func TestLoadOtherPlatform(t *testing.T) {
	var p parts
	m := ociImage(&p, plain, "s390x", layerTar(t, 1))
	p.json("index.json", map[string]any{"schemaVersion": 2, "manifests": []any{m}})
	_, err := open(t, t.TempDir()).Load(ctx, bytes.NewReader(p.tar(t)), nil)
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "only for linux/s390x") {
		t.Fatal(err)
	}
}

// An image for another system in Docker's format, which names no platform outside its config, was loaded and run.
func TestLoadOtherSystem(t *testing.T) {
	var p parts
	cfg := config("amd64", layerTar(t, 1))
	cfg["os"] = "plan9"
	p.json("config.json", cfg)
	p.add("layer.tar", layerTar(t, 1))
	p.json("manifest.json", []any{map[string]any{"Config": "config.json", "RepoTags": []string{"app:1"}, "Layers": []string{"layer.tar"}}})
	h := open(t, t.TempDir())
	if _, err := h.Load(ctx, bytes.NewReader(p.tar(t)), nil); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `image operating system "plan9" cannot be used`) {
		t.Error(err)
	}
	h.isEmpty(t)
}

func TestSaveRepositories(t *testing.T) {
	h := open(t, t.TempDir())
	for i, ref := range []string{"app:1", "app:2", "other"} {
		if _, err := h.Import(ctx, bytes.NewReader(layerTar(t, i)), image.ImportOptions{Ref: ref}); err != nil {
			t.Fatal(err)
		}
	}
	id, err := h.Get(ctx, "other")
	if err != nil {
		t.Fatal(err)
	}
	for refs, want := range map[string]string{"app": "app:1 app:2", "app:1": "app:1", "app:2 other": "app:2 other:latest", id.ID.Encoded(): "", "app app:1 other": "app:1 app:2 other:latest"} {
		var buf bytes.Buffer
		if err := h.Save(ctx, strings.Fields(refs), nil, &buf); err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for tr := tar.NewReader(&buf); ; {
			hdr, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if hdr.Name == "manifest.json" {
				var list []struct{ RepoTags []string }
				if err := json.NewDecoder(tr).Decode(&list); err != nil {
					t.Fatal(err)
				}
				for _, m := range list {
					got = append(got, m.RepoTags...)
				}
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", refs, got, want)
		}
	}
	if err := h.Save(ctx, []string{"none"}, nil, io.Discard); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

func FuzzLoad(f *testing.F) {
	for _, make := range []func(testing.TB, func([]byte) []byte) []byte{ociArchive, dockerArchive, oldArchive} {
		f.Add(make(f, plain))
	}
	f.Add(gz(dockerArchive(f, plain)))
	f.Fuzz(func(t *testing.T, data []byte) {
		h := open(t, t.TempDir())
		names, err := h.Load(ctx, bytes.NewReader(data), nil)
		layers, _ := h.snaps.Layers(ctx)
		all, _ := h.List(ctx)
		if err != nil && (len(layers) > 0 || len(all) > 0 || len(names) > 0) {
			t.Errorf("%v left %v %v", err, layers, all)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	data, err := json.Marshal(config("amd64", []byte("x")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := image.ParseConfig(data); err != nil && !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
	})
}

// An image that was pulled keeps its digests through save and load, into another store and out of there again.
func TestSaveKeepsDigests(t *testing.T) {
	r := makeRemote(t, "amd64", gzipped(t), layersFor(t, 3)...)
	h := open(t, t.TempDir())
	if _, err := h.pull(t, r, "reg.io/app:1"); err != nil {
		t.Fatal(err)
	}
	h.settle(t)
	var first bytes.Buffer
	if err := h.Save(ctx, []string{"reg.io/app:1"}, nil, &first); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		other := open(t, t.TempDir())
		if _, err := other.Load(ctx, bytes.NewReader(first.Bytes()), nil); err != nil {
			t.Fatal(err)
		}
		other.settle(t)
		out := sendOne(t, other, "reg.io/app:1", "")
		doc, err := out.Manifest()
		if err != nil || doc.Digest != r.doc.Digest {
			t.Errorf("%s %v", doc.Raw, err)
		}
		for i, l := range out.Layers() {
			if !bytes.Equal(readLayer(t, l, 0), r.blobs[i]) {
				t.Errorf("layer %d has other bytes", i)
			}
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		var again bytes.Buffer
		if err := other.Save(ctx, []string{"reg.io/app:1"}, nil, &again); err != nil || !bytes.Equal(first.Bytes(), again.Bytes()) {
			t.Error("saved again it has other bytes", err)
		}
		first = again
	}
}
