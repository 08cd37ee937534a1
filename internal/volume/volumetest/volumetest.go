// Package volumetest is the suite that every driver of the volume room passes.
//
// It owns nothing. It promises that a store that passes keeps the words of volume.Store.
package volumetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/volume"
)

// Config tells the suite what is tested.
type Config struct {
	// New makes an empty store, closed by the test's cleanup.
	New func(t *testing.T) volume.Store
	// Files tells that volumes are real directories, whose content is looked at.
	Files bool
}

// Run runs the suite.
func Run(t *testing.T, c Config) {
	for _, test := range []struct {
		name  string
		files bool
		run   func(t *testing.T, s volume.Store)
	}{
		{"CreateGetListRemove", false, createGetListRemove},
		{"Anonymous", false, anonymous},
		{"Names", false, names},
		{"Conflicts", false, conflicts},
		{"Users", false, users},
		{"ConcurrentCreate", false, concurrentCreate},
		{"RemoveAgainstAcquire", false, removeAgainstAcquire},
		{"Mount", false, mount},
		{"FillOnce", true, fillOnce},
		{"FillNotOver", true, fillNotOver},
		{"FillEmpty", true, fillEmpty},
		{"Usage", true, usage},
	} {
		if test.files && !c.Files {
			continue
		}
		t.Run(test.name, func(t *testing.T) { test.run(t, c.New(t)) })
	}
}

func create(t *testing.T, s volume.Store, name string) volume.Volume {
	t.Helper()
	vol, err := s.Create(context.Background(), volume.CreateOptions{Name: name, Labels: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	return vol
}

func want(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("got the error %v, want %v with the text %q", err, kind, text)
	}
}

func createGetListRemove(t *testing.T, s volume.Store) {
	ctx := context.Background()
	vol := create(t, s, "web-data")
	create(t, s, "db_data.1")
	if vol.Name != "web-data" || vol.Driver != "local" || vol.Mountpoint == "" || vol.Created.IsZero() || vol.Labels["k"] != "v" || vol.Anonymous {
		t.Errorf("created %+v", vol)
	}
	got, err := s.Get(ctx, "web-data")
	if err != nil || got.Mountpoint != vol.Mountpoint || !got.Created.Equal(vol.Created) {
		t.Errorf("got %+v, %v", got, err)
	}
	got.Labels["k"] = "changed by a caller"
	if again, err := s.Get(ctx, "web-data"); err != nil || again.Labels["k"] != "v" {
		t.Errorf("a caller can change the store: %+v, %v", again, err)
	}
	list, err := s.List(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "db_data.1" || list[1].Name != "web-data" {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := s.Remove(ctx, "web-data", false); err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(ctx, "web-data")
	want(t, err, errs.NotFound, "get web-data: no such volume")
	want(t, s.Remove(ctx, "web-data", false), errs.NotFound, "no such volume")
	if err := s.Remove(ctx, "web-data", true); err != nil {
		t.Errorf("forced removal of what is not there: %v", err)
	}
	create(t, s, "web-data") // the name is free again
}

func anonymous(t *testing.T, s volume.Store) {
	a, b := create(t, s, ""), create(t, s, "")
	for _, vol := range []volume.Volume{a, b} {
		if !vol.Anonymous || len(vol.Name) != 64 || strings.Trim(vol.Name, "0123456789abcdef") != "" {
			t.Errorf("anonymous volume %+v", vol)
		}
		if _, ok := vol.Labels["com.docker.volume.anonymous"]; !ok {
			t.Errorf("the label that docker's clients look for is missing: %v", vol.Labels)
		}
	}
	if a.Name == b.Name {
		t.Error("two anonymous volumes have one name")
	}
}

func names(t *testing.T, s volume.Store) {
	for name, text := range map[string]string{
		"x": "volume name is too short", "../etc": "includes invalid characters for a local volume name", "/abs": "use absolute path",
		".hidden": "includes invalid characters", "a b": "includes invalid characters", "-a": "includes invalid characters", "a\x00b": "includes invalid characters",
		strings.Repeat("v", 300): "too long",
	} {
		_, err := s.Create(context.Background(), volume.CreateOptions{Name: name})
		want(t, err, errs.Invalid, text)
		if _, err := s.Get(context.Background(), name); !errors.Is(err, errs.NotFound) {
			t.Errorf("get %q: %v", name, err)
		}
	}
}

func conflicts(t *testing.T, s volume.Store) {
	ctx := context.Background()
	first := create(t, s, "vol")
	again, err := s.Create(ctx, volume.CreateOptions{Name: "vol", Driver: "local"})
	if err != nil || !again.Created.Equal(first.Created) {
		t.Errorf("the same volume again: %+v, %v", again, err)
	}
	_, err = s.Create(ctx, volume.CreateOptions{Name: "vol", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	want(t, err, errs.Conflict, "volume name must be unique")
	_, err = s.Create(ctx, volume.CreateOptions{Name: "other", Driver: "nowhere"})
	want(t, err, errs.NotFound, `plugin "nowhere" not found`)
}

func users(t *testing.T, s volume.Store) {
	ctx := context.Background()
	create(t, s, "vol")
	for range 2 { // may be repeated
		for _, u := range []string{"c2", "c1"} {
			if err := s.Acquire(ctx, "vol", u); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := s.Users("vol"); !slices.Equal(got, []string{"c1", "c2"}) {
		t.Errorf("users %v", got)
	}
	for _, force := range []bool{false, true} {
		want(t, s.Remove(ctx, "vol", force), errs.Conflict, "remove vol: volume is in use - [c1, c2]")
	}
	for _, u := range []string{"c1", "c1", "c2", "never"} {
		if err := s.Release(ctx, "vol", u); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(ctx, "vol", false); err != nil {
		t.Fatal(err)
	}
	want(t, s.Acquire(ctx, "vol", "c1"), errs.NotFound, "no such volume")
	if err := s.Release(ctx, "vol", "c1"); err != nil {
		t.Errorf("release of what is gone: %v", err)
	}
}

func concurrentCreate(t *testing.T, s volume.Store) {
	var wg sync.WaitGroup
	made := make([]volume.Volume, 8)
	for i := range made {
		wg.Go(func() {
			vol, err := s.Create(context.Background(), volume.CreateOptions{Name: "same"})
			if err != nil {
				t.Error(err)
			}
			made[i] = vol
		})
	}
	wg.Wait()
	for _, vol := range made {
		if !vol.Created.Equal(made[0].Created) {
			t.Error("one name was made twice")
		}
	}
}

// A volume that someone acquired is never removed, however close the two come: either the remover or the user is refused.
func removeAgainstAcquire(t *testing.T, s volume.Store) {
	ctx := context.Background()
	for range 50 {
		create(t, s, "vol")
		var wg sync.WaitGroup
		var acquired, removed error
		wg.Go(func() { acquired = s.Acquire(ctx, "vol", "c") })
		wg.Go(func() { removed = s.Remove(ctx, "vol", false) })
		wg.Wait()
		if (acquired == nil) == (removed == nil) {
			t.Fatalf("acquire: %v, remove: %v", acquired, removed)
		}
		if err := s.Release(ctx, "vol", "c"); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(ctx, "vol", true); err != nil {
			t.Fatal(err)
		}
	}
}

func mount(t *testing.T, s volume.Store) {
	ctx := context.Background()
	vol := create(t, s, "vol")
	path, err := s.Mount(ctx, "vol", "c")
	if err != nil || path != vol.Mountpoint {
		t.Errorf("mount: %q, %v; want %q", path, err, vol.Mountpoint)
	}
	for range 2 {
		if err := s.Unmount(ctx, "vol", "c"); err != nil {
			t.Error(err)
		}
	}
	_, err = s.Mount(ctx, "missing", "c")
	want(t, err, errs.NotFound, "no such volume")
}

// Source makes a directory with some content, to fill from.
func Source(t *testing.T) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{"a": "first", "sub/b": "second"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return openSource(t, dir)
}

func openSource(t *testing.T, dir string) *os.File {
	t.Helper()
	src, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

func fillOnce(t *testing.T, s volume.Store) {
	ctx := context.Background()
	vol, src := create(t, s, "vol"), Source(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.Fill(ctx, "vol", src); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if body, err := os.ReadFile(filepath.Join(vol.Mountpoint, "sub", "b")); err != nil || string(body) != "second" {
		t.Errorf("content %q, %v", body, err)
	}
	if info, err := os.Stat(vol.Mountpoint); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("the volume's root did not take the mode of its source: %v, %v", info.Mode(), err)
	}
	for _, name := range []string{"a", "sub"} { // what the user throws away stays away
		if err := os.RemoveAll(filepath.Join(vol.Mountpoint, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Fill(ctx, "vol", src); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(vol.Mountpoint); err != nil || len(entries) != 0 {
		t.Errorf("filled twice: %v, %v", entries, err)
	}
}

func fillNotOver(t *testing.T, s volume.Store) {
	vol, src := create(t, s, "vol"), Source(t)
	if err := os.WriteFile(filepath.Join(vol.Mountpoint, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Fill(context.Background(), "vol", src); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(vol.Mountpoint); err != nil || len(entries) != 1 {
		t.Errorf("a volume with content was filled: %v, %v", entries, err)
	}
}

func fillEmpty(t *testing.T, s volume.Store) {
	vol := create(t, s, "vol")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := s.Fill(context.Background(), "vol", openSource(t, dir)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(vol.Mountpoint); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("the root's mode is %v, %v", info.Mode(), err)
	}
	if err := s.Fill(context.Background(), "vol", Source(t)); err != nil { // nothing was copied yet
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(vol.Mountpoint, "a")); err != nil {
		t.Error(err)
	}
}

func usage(t *testing.T, s volume.Store) {
	vol := create(t, s, "vol")
	if err := os.WriteFile(filepath.Join(vol.Mountpoint, "f"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(vol.Mountpoint, "f"), filepath.Join(vol.Mountpoint, "g")); err != nil {
		t.Fatal(err)
	}
	if size, err := s.Usage(context.Background(), "vol"); err != nil || size != 1000 {
		t.Errorf("usage %d, %v", size, err)
	}
	_, err := s.Usage(context.Background(), "missing")
	want(t, err, errs.NotFound, "no such volume")
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		size, when, _ := s.LastUsage("vol")
		if !when.IsZero() && size == 1000 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("last usage %d at %v, and it stays so", size, when)
		}
	}
	if size, when, counting := s.LastUsage("missing"); size != -1 || !when.IsZero() || counting {
		t.Errorf("last usage of a volume that is not there: %d at %v, %t", size, when, counting)
	}
}
