package overlay

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/killtest"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// TestKillChild is the process that TestKill kills. It works without end and says which layer it was promised.
func TestKillChild(t *testing.T) {
	root := killtest.Child(t)
	s := open(t, root)
	for n := os.Getpid() * 1000; ; n++ {
		var list []snapshottest.Entry
		for i := range 20 {
			list = append(list, snapshottest.File(fmt.Sprintf("d%d/f%d", i%3, i), strings.Repeat(fmt.Sprint(n), 2000)))
		}
		l := snapshottest.Apply(t, s, "", snapshottest.Tar(t, list...))
		fmt.Println("promised", l.Chain)
		key := fmt.Sprint(n)
		if err := s.Prepare(ctx, key, l.Chain, snapshot.Options{Durable: n%2 == 0}); err != nil {
			t.Fatal(err)
		}
		m, err := s.Mount(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/d0/f0", m.Root.Fd()), []byte("changed"), 0o644); err != nil {
			t.Fatal(err)
		}
		l, err = s.Commit(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("promised", l.Chain)
		m.Close()
		if n%2 == 0 {
			if err := s.Remove(ctx, key); err != nil {
				t.Fatal(err)
			}
			continue
		}
		// The tree itself becomes a layer; the kernel has it, whatever becomes of this process.
		if l, err = s.Turn(ctx, key, snapshot.TurnOptions{Relaxed: n%3 > 0, Hold: "kill/" + key}); err != nil {
			t.Fatal(err)
		}
		fmt.Println("promised", l.Chain)
		fmt.Println("held", "kill/"+key)
		if n%5 == 0 {
			if err := s.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A process that is killed at any moment loses no layer it had promised, and leaves nothing that the next one does not clean up.
func TestKill(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	var promised, held []string
	for range 8 {
		for word, name := range killtest.Run(t, "TestKillChild", root, 30*time.Millisecond) {
			switch word {
			case "promised":
				promised = append(promised, name)
			case "held":
				held = append(held, name)
			}
		}
	}
	s := open(t, root)
	for _, chain := range promised {
		if _, err := s.Stat(ctx, snapshot.ChainID(chain)); err != nil {
			t.Error(err)
		}
	}
	holds := map[string]bool{}
	if err := s.Holds(ctx, func(name string, _ snapshot.ChainID) error { holds[name] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, name := range held {
		if !holds[name] {
			t.Errorf("the hold %s is gone", name)
		}
	}
	if err := s.Walk(ctx, func(key string, _ map[string]string) error {
		m, err := s.Mount(ctx, key)
		if err != nil {
			return err // a tree that is half turned
		}
		return m.Close()
	}); err != nil {
		t.Error(err)
	}
	layers, err := s.Layers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if err := s.LayerTar(ctx, l.Chain, io.Discard); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"new", "trash", "lost"} {
		if left, _ := os.ReadDir(filepath.Join(root, dir)); len(left) > 0 {
			t.Errorf("%s: %v", dir, left)
		}
	}
	t.Logf("%d layers promised, %d there", len(promised), len(layers))
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(root)) {
		t.Errorf("a mount is left: %v", err)
	}
}
