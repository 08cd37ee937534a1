package volume_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/killtest"
	"corten.dev/corten/internal/volume"
	"golang.org/x/sys/unix"
)

func write(t testing.TB, dir, name, body string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644))
}

func holds(t testing.TB, dir, name, want string) {
	t.Helper()
	if body, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(body) != want {
		t.Errorf("%s: %q, %v; want %q", name, body, err, want)
	}
}

// A volume's snapshots, for directories and for images: what was is had back, whole, and goes with the volume.
func TestSnapshots(t *testing.T) {
	needRoot(t)
	for _, opts := range []map[string]string{nil, {"size": "6m"}} {
		if opts != nil {
			needLoop(t)
		}
		ctx, root := context.Background(), t.TempDir()
		s := open(t, root, quiet())
		mustCreate(t, s, "vol", opts)
		at, err := s.Mount(ctx, "vol", "c")
		must(t, err)
		must(t, os.Chmod(at, 0o750))
		must(t, os.Chown(at, 7, 8))
		write(t, at, "f", "one")
		held := 0
		quiesce := func(context.Context) (func(), error) { held++; return func() { held += 10 }, nil }
		snap, err := s.Snapshot(ctx, volume.CopySource{Name: "vol", Quiesce: quiesce}, "first")
		must(t, err)
		if opts == nil && held != 11 || opts != nil && held != 0 || snap.Name != "first" { // an image is frozen itself
			t.Errorf("held %d, %+v", held, snap)
		}
		write(t, at, "f", "two")
		write(t, at, "g", "new")
		if _, err := s.Snapshot(ctx, volume.CopySource{Name: "vol"}, "first"); !errors.Is(err, errs.Conflict) {
			t.Errorf("the same name: %v", err)
		}
		for _, bad := range []string{"../x", "a/b", "@x", strings.Repeat("x", 300)} {
			if _, err := s.Snapshot(ctx, volume.CopySource{Name: "vol"}, bad); !errors.Is(err, errs.Invalid) {
				t.Errorf("%q: %v", bad, err)
			}
		}
		second, err := s.Snapshot(ctx, volume.CopySource{Name: "vol"}, "")
		must(t, err)
		if list, err := s.Snapshots(ctx, "vol"); err != nil || len(list) != 2 || list[0].Name != "first" || list[1].Name != second.Name {
			t.Errorf("%+v, %v", list, err)
		}
		if opts != nil {
			if err := s.Restore(ctx, "vol", "first", nil); !errors.Is(err, errs.Conflict) {
				t.Errorf("restore while it is mounted: %v", err)
			}
		}
		must(t, s.Unmount(ctx, "vol", "c"))
		busy := errs.New(errs.Conflict, "somebody runs")
		if err := s.Restore(ctx, "vol", "first", func() error { return busy }); !errors.Is(err, busy) {
			t.Errorf("restore while it is used: %v", err)
		}
		must(t, s.Restore(ctx, "vol", "first", nil))
		at, err = s.Mount(ctx, "vol", "c")
		must(t, err)
		holds(t, at, "f", "one")
		var st unix.Stat_t
		must(t, unix.Stat(at, &st))
		if _, err := os.Stat(filepath.Join(at, "g")); !os.IsNotExist(err) || st.Uid != 7 || st.Gid != 8 || st.Mode&0o777 != 0o750 {
			t.Errorf("restored: %v, %d:%d %o", err, st.Uid, st.Gid, st.Mode)
		}
		clone, err := s.Clone(ctx, volume.CopySource{Name: "vol", Snapshot: second.Name}, volume.CreateOptions{Name: "copy"})
		must(t, err)
		there, err := s.Mount(ctx, "copy", "d")
		must(t, err)
		holds(t, there, "g", "new")
		if clone.Labels["k"] != "v" && len(clone.Labels) > 0 || clone.Options["size"] != opts["size"] || clone.Mountpoint != there {
			t.Errorf("%+v", clone)
		}
		must(t, s.Unmount(ctx, "copy", "d"))
		must(t, s.Unmount(ctx, "vol", "c"))
		must(t, s.RemoveSnapshot(ctx, "vol", "first"))
		if err := s.RemoveSnapshot(ctx, "vol", "first"); !errors.Is(err, errs.NotFound) {
			t.Errorf("removed twice: %v", err)
		}
		if loops(t, root) != 0 || s.Users("vol") != nil {
			t.Errorf("left: %d loop devices, users %v", loops(t, root), s.Users("vol"))
		}
		must(t, s.Remove(ctx, "vol", false))
		must(t, s.Remove(ctx, "copy", false))
	}
}

// An engine inside of a container keeps its layers in a volume: overlayfs' marks in it are content.
func TestCopyOfLayers(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, t.TempDir(), quiet())
	vol := mustCreate(t, s, "vol", nil)
	must(t, unix.Mknod(filepath.Join(vol.Mountpoint, "gone"), unix.S_IFCHR, 0))
	must(t, os.Mkdir(filepath.Join(vol.Mountpoint, "opaque"), 0o755))
	must(t, unix.Setxattr(filepath.Join(vol.Mountpoint, "opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	clone, err := s.Clone(ctx, volume.CopySource{Name: "vol"}, volume.CreateOptions{Name: "copy"})
	must(t, err)
	var archive bytes.Buffer
	must(t, s.Export(ctx, volume.CopySource{Name: "vol"}, &archive))
	back, err := s.Import(ctx, volume.CreateOptions{Name: "back"}, &archive)
	must(t, err)
	for _, at := range []string{clone.Mountpoint, back.Mountpoint} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(at, "gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s: a deletion is lost: %v", at, err)
		}
		buf := make([]byte, 8)
		if n, err := unix.Getxattr(filepath.Join(at, "opaque"), "trusted.overlay.opaque", buf); at == clone.Mountpoint && (err != nil || string(buf[:n]) != "y") { // archives leave it out
			t.Errorf("%s: a mark is lost: %v", at, err)
		}
	}
}

// Export and import carry everything over a pipe, and a cut archive makes no volume.
func TestExportImport(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, t.TempDir(), quiet())
	vol := mustCreate(t, s, "vol", nil)
	must(t, s.Fill(ctx, "vol", source(t, makeTree(t))))
	must(t, os.Chown(vol.Mountpoint, 3, 4))
	held := false
	var archive bytes.Buffer
	must(t, s.Export(ctx, volume.CopySource{Name: "vol", Quiesce: func(context.Context) (func(), error) { held = true; return func() { held = false }, nil }}, writer(func(p []byte) (int, error) {
		if held {
			t.Error("the writers wait for the reader")
		}
		return archive.Write(p)
	})))
	whole := archive.Bytes()
	got, err := s.Import(ctx, volume.CreateOptions{Name: "back", Labels: map[string]string{"a": "b"}}, bytes.NewReader(whole))
	must(t, err)
	list := func(dir string) string { // as tar sees them
		out, err := exec.Command("tar", "-C", dir, "--xattrs", "--sort=name", "--numeric-owner", "--pax-option=delete=atime,delete=ctime", "-cf", "-", ".").Output()
		must(t, err)
		return string(out)
	}
	if got.Labels["a"] != "b" || !got.Made || list(vol.Mountpoint) != list(got.Mountpoint) {
		t.Errorf("%+v is not what was exported", got)
	}
	if _, err := s.Import(ctx, volume.CreateOptions{Name: "back"}, bytes.NewReader(whole)); !errors.Is(err, errs.Conflict) {
		t.Errorf("a name that is taken: %v", err)
	}
	for _, n := range []int{0, 512, 1024, len(whole) / 2, len(whole) - 1024} {
		if _, err := s.Import(ctx, volume.CreateOptions{Name: "cut"}, bytes.NewReader(whole[:n])); err == nil {
			t.Errorf("an archive cut after %d of %d bytes made a volume", n, len(whole))
		}
		if _, err := s.Get(ctx, "cut"); !errors.Is(err, errs.NotFound) {
			t.Errorf("cut: %v", err)
		}
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestRename(t *testing.T) {
	ctx, root := context.Background(), t.TempDir()
	s := open(t, root, quiet())
	vol := mustCreate(t, s, "old", nil)
	write(t, vol.Mountpoint, "f", "content")
	_, err := s.Snapshot(ctx, volume.CopySource{Name: "old"}, "snap")
	must(t, err)
	mustCreate(t, s, "taken", nil)
	if _, err := s.Rename(ctx, "old", "taken"); !errors.Is(err, errs.Conflict) {
		t.Errorf("a name that is taken: %v", err)
	}
	must(t, s.Acquire(ctx, "old", "c"))
	if _, err := s.Rename(ctx, "old", "new"); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "volume is in use - [c]") {
		t.Errorf("a volume in use: %v", err)
	}
	must(t, s.Release(ctx, "old", "c"))
	got, err := s.Rename(ctx, "old", "new")
	must(t, err)
	holds(t, got.Mountpoint, "f", "content")
	if _, err := s.Get(ctx, "old"); !errors.Is(err, errs.NotFound) {
		t.Errorf("the old name: %v", err)
	}
	if list, err := s.Snapshots(ctx, "new"); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	mustCreate(t, s, "old", nil)
}

// TestKeeper is the process that TestKilledCopies kills.
func TestKeeper(t *testing.T) {
	root := killtest.Child(t)
	ctx := context.Background()
	s := open(t, root, quiet())
	for i := 0; ; i++ {
		name := "n" + string(rune('a'+i%26))
		_, _ = s.Snapshot(ctx, volume.CopySource{Name: "vol"}, name)
		_, _ = s.Clone(ctx, volume.CopySource{Name: "vol", Snapshot: name}, volume.CreateOptions{Name: "clone"})
		_, _ = s.Rename(ctx, "clone", "renamed")
		_ = s.Restore(ctx, "vol", name, nil)
		_ = s.RemoveSnapshot(ctx, "vol", name)
		_ = s.Remove(ctx, "renamed", true)
	}
}

// An archive says nothing of holes: a volume of 4 MB with a file of 100 MB, nearly all of it a hole, could be exported but not imported again.
func TestImportKeepsHoles(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, t.TempDir(), quiet())
	vol := mustCreate(t, s, "vol", nil)
	write(t, vol.Mountpoint, "file", "begin")
	f, err := os.OpenFile(filepath.Join(vol.Mountpoint, "file"), os.O_RDWR, 0)
	must(t, err)
	const size = 100<<20 + 7
	_, err = f.WriteAt([]byte("middle"), 50<<20-3)
	must(t, errors.Join(err, f.Truncate(size), f.Close()))
	var archive bytes.Buffer
	must(t, s.Export(ctx, volume.CopySource{Name: "vol"}, &archive))
	got, err := s.Import(ctx, volume.CreateOptions{Name: "back"}, &archive)
	must(t, err)
	same, err := exec.Command("cmp", filepath.Join(vol.Mountpoint, "file"), filepath.Join(got.Mountpoint, "file")).CombinedOutput()
	if err != nil {
		t.Errorf("%s %v", same, err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(got.Mountpoint, "file"), &st))
	if st.Size != size || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes take %d on disk", st.Size, st.Blocks*512)
	}
}

// Killed at any moment: what is listed is whole, what is not listed is not there.
func TestKilledCopies(t *testing.T) {
	needRoot(t)
	kinds := []map[string]string{nil, {"size": "4m"}}
	for _, opts := range kinds {
		if opts != nil {
			needLoop(t)
		}
		ctx, root := context.Background(), t.TempDir()
		s := open(t, root, quiet())
		mustCreate(t, s, "vol", opts)
		at, err := s.Mount(ctx, "vol", "c")
		must(t, err)
		whole := func(dir string) {
			t.Helper()
			for n := range 20 {
				holds(t, dir, "f"+string(rune('a'+n)), strings.Repeat("x", n*100))
			}
		}
		for n := range 20 {
			write(t, at, "f"+string(rune('a'+n)), strings.Repeat("x", n*100))
		}
		must(t, s.Unmount(ctx, "vol", "c"))
		for range 8 {
			killtest.Run(t, "TestKeeper", root, 10*time.Millisecond)
			s := open(t, root, quiet())
			list, err := s.List(ctx)
			must(t, err)
			for _, vol := range list {
				at, err := s.Mount(ctx, vol.Name, "c")
				must(t, err)
				whole(at)
				must(t, s.Unmount(ctx, vol.Name, "c"))
				snaps, err := s.Snapshots(ctx, vol.Name)
				must(t, err)
				for _, snap := range snaps {
					whole(filepath.Join(root, vol.Name, "_snapshots", snap.Name))
				}
				entries, _ := os.ReadDir(filepath.Join(root, vol.Name, "_snapshots"))
				if len(entries) != len(snaps) {
					t.Errorf("%s: %d snapshots, %d on disk", vol.Name, len(snaps), len(entries))
				}
				if vol.Name != "vol" {
					must(t, s.Remove(ctx, vol.Name, false))
				}
			}
			if _, err := s.Get(ctx, "vol"); err != nil {
				t.Fatal("the volume is gone")
			}
			making, _ := os.ReadDir(filepath.Join(root, ".making"))
			entries, err := os.ReadDir(root)
			must(t, err)
			if len(making) > 0 || len(entries) > 5 || loops(t, root) != 0 {
				t.Errorf("left: %v, %v, %d loop devices", making, entries, loops(t, root))
			}
		}
	}
}
