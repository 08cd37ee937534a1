package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/loop"
	"corten.dev/corten/internal/volume"
	"golang.org/x/sys/unix"
)

func needLoop(t testing.TB) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "probe")
	must(t, os.WriteFile(name, make([]byte, 4096), 0o600))
	dev, err := loop.Attach(name, loop.Options{})
	if err != nil {
		t.Skip(err)
	}
	must(t, dev.Close())
}

// loops counts the loop devices whose file lies below a folder, as the kernel lists them. It waits for them to go: a neighbour that is just starting a container, another test or another
// program, has a copy of all mounts for a moment, and with them what is mounted.
func loops(t testing.TB, root string) (n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		list, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		must(t, err)
		n = 0
		for _, name := range list {
			if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), root) {
				n++
			}
		}
		if n == 0 || time.Now().After(end) {
			return n
		}
	}
}

// A volume with a size holds that much and no more, keeps what is in it over engines, and leaves no loop device behind. A size was forgotten by Docker where there were no quotas (moby#43891).
func TestSize(t *testing.T) {
	needRoot(t)
	needLoop(t)
	ctx, root := context.Background(), t.TempDir()
	s := open(t, root, quiet())
	vol := mustCreate(t, s, "vol", map[string]string{"size": "12m"})
	if by := vol.Status["LimitedBy"]; by != "ext4 image" && by != "project quota" {
		t.Errorf("status %v", vol.Status)
	}
	at, err := s.Mount(ctx, "vol", "c")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(at, "fits"), make([]byte, 10<<20), 0o600))
	err = os.WriteFile(filepath.Join(at, "much"), make([]byte, 4<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		t.Errorf("more than the size: %v", err)
	}
	must(t, os.Remove(filepath.Join(at, "much")))
	must(t, s.Acquire(ctx, "vol", "c"))

	s = open(t, root, quiet()) // another engine, the container still runs
	again, err := s.Mount(ctx, "vol", "c")
	must(t, err)
	if fi, err := os.Stat(filepath.Join(again, "fits")); err != nil || fi.Size() != 10<<20 {
		t.Errorf("content after a restart: %v", err)
	}
	must(t, s.Unmount(ctx, "vol", "c"))
	if isMounted(t, at) || loops(t, root) != 0 {
		t.Errorf("mounted %t, %d loop devices after the last user", isMounted(t, at), loops(t, root))
	}
	if n, err := s.Usage(ctx, "vol"); err != nil || n < 10<<20 {
		t.Errorf("usage of an image at rest: %d, %v", n, err)
	}
	if _, err := s.Create(ctx, volume.CreateOptions{Name: "vol", Options: map[string]string{"size": "20m"}}); !errors.Is(err, errs.Conflict) {
		t.Errorf("another size for the same name: %v", err)
	}
	must(t, s.Fill(ctx, "vol", source(t, t.TempDir()))) // not empty: stays
	must(t, s.Remove(ctx, "vol", false))
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// An image takes the content of an image of containers once, also when the engine was killed while it was moved in.
func TestSizeFill(t *testing.T) {
	needRoot(t)
	needLoop(t)
	ctx, root := context.Background(), t.TempDir()
	s := open(t, root, quiet())
	mustCreate(t, s, "vol", map[string]string{"size": "8m"})
	src := t.TempDir()
	for _, name := range []string{"a", "b"} {
		must(t, os.WriteFile(filepath.Join(src, name), []byte(name), 0o640))
	}
	at, err := s.Mount(ctx, "vol", "c")
	must(t, err)
	// Half moved: as a kill leaves it.
	must(t, os.Mkdir(filepath.Join(at, ".corten-filled"), 0o750))
	must(t, os.WriteFile(filepath.Join(at, ".corten-filled", "b"), []byte("b"), 0o640))
	must(t, os.WriteFile(filepath.Join(at, "a"), []byte("a"), 0o640))
	must(t, s.Fill(ctx, "vol", source(t, src)))
	entries, err := os.ReadDir(at)
	must(t, err)
	if len(entries) != 2 || entries[0].Name() != "a" || entries[1].Name() != "b" {
		t.Errorf("%v", entries)
	}
	for _, name := range []string{"a", "b"} {
		must(t, os.Remove(filepath.Join(at, name)))
	}
	must(t, s.Fill(ctx, "vol", source(t, src)))
	if entries, err := os.ReadDir(at); err != nil || len(entries) != 0 {
		t.Errorf("filled twice: %v, %v", entries, err)
	}
	must(t, s.Unmount(ctx, "vol", "c"))
}

// What a kill in the middle of create leaves: an image without its name goes, one with a name and without a record is content of somebody's and stays.
func TestSizeRecovery(t *testing.T) {
	needRoot(t)
	needLoop(t)
	ctx, root := context.Background(), t.TempDir()
	s := open(t, root, quiet())
	mustCreate(t, s, "kept", map[string]string{"size": "4m"})
	mustCreate(t, s, "late", map[string]string{"size": "4m"})
	if s.Users("kept") != nil || loops(t, root) != 0 {
		t.Error("something is in use")
	}
	if _, err := os.Stat(filepath.Join(root, "kept", "_image")); err != nil {
		t.Skip("this file system has quotas")
	}
	must(t, os.MkdirAll(filepath.Join(root, "half", "_data"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "half", "_image@new"), []byte("x"), 0o600))
	must(t, os.Rename(filepath.Join(root, "late", "_image"), filepath.Join(root, "late", "_image@new")))
	must(t, os.Remove(filepath.Join(root, ".records", "kept.json")))
	s = open(t, root, quiet())
	if _, err := s.Get(ctx, "half"); !errors.Is(err, errs.NotFound) {
		t.Errorf("half: %v", err)
	}
	for _, name := range []string{"kept", "late"} {
		at, err := s.Mount(ctx, name, "c")
		must(t, err)
		if !isMounted(t, at) {
			t.Errorf("%s is not mounted", name)
		}
		must(t, s.Unmount(ctx, name, "c"))
	}
}

// A file system in a file of the administrator's is a volume, too.
func TestLoopOption(t *testing.T) {
	needRoot(t)
	needLoop(t)
	ctx, root := context.Background(), t.TempDir()
	s := open(t, root, quiet())
	mustCreate(t, s, "image", map[string]string{"size": "4m"})
	image := filepath.Join(root, "image", "_image")
	if _, err := os.Stat(image); err != nil {
		t.Skip("this file system has quotas")
	}
	mustCreate(t, s, "vol", map[string]string{"type": "ext4", "device": image, "o": "loop,ro,noatime"})
	at, err := s.Mount(ctx, "vol", "c")
	must(t, err)
	if err := os.WriteFile(filepath.Join(at, "f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	must(t, s.Unmount(ctx, "vol", "c"))
	mustCreate(t, s, "nfs", map[string]string{"type": "nfs", "device": "127.0.0.1:/x", "o": "vers=4.2,soft,timeo=1,retrans=1"})
	if _, err := s.Mount(ctx, "nfs", "c"); err == nil || errors.Is(err, errs.NotImplemented) && !strings.Contains(err.Error(), `the kernel knows no file system "nfs" (CONFIG_NFS_FS, module nfs)`) {
		t.Errorf("nfs: %v", err)
	}
}
