package export_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// unpacked puts an OCI archive into a folder.
func unpacked(t testing.TB, raw []byte) string {
	t.Helper()
	dir := t.TempDir()
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Clean("/"+hdr.Name))
		if hdr.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var body []byte
			if body, err = io.ReadAll(tr); err == nil {
				err = os.WriteFile(path, body, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// judge lets go-containerregistry look at an OCI archive: every digest, size and diff id.
func judge(t testing.TB, raw []byte) v1.ImageIndex {
	t.Helper()
	idx, err := layout.ImageIndexFromPath(unpacked(t, raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(idx); err != nil {
		t.Fatal(err)
	}
	return idx
}

func twoLayers(t testing.TB, h *house) snapshot.ChainID {
	below := h.layer(t, "", snapshottest.Dir("bin", 0o755), snapshottest.File("bin/app", strings.Repeat("program ", 100_000)))
	return h.layer(t, below, snapshottest.File("etc/x", "1"))
}

func TestDockerArchive(t *testing.T) {
	h := open(t)
	chain := twoLayers(t, h)
	said := h.export(t, single(chain), "docker", "name=team/app:1,app", "dest=x.tar")
	raw := bytes.Clone(h.asker.file.Bytes())
	judge(t, raw)
	// docker's own readers go by manifest.json.
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(path, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	id, err := img.ConfigName()
	if err != nil || id.String() != said["containerimage.config.digest"] {
		t.Errorf("config %v %v, told %v", id, err, said)
	}
	// Loaded again, it is the same image.
	other := open(t)
	names, err := other.images.Load(ctx, bytes.NewReader(raw), nil)
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"app:latest", "team/app:1"}) {
		t.Fatalf("%v %v", names, err)
	}
	got, err := other.images.Get(ctx, "app")
	if err != nil || got.ID.String() != id.String() || got.Chain != chain {
		t.Errorf("%v %v, want %v", got.ID, err, id)
	}
	var doc struct{ MediaType string }
	if err := json.Unmarshal(member(t, raw, "blobs/sha256/"+strings.TrimPrefix(said["containerimage.digest"], "sha256:")), &doc); err != nil || doc.MediaType != "application/vnd.docker.distribution.manifest.v2+json" {
		t.Errorf("manifest of type %q %v", doc.MediaType, err)
	}
}

func TestArchivesOfEqualResultsAreEqual(t *testing.T) {
	h := open(t)
	chain := twoLayers(t, h)
	for _, kind := range []string{"oci", "docker"} {
		h.export(t, single(chain), kind, "name=a:1")
		first := bytes.Clone(h.asker.file.Bytes())
		h.export(t, single(chain), kind, "name=a:1")
		if !bytes.Equal(first, h.asker.file.Bytes()) {
			t.Errorf("%s: two archives of one result differ", kind)
		}
		other := open(t)
		other.export(t, single(twoLayers(t, other)), kind, "name=a:1")
		if !bytes.Equal(first, other.asker.file.Bytes()) {
			t.Errorf("%s: two archives of equal results of two engines differ", kind)
		}
	}
}

func TestArchiveCompressions(t *testing.T) {
	for _, tc := range []struct{ attrs, want string }{
		{"", "tar+gzip"},
		{"compression=uncompressed", "tar"},
		{"compression=zstd", "tar+zstd"},
		{"compression-level=9", "tar+gzip"},
		{"compression=zstd compression-level=19", "tar+zstd"},
		{"compression=gzip;compression=zstd", "tar+gzip"}, // what is known already stays
		{"compression=gzip;compression=zstd force-compression=true", "tar+zstd"},
		{"compression=zstd;compression=gzip force-compression=true", "tar+gzip"},
		{"compression=gzip;compression=uncompressed force-compression=true", "tar"},
	} {
		h := open(t)
		chain := twoLayers(t, h)
		for attrs := range strings.SplitSeq(tc.attrs, ";") {
			h.export(t, single(chain), "oci", strings.Fields(attrs)...)
		}
		for _, l := range layersOf(t, h.asker.file.Bytes()) {
			kind, err := l.MediaType()
			if err != nil || string(kind) != "application/vnd.oci.image.layer.v1."+tc.want {
				t.Errorf("%s: %s, want %s (%v)", tc.attrs, kind, tc.want, err)
			}
		}
	}
}

// layersOf gives the layers of an archive, of which digest and diff id were compared with the bytes.
func layersOf(t testing.TB, raw []byte) []v1.Layer {
	t.Helper()
	idx, err := layout.ImageIndexFromPath(unpacked(t, raw))
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range []struct {
			want v1.Hash
			open func() (io.ReadCloser, error)
		}{{digest, l.Compressed}, {cfg.RootFS.DiffIDs[i], l.Uncompressed}} {
			r, err := it.open()
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := v1.SHA256(r); err != nil || got != it.want {
				t.Errorf("layer %d: %v, want %v (%v)", i, got, it.want, err)
			}
		}
	}
	return layers
}

func TestLayoutOfSeveralPlatforms(t *testing.T) {
	h := open(t)
	a, b := twoLayers(t, h), h.layer(t, "", snapshottest.File("f", "arm64"))
	res := several(t, map[string]snapshot.ChainID{"linux/amd64": a, "linux/arm64": b})
	said := h.export(t, res, "oci", "tar=false", "name=app:2", "annotation.org.example=all", "annotation[linux/arm64].org.example=arm", "annotation-index.title=Index",
		"annotation-manifest-descriptor[linux/amd64].d=1", "annotation-index-descriptor.e=2")
	var root ocispecDescriptor
	if err := json.Unmarshal(h.asker.refs["2"], &root); err != nil || root.Digest != said["containerimage.digest"] || root.Annotations["e"] != "2" {
		t.Fatalf("%s %v", h.asker.refs["2"], err)
	}
	var idx struct {
		Annotations map[string]string
		Manifests   []ocispecDescriptor
	}
	h.blob(t, root.Digest, &idx)
	if idx.Annotations["title"] != "Index" || len(idx.Manifests) != 2 || idx.Manifests[0].Annotations["d"] != "1" || idx.Manifests[1].Annotations["d"] != "" {
		t.Errorf("%+v", idx)
	}
	for i, want := range []string{"all", "arm"} {
		var m struct{ Annotations map[string]string }
		h.blob(t, idx.Manifests[i].Digest, &m)
		if m.Annotations["org.example"] != want {
			t.Errorf("platform %d: %v", i, m)
		}
	}
	// The same as a tar, for a strict reader.
	h.export(t, res, "oci")
	judge(t, h.asker.file.Bytes())
}

type ocispecDescriptor struct {
	Digest      string
	Annotations map[string]string
}

func (h *house) blob(t testing.TB, dgst string, into any) {
	t.Helper()
	for d, raw := range h.asker.blobs {
		if d.String() == dgst {
			if err := json.Unmarshal(raw, into); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no blob %s", dgst)
}

// rewrite-timestamp makes results equal that differ in the times of files only, and leaves the base image alone.
func TestRewriteTimestamp(t *testing.T) {
	h := open(t)
	base := h.layer(t, "", snapshottest.File("base", "b"))
	l, err := h.snaps.Stat(ctx, base)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]string
	for i := range 2 {
		e := snapshottest.File("f", "x")
		e.ModTime = layerTime.AddDate(0, 0, i)
		res := single(h.layer(t, base, e))
		res.Metadata["containerimage.base.config"] = []byte(`{"rootfs":{"type":"layers","diff_ids":["` + l.DiffID.String() + `"]}}`)
		res.Metadata["source.date.epoch"] = []byte("1600000000")
		all = append(all, h.export(t, res, "oci", "rewrite-timestamp=true", "name=a"))
	}
	if all[0]["containerimage.digest"] != all[1]["containerimage.digest"] {
		t.Errorf("%v\n%v", all[0], all[1])
	}
	if left, err := h.snaps.Layers(ctx); err != nil || len(left) != 3 {
		t.Errorf("layers that were made again are left: %d, %v", len(left), err)
	}
	other := open(t)
	if _, err := other.images.Load(ctx, bytes.NewReader(h.asker.file.Bytes()), nil); err != nil {
		t.Fatal(err)
	}
	img, err := other.images.Get(ctx, "a")
	if err != nil || img.Config.RootFS.DiffIDs[0] != l.DiffID || img.Config.Created.Unix() != 1600000000 {
		t.Errorf("%+v %v", img.Config, err)
	}
	other.export(t, single(img.Chain), "tar")
	hdr, tr := map[string]int64{}, tar.NewReader(bytes.NewReader(other.asker.file.Bytes()))
	for {
		h, err := tr.Next()
		if err != nil {
			break
		}
		hdr[h.Name] = h.ModTime.Unix()
	}
	if hdr["f"] != 1600000000 || hdr["base"] != layerTime.Unix() {
		t.Errorf("%v", hdr)
	}
}
