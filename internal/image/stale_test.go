package image_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/image/recipe"
)

// withRecipe changes the recipe of the only form of a diff on disk, as if other versions of the compressors had found it.
func (h house) withRecipe(t *testing.T, diff digest.Digest, by string, change func(*recipe.Recipe)) {
	t.Helper()
	path := filepath.Join(h.root, "images/forms", diff.Encoded()+".json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var rec map[string][]map[string]any
	if err := json.Unmarshal(raw, &rec); err != nil || len(rec["Forms"]) != 1 || rec["Forms"][0]["Recipe"] == nil {
		t.Fatalf("%s %v", raw, err)
	}
	f := rec["Forms"][0]
	if raw, err = json.Marshal(f["Recipe"]); err != nil {
		t.Fatal(err)
	}
	var r recipe.Recipe
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	change(&r)
	f["Recipe"], f["By"] = r, by
	if raw, err = json.Marshal(rec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (h house) recipes(t *testing.T, diff digest.Digest) (by string, has bool) {
	t.Helper()
	var rec struct {
		Forms []struct {
			Recipe *recipe.Recipe
			By     string
		}
	}
	raw, err := os.ReadFile(filepath.Join(h.root, "images/forms", diff.Encoded()+".json"))
	if err == nil {
		err = json.Unmarshal(raw, &rec)
	}
	if err != nil {
		t.Fatal(err)
	}
	return rec.Forms[0].By, rec.Forms[0].Recipe != nil
}

// Compressed blobs are deleted because they can be made again. Neither Go nor klauspost promise the same bytes for ever: with a new version, each recipe is compared again before
// anything relies on it, and one that does not hold any more costs the digest, but never gives a wrong one, half an archive or half a push.
func TestStaleRecipe(t *testing.T) {
	other := func(r *recipe.Recipe) { r.Level = 1 } // gives other bytes than the level it was
	for name, c := range map[string]struct {
		by     string
		change func(*recipe.Recipe)
		keep   string
		holds  bool
	}{
		"another version, the same bytes":                 {"go0 amd64", func(*recipe.Recipe) {}, "auto", true},
		"another version, the same bytes, asked at once":  {"go0 amd64", func(*recipe.Recipe) {}, "always", true},
		"another version, other bytes, seen in the quiet": {"go0 amd64", other, "auto", false},
		"another version, other bytes, asked at once":     {"go0 amd64", other, "always", false},
		"of a time before versions were written down":     {"", other, "always", false},
		"a compressor that is no longer known":            {"", func(r *recipe.Recipe) { r.Algo = "lzw" }, "always", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := openWith(t, t.TempDir(), image.Options{KeepBlobs: "auto"})
			tars := layersFor(t, 1)
			r := makeRemote(t, "amd64", gzipped(t), tars[0])
			if _, err := h.pull(t, r, "reg.io/app:1"); err != nil {
				t.Fatal(err)
			}
			h.settle(t)
			if by, has := h.recipes(t, r.diffs[0]); !has || by != recipe.Compressors() {
				t.Fatalf("%q %v", by, has)
			}
			h.Images.Close()
			h.withRecipe(t, r.diffs[0], c.by, c.change)
			h = openWith(t, h.root, image.Options{KeepBlobs: c.keep})
			for end := time.Now().Add(time.Minute); c.keep == "auto"; time.Sleep(5 * time.Millisecond) {
				if by, _ := h.recipes(t, r.diffs[0]); by != c.by {
					break
				}
				if time.Now().After(end) {
					t.Fatal("nobody compared it again")
				}
			}
			var saved bytes.Buffer
			if err := h.Save(ctx, []string{"reg.io/app:1"}, nil, &saved); err != nil {
				t.Fatal(err)
			}
			elsewhere := open(t, t.TempDir())
			if _, err := elsewhere.Load(ctx, &saved, nil); err != nil {
				t.Fatal("what was saved is not whole:", err)
			}
			out := sendOne(t, h, "reg.io/app:1", "")
			defer out.Close()
			l := out.Layers()[0]
			if d, ok := l.Known(); !ok || d.Digest != r.doc.Manifest.Layers[0].Digest {
				t.Error("a registry that has the blob is not asked for it any more")
			}
			data := readLayer(t, l, 0)
			if got := digest.FromBytes(data) == digest.FromBytes(r.blobs[0]); got != c.holds {
				t.Fatal("the same bytes:", got)
			}
			if !c.holds {
				if err := l.Sent(ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}); err != nil {
					t.Fatal(err)
				}
			}
			doc, err := out.Manifest()
			if err != nil || (doc.Digest == r.doc.Digest) != c.holds || doc.Manifest.Layers[0].Digest != digest.FromBytes(data) {
				t.Error(doc.Digest, err)
			}
			if _, has := h.recipes(t, r.diffs[0]); has != c.holds {
				t.Error("it has a recipe:", has)
			}
		})
	}
}

// A recipe that lies although it was compared is found out while it is used: that try fails, the next one gives other bytes.
func TestLyingRecipe(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{KeepBlobs: "auto"})
	r := makeRemote(t, "amd64", gzipped(t), layersFor(t, 1)[0])
	if _, err := h.pull(t, r, "reg.io/app:1"); err != nil {
		t.Fatal(err)
	}
	h.settle(t)
	h.Images.Close()
	h.withRecipe(t, r.diffs[0], recipe.Compressors(), func(r *recipe.Recipe) { r.Level = 1 })
	h = openWith(t, h.root, image.Options{})
	out := sendOne(t, h, "reg.io/app:1", "")
	defer out.Close()
	l := out.Layers()[0]
	rd, err := l.Open(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, rd); !errors.Is(err, errs.Invalid) {
		t.Error("it was believed:", err)
	}
	rd.Close()
	data := readLayer(t, l, 0)
	zr, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(zr); err != nil || digest.FromBytes(plain) != r.diffs[0] {
		t.Error(err)
	}
	var saved bytes.Buffer
	if err := h.Save(ctx, []string{"reg.io/app:1"}, nil, &saved); err != nil {
		t.Fatal(err)
	}
}

// Whether a blob is kept is no reason to take it from a pull that has found it here: with "never", the end of one pull deleted what another counted on.
func TestNeverWhilePulling(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{KeepBlobs: "never"})
	tars := layersFor(t, 2)
	one, two := makeRemote(t, "amd64", gzipped(t), tars[0]), makeRemote(t, "arm64", gzipped(t), tars...)
	blob := one.doc.Manifest.Layers[0]
	in, err := h.Receive(ctx, two.doc, two.config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.pull(t, one, "reg.io/one:1"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if _, err := h.blobs.Stat(ctx, blob.Digest); err != nil {
		t.Error("taken from a pull that counts on it:", err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	h.settle(t)
	if _, err := h.blobs.Stat(ctx, blob.Digest); !errors.Is(err, errs.NotFound) {
		t.Error("kept:", err)
	}
	if _, err := h.Remove(ctx, "reg.io/one:1", false, true, nil); err != nil {
		t.Fatal(err)
	}
	h.isEmpty(t)
}

// A load, import or pull that was killed between a record of compressed forms and the image left the record, and with it the blob that it kept, for ever.
func TestFormsWithoutLayer(t *testing.T) {
	h := openWith(t, t.TempDir(), image.Options{KeepBlobs: "always"})
	r := makeRemote(t, "amd64", gzipped(t), layersFor(t, 1)[0])
	if _, err := h.pull(t, r, "reg.io/app:1"); err != nil {
		t.Fatal(err)
	}
	stray, err := h.blobs.Put(ctx, "", -1, bytes.NewReader([]byte("a compressed layer")))
	if err != nil {
		t.Fatal(err)
	}
	h.Images.Close()
	for name, record := range map[string]string{"one": `{"Forms":[{"MediaType":"x","Digest":"` + stray.Digest.String() + `","Size":18,"Kept":true}]}`, "two": `{"Forms":[]}`, "three": `{}`} {
		if err := os.WriteFile(filepath.Join(h.root, "images/forms", digest.FromString(name).Encoded()+".json"), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h = openWith(t, h.root, image.Options{KeepBlobs: "always"})
	if left := files(t, h.root, "images/forms/*"); len(left) != 1 || filepath.Base(left[0]) != r.diffs[0].Encoded()+".json" {
		t.Error(left)
	}
	if _, err := h.blobs.Stat(ctx, stray.Digest); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if _, err := h.blobs.Stat(ctx, r.doc.Manifest.Layers[0].Digest); err != nil {
		t.Error(err)
	}
}
