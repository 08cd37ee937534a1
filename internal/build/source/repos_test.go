package source

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
)

// Repositories that nobody asks for go, as do records of downloads without a layer; a checkout is kept by the cache, not by its repository.
func TestCollect(t *testing.T) {
	b, h := newBench(t, nil), newGitHost(t)
	h.commit(t, "app", map[string]string{"a": "1"})
	id, attrs := h.source("app", "", nil)
	b.ok(t, id, attrs)
	all, err := b.Repositories(t.Context())
	if err != nil || len(all) != 1 || all[0].URL != h.url+"/app" || all[0].Bytes == 0 || time.Since(all[0].LastUsed) > time.Minute {
		t.Fatal(all, err)
	}
	if err := b.files.Put("x", file{Key: "none", Chain: "gone"}, false); err != nil {
		t.Fatal(err)
	}
	if err := b.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, _ := b.Repositories(t.Context()); len(all) != 1 {
		t.Error(all)
	}
	if _, err := b.files.Get("x"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	old := time.Now().Add(-8 * 24 * time.Hour)
	if err := os.Chtimes(filepath.Join(b.opts.Root, "git", all[0].ID), old, old); err != nil {
		t.Fatal(err)
	}
	if err := b.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, err := b.Repositories(t.Context()); err != nil || len(all) > 0 {
		t.Error(all, err)
	}
	if made, _ := b.ok(t, id, attrs); !made.Cached {
		t.Error("the checkout went with its repository")
	}
	b.cache.Forget()
	if made, _ := b.ok(t, id, attrs); made.Cached || b.tree(t, made.Outputs[0].Chain)["a"].content != "1" {
		t.Error("it does not come again")
	}
	if err := b.RemoveRepository(t.Context(), "../http"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}
