package image_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

func oneLine(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v", what, err)
	}
}

// What unpacks to more than an image may have is stopped on the way, and leaves nothing.
func TestBombs(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{Limits: image.Limits{LayerBytes: 50 << 20, Ratio: 20, RatioFrom: 1 << 20, Entries: 100}})
	zeros := snapshottest.Tar(t, snapshottest.File("zeros", strings.Repeat("\x00", 8<<20)))
	var many []snapshottest.Entry
	for i := range 101 {
		many = append(many, snapshottest.File(fmt.Sprint("f", i), ""))
	}
	for name, layer := range map[string][]byte{"zeros": zeros, "files": snapshottest.Tar(t, many...)} {
		for kind, pack := range map[string]func(int, []byte) (string, []byte){
			"gzip": gzipped(t), "zstd": func(_ int, tar []byte) (string, []byte) { return manifest.OCILayerZstd, zst(tar) },
		} {
			_, err := h.pull(t, makeRemote(t, "amd64", pack, layersFor(t, 1)[0], layer), "bomb")
			oneLine(t, name+" "+kind, err, errs.Invalid)
		}
	}
	// As large, but not out of nothing.
	h = openWith(t, t.TempDir(), image.Options{Limits: image.Limits{LayerBytes: 50 << 20, Ratio: 20, RatioFrom: 16 << 20}})
	if _, err := h.pull(t, makeRemote(t, "amd64", gzipped(t), zeros), "fine"); err != nil {
		t.Error(err)
	}
}

// Documents that do not fit together are refused before anything is fetched.
func TestReceiveRefuses(t *testing.T) {
	h := open(t, t.TempDir())
	good := makeRemote(t, "amd64", gzipped(t), layersFor(t, 2)...)
	again := func(change func(m *ocispec.Manifest)) manifest.Document {
		doc := good.doc
		m := *doc.Manifest
		m.Layers = append([]ocispec.Descriptor(nil), m.Layers...)
		change(&m)
		doc.Manifest = &m
		return doc
	}
	for name, c := range map[string]struct {
		doc    manifest.Document
		config []byte
	}{
		"other config":         {good.doc, append([]byte(" "), good.config...)},
		"fewer layers":         {again(func(m *ocispec.Manifest) { m.Layers = m.Layers[:1] }), good.config},
		"foreign":              {again(func(m *ocispec.Manifest) { m.Layers[1].MediaType = manifest.DockerForeign }), good.config},
		"no config":            {again(func(m *ocispec.Manifest) { m.Config.Digest = digest.FromString("{}") }), []byte("{}")},
		"an index":             {manifest.Document{Digest: good.doc.Digest, Index: &ocispec.Index{}}, good.config},
		"bad config":           {again(func(m *ocispec.Manifest) { m.Config.Digest = digest.FromString("[") }), []byte("[")},
		"larger than the disk": {again(func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 40; m.Layers[1].Size = 1 << 60 }), good.config},
	} {
		_, err := h.Receive(ctx, c.doc, c.config)
		kind := errs.Invalid
		if strings.HasPrefix(name, "larger") {
			kind = errs.Unavailable
		}
		oneLine(t, name, err, kind)
	}
	in, err := h.Receive(ctx, good.doc, good.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{-1, 2} {
		oneLine(t, "unpack", in.Unpack(ctx, i, strings.NewReader("")), errs.Invalid)
		oneLine(t, "keep", in.Keep(ctx, i, ocispec.Descriptor{}), errs.Invalid)
	}
	oneLine(t, "keep what is not there", in.Keep(ctx, 0, good.doc.Manifest.Layers[0]), errs.NotFound)
	if err := errors.Join(in.Close(), in.Close()); err != nil {
		t.Error(err)
	}
	h.isEmpty(t)
}

// A layer's names lead nowhere but into the layer.
func TestPathTricks(t *testing.T) {
	root := t.TempDir()
	canary := filepath.Join(root, "canary")
	if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := open(t, filepath.Join(root, "store"))
	up := strings.Repeat("../", 20)
	char := snapshottest.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev", Mode: 0o666, Devmajor: 1 << 20, Devminor: 3}}
	for name, list := range map[string][]snapshottest.Entry{
		"dots":             {snapshottest.File(up+canary[1:], "dead")},
		"dots inside":      {snapshottest.Dir("a", 0o755), snapshottest.File("a/../../"+canary[1:], "dead")},
		"absolute":         {snapshottest.File(canary, "dead")},
		"link":             {snapshottest.Link("l", "/"), snapshottest.File("l"+canary, "dead")},
		"link upwards":     {snapshottest.Link("l", up), snapshottest.File("l"+canary, "dead")},
		"link as parent":   {snapshottest.Link("l", filepath.Dir(canary)), snapshottest.Dir("l", 0o755), snapshottest.File("l/canary", "dead")},
		"chain of links":   {snapshottest.Link("a", "b"), snapshottest.Link("b", "/"), snapshottest.File("a"+canary, "dead")},
		"loop":             {snapshottest.Link("a", "b"), snapshottest.Link("b", "a"), snapshottest.File("a/x", "dead")},
		"hard link":        {snapshottest.Hard("h", canary), snapshottest.File("h", "dead")},
		"hard link dots":   {snapshottest.Hard("h", up+canary[1:]), snapshottest.File("h", "dead")},
		"hard link, link":  {snapshottest.Link("l", "/"), snapshottest.Hard("h", "l"+canary), snapshottest.File("h", "dead")},
		"deletion":         {snapshottest.File(filepath.Dir(up+canary[1:])+"/.wh.canary", "")},
		"deletion by link": {snapshottest.Link("l", filepath.Dir(canary)), snapshottest.File("l/.wh.canary", "")},
		"opaque by link":   {snapshottest.Link("l", filepath.Dir(canary)), snapshottest.File("l/.wh..wh..opq", "")},
		"deletion of dots": {snapshottest.File(".wh...", ""), snapshottest.File(".wh..", "")},
		"device":           {char},
		"long name":        {snapshottest.File(strings.Repeat("n", 300), "x")},
		"deep":             {snapshottest.File(strings.Repeat("d/", 3000)+"f", "x")},
		"root is a file":   {snapshottest.File(".", "x")},
		"root is a link":   {snapshottest.Link("./", "/")},
	} {
		for _, below := range [][]byte{nil, snapshottest.Tar(t, snapshottest.Link("l", "/"), snapshottest.Dir("a", 0o755))} {
			tars := [][]byte{snapshottest.Tar(t, list...)}
			if below != nil {
				tars = append([][]byte{below}, tars...)
			}
			_, err := h.pull(t, makeRemote(t, "amd64", gzipped(t), tars...), "trick")
			if err != nil {
				oneLine(t, name, err, errs.Invalid)
			}
			if data, err := os.ReadFile(canary); err != nil || string(data) != "alive" {
				t.Fatalf("%s: %q %v", name, data, err)
			}
		}
	}
}

// A full disk ends a pull with one line; nothing half made stays, and the space comes back.
func TestPullNoSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=6m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	h := open(t, root)
	small := makeRemote(t, "amd64", gzipped(t), layersFor(t, 2)...)
	if _, err := h.pull(t, small, "small"); err != nil {
		t.Fatal(err)
	}
	big := makeRemote(t, "amd64", gzipped(t), layersFor(t, 1)[0], snapshottest.Tar(t, snapshottest.File("big", strings.Repeat("big", 4<<20))))
	for range 3 {
		_, err := h.pull(t, big, "big")
		oneLine(t, "big", err, unix.ENOSPC)
		for range 100 { // the background deletes
			var st unix.Statfs_t
			if err := unix.Statfs(root, &st); err != nil {
				t.Fatal(err)
			}
			if int64(st.Bfree)*int64(st.Bsize) > 4<<20 {
				break
			}
			unix.Nanosleep(&unix.Timespec{Nsec: 10e6}, nil)
		}
	}
	if _, err := h.Get(ctx, "big"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	fits := makeRemote(t, "amd64", gzipped(t), snapshottest.Tar(t, snapshottest.File("fits", strings.Repeat("x", 3<<20))))
	if _, err := h.pull(t, fits, "fits"); err != nil {
		t.Error(err)
	}
	var out bytes.Buffer
	if err := h.Save(ctx, []string{"small"}, nil, &out); err != nil {
		t.Error(err)
	}
}
