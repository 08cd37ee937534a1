package cache

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/killtest"
)

// TestKillChild is the process that TestKill kills. It builds, prunes and uses cache mounts without end, and says which records it was promised.
func TestKillChild(t *testing.T) {
	root := killtest.Child(t)
	h := open(t, root)
	for n := os.Getpid() * 1000; ; n++ {
		a := h.step(t, fmt.Sprint("a", n), 5000)
		fmt.Println("promised", a.Key)
		b := h.step(t, fmt.Sprint("b", n), 100, a)
		fmt.Println("promised", b.Key)
		key, release, err := h.Acquire(ctx, fmt.Sprint("mount", n%5), a.Outputs[0], pb.CacheSharingOpt_LOCKED)
		if err != nil {
			t.Fatal(err)
		}
		m, err := h.snaps.Mount(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("/proc/self/fd/"+strconv.Itoa(int(m.Root.Fd()))+"/f", []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		m.Close()
		release()
		if n%3 == 0 {
			fmt.Println("going", a.Key)
			fmt.Println("going", b.Key)
			if _, err := h.Prune(ctx, PruneOptions{All: true, Filters: map[string][]string{"description~": {fmt.Sprint(n)}}}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if n%7 == 0 {
			h.image(t, "img"+fmt.Sprint(n%2), h.step(t, fmt.Sprint("i", n), 10))
		}
		if n%10 == 0 {
			if err := h.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A process that is killed at any moment loses no record that Save returned for, and what is found has whole layers; the next start removes what was half done.
func TestKill(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	promised, going := map[string]bool{}, map[string]bool{}
	for range 8 {
		for word, key := range killtest.Run(t, "TestKillChild", root, 40*time.Millisecond) {
			switch word {
			case "promised":
				promised[key] = true
			case "going":
				going[key] = true
			}
		}
	}
	h := open(t, root)
	held := map[string]bool{}
	for key := range promised {
		rec, ok, err := h.Lookup(ctx, digest.Digest(key))
		if err != nil || !ok && !going[key] {
			t.Errorf("record %s: %v %v", key, ok, err)
		}
		if !ok {
			continue
		}
		if err := whole(h, rec); err != nil && !going[key] {
			t.Error(err)
		}
	}
	for _, e := range h.byKey {
		for _, hold := range e.Holds {
			held[hold] = true
		}
		if e.here {
			if err := whole(h, e.Record); err != nil {
				t.Error(err)
			}
		}
	}
	if err := h.snaps.Holds(ctx, func(name string, _ digest.Digest) error {
		if !held[name] {
			t.Errorf("hold %s of no record", name)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	trees := 0
	if err := h.snaps.Walk(ctx, func(key string, labels map[string]string) error {
		if labels[label] != "" {
			trees++
		}
		return nil
	}); err != nil || trees != len(h.muts) {
		t.Errorf("%d trees of %d cache mounts, %v", trees, len(h.muts), err)
	}
	t.Logf("%d records promised, %d there, %d cache mounts", len(promised), len(h.byKey), len(h.muts))
	if _, err := h.Prune(ctx, PruneOptions{All: true}, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"img0", "img1"} {
		_, _ = h.images.Remove(ctx, name, true, true, nil) // perhaps never made
	}
	list, err := h.images.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if _, err := h.images.Remove(ctx, img.ID.String(), true, true, nil); err != nil {
			t.Error(err)
		}
	}
	// Trees of steps that were killed are their owner's; here nobody is.
	_ = h.snaps.Walk(ctx, func(key string, _ map[string]string) error { return h.snaps.Remove(ctx, key) })
	h.images.Sweep()
	if left, err := h.snaps.Layers(ctx); err != nil || len(left) > 0 {
		t.Errorf("%d layers that nobody needs, %v", len(left), err)
	}
}

func whole(h house, rec build.Record) error {
	for _, chain := range rec.Outputs {
		if err := h.snaps.LayerTar(ctx, chain, io.Discard); err != nil {
			return fmt.Errorf("%s: %w", rec.Description, err)
		}
	}
	return nil
}

// On a full disk a record is refused, what was there stays, and a prune makes room.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	mountTmpfs(t, root, "size=8m")
	h := open(t, root)
	a := h.step(t, "a", 2<<20)
	b := h.step(t, "b", 1000)
	fill(t, root)
	var err error
	for i := 0; err == nil && i < 10000; i++ {
		err = h.Save(ctx, build.Record{Key: digest.FromString(fmt.Sprint(i)), Outputs: b.Outputs, Description: strings.Repeat("x", 2000)})
	}
	if err == nil || !strings.Contains(err.Error(), "no space left") || strings.Contains(err.Error(), "\n") {
		t.Fatal(err)
	}
	h.want(t, a, true, true)
	h.want(t, b, true, true)
	if space, err := h.Prune(ctx, PruneOptions{All: true, Filters: map[string][]string{"description": {"RUN a"}}}, nil); err != nil || space != 2<<20 {
		t.Error(space, err)
	}
	h.snaps.Close() // waits for the deletion
	h.step(t, "c", 1<<20)
	h.reopen(t)
	h = open(t, root)
	h.want(t, b, true, true)
	h.want(t, a, false, false)
	h.reopen(t)
	h.images.Close()
	h.snaps.Close()
}

func mountTmpfs(t *testing.T, root, opts string) {
	t.Helper()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, opts); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves no byte.
func fill(t *testing.T, root string) {
	t.Helper()
	f, err := os.Create(root + "/full")
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	f.Close()
}
