package overlay

import (
	"context"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

var ctx = context.Background()

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func open(t testing.TB, root string) *Store {
	t.Helper()
	s, err := New(Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSuite(t *testing.T) {
	needRoot(t)
	if err := Supported(t.TempDir()); err != nil {
		t.Skip(err)
	}
	snapshottest.Run(t, func(t *testing.T, root string) snapshot.Store { return open(t, root) })
}

// A long chain does not fit into one option of the older mount calls: the way around must give the same tree.
func TestMountElsewhere(t *testing.T) {
	needRoot(t)
	s := open(t, t.TempDir())
	chain := snapshottest.Chain(t, s, 40)
	lower, err := s.Chain(chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []layout{{lower: lower}, {lower: lower, upper: s.Root() + "/up", work: s.Root() + "/work"}} {
		if l.upper != "" {
			for _, dir := range []string{l.upper, l.work} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		root, err := s.elsewhere(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"f1", "f40"} {
			if err := unix.Faccessat(int(root.Fd()), name, unix.F_OK, 0); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		root.Close()
	}
	for _, single := range []bool{true, false} {
		if single && !singleLayers() {
			continue // this kernel does not know the newer way
		}
		fd, err := s.configure(layout{lower: lower[:3]}, single)
		if err != nil {
			t.Fatalf("single %v: %v", single, err)
		}
		unix.Close(fd)
	}
}

// Two builds have a cache mount at a time, each attached to a tree of its own. Kernels before 6.15 clone no mount that is attached nowhere: there the second got one that could not be attached.
func TestSharedTree(t *testing.T) {
	needRoot(t)
	for _, clones := range []bool{true, false} {
		s := open(t, t.TempDir())
		if s.clones = s.clones && clones; s.clones != clones {
			continue // this kernel does not know the newer way
		}
		chain := snapshottest.Chain(t, s, 2)
		if err := s.Prepare(ctx, "k", chain, snapshot.Options{Shared: true}); err != nil {
			t.Fatal(err)
		}
		var mounts []*snapshot.Mounted
		for range 3 {
			m, err := s.Mount(ctx, "k")
			if err != nil || !m.Detached {
				t.Fatal(m, err)
			}
			mounts = append(mounts, m)
		}
		target := t.TempDir()
		for i, m := range mounts {
			if err := unix.MoveMount(int(m.Root.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				t.Fatal(err)
			}
			name := "new" + strconv.Itoa(i)
			if err := os.WriteFile(target+"/"+name, []byte("1"), 0o644); err != nil {
				t.Error(err)
			}
			for _, other := range mounts[i:] {
				for _, name := range []string{"f1", name} {
					if err := unix.Faccessat(int(other.Root.Fd()), name, unix.F_OK, 0); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
			}
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		if l, err := s.Turn(ctx, "k", snapshot.TurnOptions{}); err != nil || l.Size != 3 {
			t.Error(l, err)
		}
	}
}

func BenchmarkPrepareMountRemove(b *testing.B) {
	needRoot(b)
	s := open(b, b.TempDir())
	chain := snapshottest.Chain(b, s, 4)
	n := 0
	for b.Loop() {
		n++
		key := strconv.Itoa(n)
		if err := s.Prepare(ctx, key, chain, snapshot.Options{}); err != nil {
			b.Fatal(err)
		}
		m, err := s.Mount(ctx, key)
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(ctx, key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPrepare(b *testing.B) {
	needRoot(b)
	s := open(b, b.TempDir())
	chain := snapshottest.Chain(b, s, 4)
	for b.Loop() {
		if err := s.Prepare(ctx, "k", chain, snapshot.Options{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Remove(ctx, "k")
		b.StartTimer()
	}
}

func BenchmarkMount(b *testing.B) {
	needRoot(b)
	s := open(b, b.TempDir())
	chain := snapshottest.Chain(b, s, 4)
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		key := strconv.Itoa(n)
		if err := s.Prepare(ctx, key, chain, snapshot.Options{}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		m, err := s.Mount(ctx, key)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		m.Close()
		s.down.Wait()
		b.StartTimer()
	}
}

// A build step leaves a few files; its layer must cost next to nothing.
func BenchmarkTurnRelaxed(b *testing.B) {
	needRoot(b)
	s := open(b, b.TempDir())
	chain := snapshottest.Chain(b, s, 4)
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		key := strconv.Itoa(n)
		if err := s.Prepare(ctx, key, chain, snapshot.Options{}); err != nil {
			b.Fatal(err)
		}
		m, err := s.Mount(ctx, key)
		if err != nil {
			b.Fatal(err)
		}
		for i := range 5 {
			if err := os.WriteFile("/proc/self/fd/"+strconv.Itoa(int(m.Root.Fd()))+"/file"+strconv.Itoa(i), []byte(key), 0o644); err != nil {
				b.Fatal(err)
			}
		}
		m.Close()
		b.StartTimer()
		if _, err := s.Turn(ctx, key, snapshot.TurnOptions{Relaxed: true, Hold: "test/" + key}); err != nil {
			b.Fatal(err)
		}
	}
}
