package overlay

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// A full disk ends a layer with the kernel's word for it, keeps what was there, and leaves the space free again.
func TestNoSpace(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip(err)
	}
	defer func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	}()
	s := open(t, root)
	good := snapshottest.Apply(t, s, "", snapshottest.Tar(t, snapshottest.File("a", "1")))
	for range 3 {
		big := snapshottest.Tar(t, snapshottest.File("big", strings.Repeat("x", 4<<20)))
		if _, err := s.Apply(ctx, good.Chain, "", bytes.NewReader(big)); !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "\n") {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Prepare(ctx, "k", good.Chain, snapshot.Options{Durable: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	// A tree that cannot be turned into a layer stays what it was.
	if err := s.Prepare(ctx, "t", good.Chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	m, err := s.Mount(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	file := "/proc/self/fd/" + strconv.Itoa(int(m.Root.Fd())) + "/file"
	full := filepath.Join(root, "full")
	if err := errors.Join(os.WriteFile(file, []byte("1"), 0o644), m.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, make([]byte, 4<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := s.Turn(ctx, "t", snapshot.TurnOptions{Relaxed: true, Hold: "h"}); !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "\n") {
			t.Fatal(err)
		}
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Turn(ctx, "t", snapshot.TurnOptions{Hold: "h"}); err != nil || l.Size != 1 {
		t.Fatal(l, err)
	}
	snapshottest.Apply(t, s, good.Chain, snapshottest.Tar(t, snapshottest.File("fits", strings.Repeat("x", 1<<20))))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(root + "/new"); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}
