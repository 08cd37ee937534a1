package overlay

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/loop"
	"corten.dev/corten/internal/linux/quota"
	"corten.dev/corten/internal/linux/quota/quotatest"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// loops counts the loop devices whose file lies below a folder, as the kernel lists them.
func loops(t testing.TB, root string) (n int) {
	t.Helper()
	list, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), root) {
			n++
		}
	}
	return n
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func needLoop(t testing.TB) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "probe")
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := loop.Attach(name, loop.Options{})
	if err != nil {
		t.Skip(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
}

func in(m *snapshot.Mounted, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(m.Root.Fd())) + "/" + name
}

// A tree with a size holds that much and no more; what looks at it, while it is mounted and when it is not, sees the one file system; another engine finds it; nothing is left of it.
func TestSized(t *testing.T) {
	needRoot(t)
	needLoop(t)
	sized(t, t.TempDir())
}

// The same by a project's quota, where kernel and file system have them.
func TestSizedByQuota(t *testing.T) {
	needRoot(t)
	needLoop(t)
	sized(t, quotatest.Mount(t, "128M"))
}

func sized(t *testing.T, root string) {
	s := open(t, root)
	low := snapshottest.Apply(t, s, "", snapshottest.Tar(t, snapshottest.File("low", strings.Repeat("x", 1<<20)), snapshottest.File("gone", "1")))
	opts := snapshot.Options{Size: 8 << 20, Durable: true}
	for _, key := range []string{"k", "other"} {
		if err := s.Prepare(ctx, key, low.Chain, opts); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "no loop device", func() bool { return loops(t, root) == 0 })
	m, err := s.Mount(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(in(m, "fits"), make([]byte, 6<<20), 0o600), os.Remove(in(m, "gone"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in(m, "much"), make([]byte, 4<<20), 0o600); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		t.Errorf("more than the size: %v", err)
	}
	if err := os.Remove(in(m, "much")); err != nil {
		t.Error(err)
	}
	other, err := s.Mount(ctx, "other") // a limit is one tree's
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(in(other, "fits"), make([]byte, 6<<20), 0o600), other.Close()); err != nil {
		t.Error(err)
	}
	looks := func(s *Store) {
		t.Helper()
		var all []string
		changes, err := s.Changes(ctx, "k")
		for _, c := range changes {
			all = append(all, strconv.Itoa(int(c.Kind))+c.Path)
		}
		if got := strings.Join(all, " "); err != nil || got != "1/fits 2/gone" {
			t.Errorf("changes %s, %v", got, err)
		}
		if n, err := s.Usage(ctx, "k"); err != nil || n < 6<<20 || n > 7<<20 {
			t.Errorf("usage %d, %v", n, err)
		}
		var tar bytes.Buffer
		if err := s.Diff(ctx, "k", &tar); err != nil || !bytes.Contains(tar.Bytes(), []byte(".wh.gone")) {
			t.Errorf("diff of %d bytes, %v", tar.Len(), err)
		}
	}
	looks(s)
	// The engine is killed; who runs in the tree keeps it mounted.
	again := open(t, root)
	looks(again)
	m2, err := again.Mount(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "one device of one image", func() bool { return loops(t, root) <= 1 }) // that of the other tree may stay in a neighbour's copy of all mounts for a moment
	if err := os.WriteFile(in(m2, "late"), []byte("late"), 0o600); err != nil {
		t.Error(err)
	}
	if err := errors.Join(m.Close(), m2.Close()); err != nil {
		t.Error(err)
	}
	until(t, "no loop device", func() bool { return loops(t, root) == 0 })
	l, err := again.Commit(ctx, "k")
	if err != nil || l.Size < 6<<20 {
		t.Errorf("commit %+v, %v", l, err)
	}
	if _, err := again.Turn(ctx, "k", snapshot.TurnOptions{}); !errors.Is(err, errs.NotImplemented) {
		t.Errorf("turn: %v", err)
	}
	removeSized(t, again, root)
}

func removeSized(t *testing.T, s *Store, root string) {
	t.Helper()
	tree, err := s.Get("k")
	if err != nil {
		t.Fatal(err)
	}
	var project uint32
	if !inImage(tree) {
		if project, err = projectOf(tree); err != nil || project == 0 {
			t.Fatal(project, err)
		}
	}
	for _, key := range []string{"k", "other"} {
		if err := s.Remove(ctx, key); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"trees", "trash"} {
		if left, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	until(t, "no loop device", func() bool { return loops(t, root) == 0 })
	if project != 0 {
		top, err := os.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		defer top.Close()
		if use, err := quota.Usage(top, project); err != nil || use.Limit != 0 {
			t.Errorf("project %d keeps %+v, %v", project, use, err)
		}
	}
}

// Long chains and kernels before 6.8 mount by other calls, which find the image as well; so do trees that several have mounted on kernels before 6.15.
func TestSizedElsewhere(t *testing.T) {
	needRoot(t)
	needLoop(t)
	root := t.TempDir()
	s := open(t, root)
	s.clones = false
	chain := snapshottest.Chain(t, s, 3)
	if err := s.Prepare(ctx, "k", chain, snapshot.Options{Size: 4 << 20, Shared: true}); err != nil {
		t.Fatal(err)
	}
	a, err := s.Mount(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Mount(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in(a, "f"), []byte("f"), 0o600); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(in(b, "f")); err != nil || string(text) != "f" {
		t.Errorf("%q, %v", text, err)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	until(t, "no loop device", func() bool { return loops(t, root) == 0 })
}

// What is too little for a file system, or cannot be kept, is refused and leaves nothing.
func TestSizedRefused(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := open(t, root)
	if s.quotas() == nil {
		t.Skip("quotas take any size")
	}
	if err := s.Prepare(ctx, "k", "", snapshot.Options{Size: 1000}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if _, err := s.Get("k"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}
