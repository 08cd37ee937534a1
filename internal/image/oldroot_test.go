package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/snapshot"
)

// unpackRoot makes a data root of testdata again, with devices and extended attributes.
func unpackRoot(t *testing.T, archive string) (root string) {
	t.Helper()
	root = t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	times := map[string]*tar.Header{}
	for tr := tar.NewReader(zr); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, strings.Replace(hdr.Name, "snapshots/overlay", "snapshots", 1)) // the driver's own folder is what open opens
		mode := hdr.FileInfo().Mode().Perm()
		switch hdr.Typeflag {
		case tar.TypeDir:
			err = errors.Join(os.MkdirAll(path, mode), os.Chmod(path, mode))
		case tar.TypeReg:
			data, readErr := io.ReadAll(tr)
			err = errors.Join(readErr, os.WriteFile(path, data, mode))
		case tar.TypeLink:
			err = os.Link(filepath.Join(root, strings.Replace(hdr.Linkname, "snapshots/overlay", "snapshots", 1)), path)
		case tar.TypeSymlink:
			err = os.Symlink(hdr.Linkname, path)
		case tar.TypeChar:
			err = unix.Mknod(path, unix.S_IFCHR|uint32(mode), int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
		default:
			t.Fatalf("%s is of type %c", hdr.Name, hdr.Typeflag)
		}
		for key, value := range hdr.PAXRecords {
			if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				err = errors.Join(err, unix.Setxattr(path, name, []byte(value), 0))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if hdr.Typeflag != tar.TypeSymlink {
			times[path] = hdr
		}
	}
	for path, hdr := range times {
		if err := os.Chtimes(path, hdr.ModTime, hdr.ModTime); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// A data root that the engine wrote before it knew registries (no manifests, no forms, layers of the first format) is one of today's: nothing is lost, moved or complained
// about. It was made by commit 9da2297, with load, import, create and commit, and tag.
func TestOldRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := unpackRoot(t, "testdata/root-0.1.0.tar.gz")
	h := open(t, root)
	want := []string{"committed:old", "imported:old", "reg.example/again:2", "reg.example/loaded2:latest", "reg.example/loaded:1"}
	list, err := h.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, img := range list {
		names = append(names, img.Tags...)
	}
	if slices.Sort(names); len(list) != 3 || !slices.Equal(names, want) {
		t.Fatal(names)
	}
	layers, err := h.snaps.Layers(ctx)
	if err != nil || len(layers) != 3 {
		t.Fatal(layers, err)
	}
	for _, l := range layers {
		var buf bytes.Buffer
		if err := h.snaps.LayerTar(ctx, l.Chain, &buf); err != nil || digest.FromBytes(buf.Bytes()) != l.DiffID || int64(buf.Len()) != l.TarSize {
			t.Errorf("layer %s: %v", l.DiffID, err)
		}
	}
	img, err := h.Get(ctx, "committed:old")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.snaps.Prepare(ctx, "old", img.Chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	mnt, err := h.snaps.Mount(ctx, "old")
	if err != nil {
		t.Fatal(err)
	}
	seen := []string{}
	for _, path := range files(t, fmt.Sprintf("/proc/self/fd/%d", mnt.Root.Fd()), "etc/*", "lib/*") {
		seen = append(seen, filepath.Base(path))
	}
	if slices.Sort(seen); strings.Join(seen, " ") != "four new one same three to" {
		t.Error("a container of it sees", seen)
	}
	if err := mnt.Close(); err != nil {
		t.Error(err)
	}
	if _, err := h.Commit(ctx, image.CommitOptions{Key: "old", Parent: img.ID, Ref: "onto:1"}); err != nil {
		t.Error(err)
	}
	if err := h.snaps.Remove(ctx, "old"); err != nil {
		t.Error(err)
	}
	var saved bytes.Buffer
	if err := h.Save(ctx, want, nil, &saved); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, t.TempDir()).Load(ctx, &saved, nil); err != nil || len(got) != len(want) {
		t.Error(got, err)
	}
	for _, name := range append(want, "onto:1") {
		out := sendOne(t, h, name, "")
		for _, l := range out.Layers() {
			data := readLayer(t, l, 0)
			if err := l.Sent(ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}); err != nil {
				t.Error(err)
			}
		}
		doc, err := out.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Pushed(ctx, ref(t, name).WithDefaultTag(), out.ID(), doc); err != nil {
			t.Error(err)
		}
		if err := out.Close(); err != nil {
			t.Error(err)
		}
	}
	h.Images.Close()
	h = open(t, root)
	if list, err = h.List(ctx); err != nil || len(list) != 4 {
		t.Error(len(list), err)
	}
	for _, name := range append(want, "onto:1") {
		if _, err := h.Remove(ctx, name, true, true, nil); err != nil {
			t.Error(name, err)
		}
	}
	h.isEmpty(t)
}
