package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// importSized makes an image with one layer of about that many bytes.
func (h house) importSized(t testing.TB, name string, size int) image.Image {
	t.Helper()
	img, err := h.Import(ctx, bytes.NewReader(snapshottest.Tar(t, snapshottest.File("f"+name, strings.Repeat("x", size)))), image.ImportOptions{Ref: name})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestCollect(t *testing.T) {
	var log bytes.Buffer
	now := time.Now()
	h := openWith(t, t.TempDir(), image.Options{Now: func() time.Time { return now }, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	nameless := h.importSized(t, "", 1000)
	var imgs []image.Image
	for i := range 4 {
		imgs = append(imgs, h.importSized(t, fmt.Sprint("app", i), 1000))
		now = now.Add(time.Hour)
	}
	h.Used(imgs[0].ID, now) // the oldest is the one used last
	// Something of a pull that was broken off, young and old.
	put := func(text string, age time.Duration) digest.Digest {
		info, err := h.blobs.Put(ctx, "", -1, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(h.root, "content/blobs/sha256", info.Digest.Encoded())
		if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
		return info.Digest
	}
	young, old := put("young", time.Minute), put("old", 48*time.Hour)
	none := func(digest.Digest) bool { return false }
	space := func() (int64, int64) { return 100, 10_000 } // 99 % in use
	collect := func(p image.Policy, inUse func(digest.Digest) bool) string {
		t.Helper()
		gone, err := h.Collect(ctx, p, space, inUse)
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, g := range gone {
			what := strings.Join(g.Names, "+")
			switch {
			case g.Blob != "":
				what = map[digest.Digest]string{young: "young", old: "old"}[g.Blob]
			case what == "":
				what = "nameless"
			}
			words = append(words, what)
			if g.Why == "" || g.Bytes == 0 || !strings.Contains(log.String(), g.Why) {
				t.Errorf("%+v: not logged", g)
			}
		}
		return strings.Join(words, " ")
	}
	if got := collect(image.Policy{}, none); got != "old" {
		t.Errorf("garbage: %q", got)
	}
	if got := collect(image.Policy{High: 100, Low: 50, Tagged: true}, none); got != "" {
		t.Errorf("below the mark: %q", got)
	}
	if got := collect(image.Policy{High: 90, Low: 10}, func(id digest.Digest) bool { return id == nameless.ID }); got != "" {
		t.Errorf("in use: %q", got)
	}
	if got := collect(image.Policy{High: 90, Low: 10}, none); got != "nameless" {
		t.Errorf("without names: %q", got)
	}
	if got := collect(image.Policy{High: 90, Low: 80, Tagged: true, Keep: 2*time.Hour + time.Minute}, func(id digest.Digest) bool { return id == imgs[1].ID }); got != "" {
		t.Errorf("kept for their last use: %q", got)
	}
	// 19 % are 1900 bytes: two images.
	if got := collect(image.Policy{High: 90, Low: 80, Tagged: true}, func(id digest.Digest) bool { return id == imgs[1].ID }); got != "app2:latest app3:latest" {
		t.Errorf("by last use: %q", got)
	}
	h.Images.Close()
	h = openWith(t, h.root, image.Options{Now: func() time.Time { return now.Add(30 * time.Minute) }, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if img, err := h.Get(ctx, "app0"); err != nil || !img.Used.Equal(now) {
		t.Errorf("last use %v, %v", img.Used, err)
	}
	if got := collect(image.Policy{MaxAge: time.Hour, Tagged: true}, none); got != "app1:latest" {
		t.Errorf("by age: %q", got)
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := h.Collect(short, image.Policy{MaxAge: time.Minute, Tagged: true}, space, none); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := h.Remove(ctx, "app0", false, true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.blobs.Stat(ctx, young); err != nil {
		t.Error(err)
	}
	if err := h.blobs.Delete(ctx, young); err != nil {
		t.Fatal(err)
	}
	h.isEmpty(t)
}

func TestDiskUsage(t *testing.T) {
	h := open(t, t.TempDir())
	tars := layersFor(t, 3)
	free := snapshottest.Tar(t, snapshottest.Dir("s", 0o755), snapshottest.File("s/f", strings.Repeat("x", 1000)))
	a := makeRemote(t, "amd64", gzipped(t), tars[0], free)
	b := makeRemote(t, "amd64", gzipped(t), tars[0], tars[1], free)
	var ids []digest.Digest
	for i, r := range []remote{a, b} {
		img, err := h.pull(t, r, fmt.Sprint("app", i))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, img.ID)
	}
	h.settle(t)
	u, err := h.DiskUsage(ctx, func(id digest.Digest) bool { return id == ids[0] })
	if err != nil || len(u.Images) != 2 {
		t.Fatal(u, err)
	}
	layer := int64(180_000)
	if u.Layers != 3 || u.LayerBytes != 2*layer+1000 || u.Reclaimable != layer || u.Blobs.Kept != 0 || u.Blobs.Remade != 3 || u.Content.Blobs != 4 {
		t.Errorf("%+v", u)
	}
	for _, one := range u.Images {
		if one.ID == ids[0] && (one.Size != layer+1000 || one.Unique() != 0 || !one.InUse) || one.ID == ids[1] && (one.Size != 2*layer+1000 || one.Unique() != layer || one.InUse) {
			t.Errorf("%+v", one)
		}
	}
	if _, err := h.Get(ctx, "none"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}
