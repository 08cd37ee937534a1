package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// remote is an image as a registry has it.
type remote struct {
	doc    manifest.Document
	config []byte
	blobs  [][]byte
	diffs  []digest.Digest
}

// makeRemote makes an image of plain tars, the media type of each layer by how pack compresses it.
func makeRemote(t testing.TB, arch string, pack func(i int, tar []byte) (string, []byte), tars ...[]byte) remote {
	t.Helper()
	r := remote{}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIManifest}
	for i, tar := range tars {
		kind, blob := pack(i, tar)
		r.blobs = append(r.blobs, blob)
		r.diffs = append(r.diffs, digest.FromBytes(tar))
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(blob), Size: int64(len(blob))})
	}
	var err error
	cfg := map[string]any{"architecture": arch, "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": r.diffs}, "config": map[string]any{}}
	if r.config, err = json.Marshal(cfg); err != nil {
		t.Fatal(err)
	}
	m.Config = ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(r.config), Size: int64(len(r.config))}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if r.doc, err = manifest.Parse(manifest.OCIManifest, raw); err != nil {
		t.Fatal(err)
	}
	return r
}

func gzipped(testing.TB) func(int, []byte) (string, []byte) {
	return func(_ int, tar []byte) (string, []byte) { return manifest.OCILayerGzip, gz(tar) }
}

func ref(t testing.TB, name string) reference.Ref {
	t.Helper()
	r, err := reference.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// layersFor are n tars of which each needs something of the one below: an implied directory with its own mode, a deletion, a hard link to a lower file.
func layersFor(t testing.TB, n int) (tars [][]byte) {
	for i := range n {
		list := []snapshottest.Entry{snapshottest.File(fmt.Sprintf("d/f%d", i), strings.Repeat(fmt.Sprint("content ", i), 20_000))}
		if i == 0 {
			list = append([]snapshottest.Entry{snapshottest.Dir("d", 0o750)}, list...)
		} else {
			list = append(list, snapshottest.Hard(fmt.Sprintf("h%d", i), fmt.Sprintf("d/f%d", i-1)), snapshottest.File(fmt.Sprintf("d/.wh.f%d", i-1), ""))
		}
		tars = append(tars, snapshottest.Tar(t, list...))
	}
	return tars
}

// pull brings an image in as the engine does, layers side by side and in any order.
func (h house) pull(t testing.TB, r remote, names ...string) (image.Image, error) {
	t.Helper()
	in, err := h.Receive(ctx, r.doc, r.config)
	if err != nil {
		return image.Image{}, err
	}
	defer in.Close()
	pulled, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	list := in.Layers()
	for _, i := range rand.Perm(len(list)) {
		if list[i].Have {
			continue
		}
		wg.Go(func() {
			err := in.Unpack(pulled, i, bytes.NewReader(r.blobs[i]))
			if err == nil {
				_, err = h.blobs.Put(ctx, list[i].Blob.Digest, list[i].Blob.Size, bytes.NewReader(r.blobs[i]))
			}
			if err == nil {
				err = in.Keep(pulled, i, list[i].Blob)
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(pulled); err != nil {
		return image.Image{}, err
	}
	var refs []reference.Ref
	for _, n := range names {
		refs = append(refs, ref(t, n))
	}
	return in.Commit(ctx, refs)
}

func TestPullPush(t *testing.T) {
	h := open(t, t.TempDir())
	r := makeRemote(t, "amd64", func(i int, tar []byte) (string, []byte) {
		switch i {
		case 1:
			return manifest.OCILayerZstd, zst(tar)
		case 2:
			return manifest.OCILayer, tar
		}
		return manifest.OCILayerGzip, gz(tar)
	}, layersFor(t, 5)...)
	img, err := h.pull(t, r, "reg.io/app:1", "reg.io/app@"+r.doc.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(img.Tags, img.Digests) != fmt.Sprintf("[reg.io/app:1] [reg.io/app@%s]", r.doc.Digest) {
		t.Errorf("%v %v", img.Tags, img.Digests)
	}
	for i, d := range r.diffs {
		var buf bytes.Buffer
		chain := digest.Digest("")
		for _, d := range r.diffs[:i+1] {
			if chain == "" {
				chain = d
			} else {
				chain = digest.FromString(string(chain) + " " + string(d))
			}
		}
		if err := h.snaps.LayerTar(ctx, chain, &buf); err != nil || digest.FromBytes(buf.Bytes()) != d {
			t.Fatal(err)
		}
	}
	// A second pull needs nothing.
	in, err := h.Receive(ctx, r.doc, r.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range in.Layers() {
		if !l.Have {
			t.Errorf("%s is not there", l.DiffID)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	// It goes out as it came, by a new process, too, and whether its blobs are kept or not.
	for range 2 {
		out := sendOne(t, h, "reg.io/app:1", "")
		for i, l := range out.Layers() {
			desc, ok := l.Known()
			if !ok || desc.Digest != r.doc.Manifest.Layers[i].Digest || fmt.Sprint(l.Origins()) != "[reg.io/app]" {
				t.Errorf("%v %v %v", desc, ok, l.Origins())
			}
			if got := readLayer(t, l, 0); !bytes.Equal(got, r.blobs[i]) {
				t.Errorf("layer %d has other bytes", i)
			}
			if got := readLayer(t, l, 100); !bytes.Equal(got, r.blobs[i][100:]) {
				t.Errorf("layer %d has other bytes after an offset", i)
			}
		}
		if doc, err := out.Manifest(); err != nil || doc.Digest != r.doc.Digest || !bytes.Equal(doc.Raw, r.doc.Raw) {
			t.Errorf("%s %v", doc.Raw, err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		h.Images.Close()
		h = open(t, h.root)
	}
	if _, err := h.Remove(ctx, "reg.io/app:1", false, true, nil); err != nil {
		t.Fatal(err)
	}
	h.isEmpty(t)
}

func sendOne(t testing.TB, h house, name, compression string) image.Outgoing {
	t.Helper()
	all, index, err := h.Send(ctx, name, image.SendOptions{Compression: compression})
	if err != nil || len(all) != 1 || index != nil {
		t.Fatal(all, index, err)
	}
	return all[0]
}

func readLayer(t testing.TB, l image.OutgoingLayer, off int64) []byte {
	t.Helper()
	rc, err := l.Open(ctx, off)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	return data
}

// isEmpty tells whether anything is left of images that were removed.
func (h house) isEmpty(t testing.TB) {
	t.Helper()
	if err := h.Images.Close(); err != nil { // the keeper may be at something
		t.Error(err)
	}
	layers, err := h.snaps.Layers(ctx)
	if err != nil || len(layers) > 0 {
		t.Errorf("layers are left: %v %v", layers, err)
	}
	if u, err := h.blobs.Usage(); err != nil || u.Blobs > 0 || u.Ingests > 0 {
		t.Errorf("blobs are left: %+v %v", u, err)
	}
	if left := files(t, h.root, "images/forms/*"); len(left) > 0 {
		t.Errorf("forms are left: %v", left)
	}
	h.snaps.Close()
	if left := files(t, h.root, "snapshots/overlay/new/*", "snapshots/new/*", "snapshots/trash/*"); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

// Pulls of images that share layers, at a time: each layer is unpacked once, and all end well.
func TestPullsTogether(t *testing.T) {
	h := open(t, t.TempDir())
	tars := layersFor(t, 6)
	shared := snapshottest.Tar(t, snapshottest.Dir("s", 0o755), snapshottest.File("s/shared", strings.Repeat("shared", 100_000)))
	a := makeRemote(t, "amd64", gzipped(t), append(tars[:5:5], shared)...)
	b := makeRemote(t, "amd64", gzipped(t), append(tars[:3:3], shared)...)
	c := makeRemote(t, "amd64", gzipped(t), append(tars[:1:1], shared, shared)...)
	var wg sync.WaitGroup
	for n := range 9 {
		wg.Go(func() {
			r := []remote{a, b, c}[n%3]
			if _, err := h.pull(t, r, fmt.Sprintf("app%d", n)); err != nil {
				t.Error(n, err)
			}
		})
	}
	wg.Wait()
	layers, err := h.snaps.Layers(ctx)
	if err != nil || len(layers) != 9 {
		t.Errorf("%d layers %v", len(layers), err)
	}
	files := map[string]bool{}
	for _, l := range layers {
		files[l.Files] = true
	}
	if len(files) != 6 {
		t.Errorf("%d layers were unpacked: %v", len(files), layers)
	}
	for n := range 9 {
		if _, err := h.Remove(ctx, fmt.Sprintf("app%d", n), false, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	h.isEmpty(t)
}

// A layer that is broken fails the pull with one line, and nothing of the image stays but what was downloaded.
func TestPullBroken(t *testing.T) {
	tars := layersFor(t, 4)
	good := makeRemote(t, "amd64", gzipped(t), tars...)
	for name, c := range map[string]struct {
		damage func(r *remote)
		kind   error
	}{
		"truncated": {func(r *remote) { r.blobs[1] = r.blobs[1][:len(r.blobs[1])/2] }, errs.Invalid},
		"empty":     {func(r *remote) { r.blobs[0] = nil }, errs.Invalid},
		"noise":     {func(r *remote) { r.blobs[2][len(r.blobs[2])/2] ^= 0xff }, errs.Invalid},
		"other":     {func(r *remote) { r.blobs[3] = r.blobs[0] }, errs.Invalid},
		"trailing":  {func(r *remote) { r.blobs[1] = append(r.blobs[1][:len(r.blobs[1]):len(r.blobs[1])], "junk"...) }, errs.Invalid},
		"no tar":    {func(r *remote) { r.blobs[1] = gz([]byte(strings.Repeat("no tar at all", 1000))) }, errs.Invalid},
	} {
		h := open(t, t.TempDir())
		r := good
		r.blobs = nil
		for _, b := range good.blobs {
			r.blobs = append(r.blobs, bytes.Clone(b))
		}
		c.damage(&r)
		_, err := h.pull(t, r, "app")
		if !errors.Is(err, c.kind) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := h.Get(ctx, "app"); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := h.pull(t, good, "app"); err != nil {
			t.Errorf("%s: again: %v", name, err)
		}
		if _, err := h.Remove(ctx, "app", false, true, nil); err != nil {
			t.Fatal(err)
		}
		h.isEmpty(t)
	}
}

// Who waits for a layer below that never comes is told so when the pull is given up.
func TestPullGivenUp(t *testing.T) {
	h := open(t, t.TempDir())
	r := makeRemote(t, "amd64", gzipped(t), layersFor(t, 3)...)
	in, err := h.Receive(ctx, r.doc, r.config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(ctx, nil); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	got := make(chan error, 2)
	for i := 1; i < 3; i++ {
		go func() { got <- in.Unpack(ctx, i, bytes.NewReader(r.blobs[i])) }()
	}
	time.Sleep(50 * time.Millisecond)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-got; !errors.Is(err, errs.Unavailable) || strings.Contains(err.Error(), "\n") {
			t.Error(err)
		}
	}
	h.isEmpty(t)
}

// A download that hangs keeps neither Close nor a failed layer waiting.
func TestPullHangs(t *testing.T) {
	h := open(t, t.TempDir())
	r := makeRemote(t, "amd64", gzipped(t), layersFor(t, 2)...)
	for name, first := range map[string][]byte{"nothing": nil, "half": r.blobs[0][:len(r.blobs[0])/2], "junk": gz([]byte(strings.Repeat("junk", 1<<20)))} {
		in, err := h.Receive(ctx, r.doc, r.config)
		if err != nil {
			t.Fatal(err)
		}
		// As a pull does: an ingest that nobody finishes.
		dl, err := h.blobs.Begin(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dl.Write(first); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() { got <- in.Unpack(ctx, 0, dl.Follow(ctx)) }()
		if name == "junk" {
			select {
			case err := <-got:
				if !errors.Is(err, errs.Invalid) {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("a layer that is junk waits for the rest of its download")
			}
			got <- errs.Unavailable
		}
		time.Sleep(20 * time.Millisecond)
		if name != "junk" {
			if err := dl.Close(); name == "nothing" && err != nil { // the download is given up: that ends the unpacking
				t.Error(err)
			}
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := <-got; !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
		dl.Abort()
	}
	if _, err := h.blobs.CollectIngests(time.Now()); err != nil {
		t.Fatal(err)
	}
	h.isEmpty(t)
}

// A blob that can be made again does not stay, is given out all the same, and comes back to nobody's surprise when the engine is started anew; one that cannot stays.
func TestOneCopy(t *testing.T) {
	tars := layersFor(t, 4)
	odd := func(i int, tar []byte) (string, []byte) {
		switch i {
		case 0: // what zlib would make: another compressor's bytes
			b := gz(tar)
			return manifest.OCILayerGzip, append(b, gz(nil)...)
		case 1:
			var buf bytes.Buffer
			w := pgzip.NewWriter(&buf)
			w.Name = "layer"
			if _, err := w.Write(tar); err != nil {
				t.Fatal(err)
			}
			w.Close()
			return manifest.OCILayerGzip, buf.Bytes()
		case 2:
			return manifest.OCILayer, tar
		}
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(tar); err != nil {
			t.Fatal(err)
		}
		w.Close()
		return manifest.OCILayerZstd, buf.Bytes()
	}
	r := makeRemote(t, "amd64", odd, tars...)
	for keep, want := range map[string]int{image.KeepAuto: 1, image.KeepAlways: 4, image.KeepNever: 0} {
		h := openWith(t, t.TempDir(), image.Options{KeepBlobs: keep})
		if _, err := h.pull(t, r, "app"); err != nil {
			t.Fatal(err)
		}
		if keep != image.KeepAlways {
			h.settle(t)
		}
		for range 2 {
			there := 0
			for _, l := range r.doc.Manifest.Layers {
				if _, err := h.blobs.Stat(ctx, l.Digest); err == nil {
					there++
				}
			}
			if there != want {
				t.Errorf("%s: %d blobs are there: %+v", keep, there, h.Remade())
			}
			out := sendOne(t, h, "app", "")
			for i, l := range out.Layers() {
				same := bytes.Equal(readLayer(t, l, 0), r.blobs[i])
				if keep != image.KeepNever && !same {
					t.Errorf("%s: layer %d has other bytes", keep, i)
				}
			}
			if err := out.Close(); err != nil {
				t.Fatal(err)
			}
			h.Images.Close()
			h = openWith(t, h.root, image.Options{KeepBlobs: keep})
		}
		if _, err := h.Remove(ctx, "app", false, true, nil); err != nil {
			t.Fatal(err)
		}
		h.isEmpty(t)
	}
}
