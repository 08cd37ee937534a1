// Package drivertest is the suite that every volume driver passes.
//
// It owns nothing. It promises that a driver that passes keeps the words of driver.Driver.
package drivertest

import (
	"os"
	"path/filepath"
	"testing"

	"corten.dev/corten/internal/volume/driver"
)

// Run runs the suite on a driver without volumes.
func Run(t *testing.T, d driver.Driver) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s of what is not there was not refused", what)
		}
	}
	if _, err := d.Capabilities(ctx); err != nil {
		t.Error(err)
	}
	_, err := d.Get(ctx, "none")
	refused("get", err)
	_, err = d.Mount(ctx, "none", "id")
	refused("mount", err)
	refused("remove", d.Remove(ctx, "none"))
	for _, name := range []string{"vol", "other"} {
		must(d.Create(ctx, name, map[string]string{"k": "v"}))
	}
	list, err := d.List(ctx)
	if err != nil || len(list) != 2 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if vol, err := d.Get(ctx, "vol"); err != nil || vol.Name != "vol" {
		t.Errorf("get: %+v, %v", vol, err)
	}
	path, err := d.Mount(ctx, "vol", "one")
	must(err)
	must(os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600))
	again, err := d.Mount(ctx, "vol", "two")
	must(err)
	if got, err := d.Path(ctx, "vol"); err != nil || got != path || again != path {
		t.Errorf("mounted at %q, then %q; path %q, %v", path, again, got, err)
	}
	must(d.Unmount(ctx, "vol", "one"))
	if text, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(text) != "kept" {
		t.Errorf("with one of two users: %q, %v", text, err)
	}
	must(d.Unmount(ctx, "vol", "two"))
	for _, name := range []string{"vol", "other"} {
		must(d.Remove(ctx, name))
	}
	if list, err := d.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("list at the end: %+v, %v", list, err)
	}
}
