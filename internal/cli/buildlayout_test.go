package cli

import (
	"errors"
	"path/filepath"
	"testing"

	"corten.dev/corten/internal/errs"
)

// A layout keeps what else is in it, has one entry for a name, and takes only blobs that are what they are called.
func TestLayouts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	if _, err := layoutRef(dir, "latest"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	for _, name := range []string{"one", "two", "one"} {
		if err := setLayoutRef(dir, name, []byte(`{"mediaType":"m","digest":"sha256:`+name+`","size":1,"platform":{"os":"linux"}}`)); err != nil {
			t.Fatal(err)
		}
	}
	index, err := readIndex(dir)
	if err != nil || len(index.Manifests) != 2 {
		t.Fatal(index, err)
	}
	raw, err := layoutRef(dir, "one")
	if err != nil || string(raw) != `{"annotations":{"org.opencontainers.image.ref.name":"one"},"digest":"sha256:one","mediaType":"m","platform":{"os":"linux"},"size":1}` {
		t.Errorf("%s %v", raw, err)
	}
	if _, err := layoutRef(dir, "sha256:two"); err != nil {
		t.Error(err)
	}
	if _, err := layoutRef(dir, "latest"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	for _, bad := range []string{"sha256:../../../etc/passwd", "sha256:", "md5:" + "00000000000000000000000000000000", "x"} {
		if _, err := blobPath(dir, bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
