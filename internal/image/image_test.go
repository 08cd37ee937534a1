package image_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/image/hello"
	"corten.dev/corten/internal/snapshot/overlay"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

type house struct {
	*image.Images
	root  string
	snaps *overlay.Store
	blobs *content.Store
}

func open(t testing.TB, root string) house {
	t.Helper()
	return openWith(t, root, image.Options{})
}

func openWith(t testing.TB, root string, opts image.Options) house {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	snaps, err := overlay.New(overlay.Options{Root: filepath.Join(root, "snapshots")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snaps.Close() })
	blobs, err := content.New(content.Options{Root: filepath.Join(root, "content")})
	if err != nil {
		t.Fatal(err)
	}
	opts.Root, opts.Snapshots, opts.Content = filepath.Join(root, "images"), snaps, blobs
	s, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return house{s, root, snaps, blobs}
}

var ctx = context.Background()

func files(t testing.TB, root string, patterns ...string) (all []string) {
	t.Helper()
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func loadHello(t *testing.T, h house) image.Image {
	t.Helper()
	r, err := hello.Archive()
	if errors.Is(err, errs.NotImplemented) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	names, err := h.Load(ctx, r, nil)
	if err != nil || len(names) != 1 || names[0] != hello.Name {
		t.Fatalf("%v %v", names, err)
	}
	img, err := h.Get(ctx, "corten/hello")
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestHelloLoadSaveLoad(t *testing.T) {
	h := open(t, t.TempDir())
	img := loadHello(t, h)
	if again := loadHello(t, h); again.ID != img.ID {
		t.Fatal("the embedded image has two ids")
	}
	var a, b bytes.Buffer
	if err := errors.Join(h.Save(ctx, []string{"corten/hello"}, nil, &a), h.Save(ctx, []string{img.ID.String(), "corten/hello"}, nil, &b)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("save is not stable")
	}
	other := open(t, t.TempDir())
	if _, err := other.Load(ctx, &a, nil); err != nil {
		t.Fatal(err)
	}
	got, err := other.Get(ctx, img.ID.Encoded()[:5])
	if err != nil || got.ID != img.ID || !bytes.Equal(got.Raw, img.Raw) || strings.Join(got.Tags, " ") != hello.Name {
		t.Fatalf("%+v %v", got, err)
	}
	// A new process finds the same.
	again := open(t, other.root)
	if got, err := again.Get(ctx, hello.Name); err != nil || got.ID != img.ID || got.Size != img.Size {
		t.Fatalf("%+v %v", got, err)
	}
}

func tree(t testing.TB) []byte {
	return snapshottest.Tar(t, snapshottest.Dir("etc", 0o755), snapshottest.File("etc/x", "1"))
}

func TestImportTagRemove(t *testing.T) {
	h := open(t, t.TempDir())
	img, err := h.Import(ctx, bytes.NewReader(tree(t)), image.ImportOptions{Ref: "app", Changes: []string{`CMD ["x"]`, "ENV A=b"}})
	if err != nil {
		t.Fatal(err)
	}
	if img.Tags[0] != "app:latest" || img.Config.Config.Cmd[0] != "x" || img.Config.Config.Env[0] != "A=b" {
		t.Fatalf("%+v", img)
	}
	if err := h.Tag(ctx, "app", "reg.io:5000/team/app:2"); err != nil {
		t.Fatal(err)
	}
	id := img.ID.Encoded()[:12]
	users := func(stopped, running []string) func(digest.Digest) ([]string, []string) {
		return func(digest.Digest) ([]string, []string) { return stopped, running }
	}
	one := []string{"0123456789abcdef"}
	for _, c := range []struct {
		ref     string
		force   bool
		in      func(digest.Digest) ([]string, []string)
		want    string
		removed int
	}{
		{"nothing", false, nil, "No such image: nothing:latest", 0},
		{"Bad", false, nil, "invalid reference format: repository name (library/Bad) must be lowercase", 0},
		{id, false, nil, "conflict: unable to delete " + id + " (must be forced) - image is referenced in multiple repositories", 0},
		{id, true, users(nil, one), "conflict: unable to delete " + id + " (cannot be forced) - image is being used by running container 0123456789ab", 0},
		{"reg.io:5000/team/app:2", false, users(nil, one), "", 1},
		{"app", false, users(one, nil), `conflict: unable to remove repository reference "app" (must force) - container 0123456789ab is using its referenced image ` + id, 0},
		{id, false, users(one, nil), "conflict: unable to delete " + id + " (must be forced) - image is being used by stopped container 0123456789ab", 0},
		{"app", true, users(one, nil), "", 3},
	} {
		done, err := h.Remove(ctx, c.ref, c.force, true, c.in)
		if (err == nil) != (c.want == "") || err != nil && err.Error() != c.want || len(done) != c.removed {
			t.Errorf("%s: %v %v", c.ref, done, err)
		}
	}
	if all, _ := h.snaps.Layers(ctx); len(all) != 0 {
		t.Errorf("layers left: %v", all)
	}
	left, _ := os.ReadDir(filepath.Join(h.root, "content/blobs/sha256"))
	if len(left) != 0 {
		t.Errorf("configs left: %v", left)
	}
}

func TestBrokenArchivesLeaveNothing(t *testing.T) {
	h := open(t, t.TempDir())
	other := open(t, t.TempDir())
	img, err := other.Import(ctx, bytes.NewReader(tree(t)), image.ImportOptions{Ref: "app"})
	if err != nil {
		t.Fatal(err)
	}
	var good bytes.Buffer
	if err := other.Save(ctx, []string{"app"}, nil, &good); err != nil {
		t.Fatal(err)
	}
	diff := img.Config.RootFS.DiffIDs[0].Encoded()
	for name, data := range map[string][]byte{
		"empty":   nil,
		"text":    []byte(strings.Repeat("hello world ", 100)),
		"plain":   tree(t),
		"cut":     good.Bytes()[:good.Len()/2],
		"changed": bytes.Replace(good.Bytes(), []byte("etc/x"), []byte("etc/y"), 1),
		"renamed": bytes.ReplaceAll(good.Bytes(), []byte("layers\":[{"), []byte("layerz\":[{")),
		"gone":    bytes.ReplaceAll(good.Bytes(), []byte(diff), []byte(strings.Repeat("0", 64))),
		"gzip":    {0x1f, 0x8b, 8, 0, 0},
		"xz":      {0xfd, '7', 'z', 'X', 'Z', 0, 0},
	} {
		if _, err := h.Load(ctx, bytes.NewReader(data), nil); err == nil {
			t.Errorf("%s was loaded", name)
		} else if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.NotImplemented) {
			t.Errorf("%s: %v has no kind", name, err)
		}
	}
	if all, _ := h.List(ctx); len(all) != 0 {
		t.Errorf("images: %v", all)
	}
	if all, _ := h.snaps.Layers(ctx); len(all) != 0 {
		t.Errorf("layers: %v", all)
	}
	if _, err := h.Load(ctx, io.MultiReader(bytes.NewReader(good.Bytes())), nil); err != nil {
		t.Error(err)
	}
}

func itoa(n uintptr) string { return strconv.Itoa(int(n)) }

// A process that dies between the layers and the index leaves layers that no image names: the next one removes them. When the index itself
// is damaged, nothing may be removed for not being in it.
func TestStartUpCheck(t *testing.T) {
	h := open(t, t.TempDir())
	img, err := h.Import(ctx, bytes.NewReader(tree(t)), image.ImportOptions{Ref: "app"})
	if err != nil {
		t.Fatal(err)
	}
	snapshottest.Apply(t, h.snaps, img.Chain, snapshottest.Tar(t, snapshottest.File("loose", "1")))
	again := open(t, h.root)
	if layers, _ := again.snaps.Layers(ctx); len(layers) != 1 {
		t.Errorf("layers %v", layers)
	}
	if err := os.WriteFile(filepath.Join(h.root, "images/images.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again = open(t, h.root)
		if layers, _ := again.snaps.Layers(ctx); len(layers) != 1 {
			t.Errorf("layers %v", layers)
		}
	}
	if _, err := again.Import(ctx, bytes.NewReader(tree(t)), image.ImportOptions{Ref: "other"}); err != nil {
		t.Error(err)
	}
}

func BenchmarkGet(b *testing.B) {
	h := open(b, b.TempDir())
	if _, err := h.Import(ctx, bytes.NewReader(tree(b)), image.ImportOptions{Ref: "app"}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := h.Get(ctx, "app"); err != nil {
			b.Fatal(err)
		}
	}
}
