package image_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// unreferenced complains about blobs that belong to no image.
func (h house) unreferenced(t testing.TB) {
	t.Helper()
	live := h.Live()
	for _, path := range files(t, h.root, "content/blobs/sha256/*") {
		if dgst := digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(path)); !live(dgst) {
			t.Errorf("blob %s belongs to no image", dgst)
		}
	}
}

// settle waits until the keeper has looked at everything.
func (h house) settle(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); h.Remade().Waiting > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not settled: %+v", h.Remade())
		}
	}
}
