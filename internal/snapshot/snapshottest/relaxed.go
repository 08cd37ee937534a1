package snapshottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// anotherBoot makes the relaxed layers of a store look as if they were made before the host went down.
func anotherBoot(t *testing.T, root string) {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(root, "layers/*/layer.json"))
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range records {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data = bytes.ReplaceAll(data, bytes.TrimSpace(boot), []byte("00000000-0000-0000-0000-000000000000"))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A relaxed layer is there after the process is gone, and after the host went down only if it was flushed.
func relaxed(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	base := Apply(t, s, "", Tar(t, File("a", "1")))
	var all []snapshot.Layer
	chain := base.Chain
	for i := range 4 {
		written(t, s, "k", chain, fmt.Sprint("f", i), fmt.Sprint(i))
		l := turned(t, s, "k", snapshot.TurnOptions{Relaxed: true, Hold: fmt.Sprint("test/", i)})
		if all, chain = append(all, l), l.Chain; i == 1 {
			if err := s.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	for boot, want := range []int{4, 2} {
		if boot == 1 {
			anotherBoot(t, root)
		}
		s = open(t, root)
		for i, l := range all {
			if _, err := s.Stat(ctx, l.Chain); (err == nil) != (i < want) {
				t.Errorf("boot %d: layer %d: %v", boot, i, err)
			}
		}
		held := 0
		if err := s.Holds(ctx, func(name string, chain snapshot.ChainID) error { held++; return nil }); err != nil || held != want {
			t.Errorf("boot %d: %d holds, want %d, %v", boot, held, want, err)
		}
	}
	// A record that did not reach the disk at all.
	written(t, s, "k", base.Chain, "f", "1")
	l := turned(t, s, "k", snapshot.TurnOptions{Relaxed: true})
	records, err := filepath.Glob(filepath.Join(root, "layers/*/layer.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range records {
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(l.Chain)) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	s = open(t, root)
	if _, err := s.Stat(ctx, l.Chain); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(root, "lost")); len(left) > 0 {
		t.Errorf("set aside: %v", left)
	}
	noLeftovers(t, s, root)
}

// A durable layer makes the relaxed ones durable that it stands on or is found as.
func relaxedParents(t *testing.T, open Open) {
	ctx := context.Background()
	top := Tar(t, File("top", "1"))
	for name, durable := range map[string]func(s snapshot.Store, below, l snapshot.Layer) (snapshot.Layer, error){
		"apply": func(s snapshot.Store, _, l snapshot.Layer) (snapshot.Layer, error) {
			return s.Apply(ctx, l.Chain, digest.FromBytes(top), bytes.NewReader(top))
		},
		"stack": func(s snapshot.Store, _, l snapshot.Layer) (snapshot.Layer, error) {
			return s.Stack(ctx, l.Chain, digest.FromBytes(top), bytes.NewReader(top), snapshot.Stacking{})
		},
		"found": func(s snapshot.Store, below, l snapshot.Layer) (snapshot.Layer, error) {
			return s.Stack(ctx, below.Chain, l.DiffID, nil, snapshot.Stacking{})
		},
		"unchanged": func(s snapshot.Store, _, l snapshot.Layer) (snapshot.Layer, error) {
			if err := s.Prepare(ctx, "u", l.Chain, snapshot.Options{}); err != nil {
				return l, err
			}
			return s.Turn(ctx, "u", snapshot.TurnOptions{})
		},
		"commit": func(s snapshot.Store, _, l snapshot.Layer) (snapshot.Layer, error) {
			written(t, s, "c", l.Chain, "c", "1")
			return s.Commit(ctx, "c")
		},
	} {
		root := t.TempDir()
		s := open(t, root)
		written(t, s, "k", "", "a", "1")
		below := turned(t, s, "k", snapshot.TurnOptions{Relaxed: true})
		written(t, s, "k", below.Chain, "b", "1")
		l, err := durable(s, below, turned(t, s, "k", snapshot.TurnOptions{Relaxed: true}))
		if err != nil {
			t.Fatal(name, err)
		}
		written(t, s, "k", "", "later", "1")
		later := turned(t, s, "k", snapshot.TurnOptions{Relaxed: true})
		anotherBoot(t, root)
		s = open(t, root)
		if err := s.LayerTar(ctx, l.Chain, io.Discard); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Stat(ctx, later.Chain); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: a layer that was not flushed: %v", name, err)
		}
	}
}

// The record of a durable layer is damaged: what stands on it is kept for a person to look at, also if it was relaxed once; after an end in order, everything is durable.
func damagedParent(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	base := Apply(t, s, "", Tar(t, File("a", "1")))
	written(t, s, "k", base.Chain, "b", "1")
	l := turned(t, s, "k", snapshot.TurnOptions{Relaxed: true})
	if c, ok := s.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	anotherBoot(t, root)
	records, err := filepath.Glob(filepath.Join(root, "layers/*/layer.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range records {
		if data, err := os.ReadFile(path); err == nil && !bytes.Contains(data, []byte(l.Chain)) {
			if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	s = open(t, root)
	if _, err := s.Stat(ctx, l.Chain); err != nil {
		t.Error(err)
	}
	if _, err := s.Stat(ctx, base.Chain); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

func holds(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	a := Apply(t, s, "", Tar(t, File("a", "1")))
	b := Apply(t, s, a.Chain, Tar(t, File("b", "1")))
	odd := "odd\n\"name\" ü\x00"
	for name, chain := range map[string]snapshot.ChainID{"x": b.Chain, odd: a.Chain, "moves": a.Chain, "none": ""} {
		for range 2 {
			if err := s.Hold(ctx, name, chain); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Hold(ctx, "y", digest.FromString("none")); !errors.Is(err, errs.NotFound) {
		t.Errorf("hold of no layer: %v", err)
	}
	if err := errors.Join(s.Hold(ctx, "moves", b.Chain), s.Hold(ctx, "gone", b.Chain), s.Release(ctx, "gone"), s.Release(ctx, "gone"), s.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	// The end of a line that was cut off by a crash.
	f, err := os.OpenFile(filepath.Join(root, "holds"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("+ sha256:12"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for range 2 {
		s = open(t, root)
		got := map[string]snapshot.ChainID{}
		if err := s.Holds(ctx, func(name string, chain snapshot.ChainID) error { got[name] = chain; return nil }); err != nil {
			t.Fatal(err)
		}
		if len(got) != 3 || got["x"] != b.Chain || got[odd] != a.Chain || got["moves"] != b.Chain {
			t.Errorf("holds %v", got)
		}
	}
	for i, name := range []string{"x", "moves", odd} {
		for _, chain := range []snapshot.ChainID{b.Chain, a.Chain}[min(i/2, 1):] {
			if err := s.RemoveLayer(ctx, chain); !errors.Is(err, errs.Conflict) || !errors.Is(err, snapshot.ErrKept) {
				t.Errorf("remove while %s holds: %v", name, err)
			}
		}
		if i == 0 {
			// A tree's owner does not know of layers: somebody else must try again.
			if err := s.Prepare(ctx, "k", b.Chain, snapshot.Options{}); err != nil {
				t.Fatal(err)
			}
			if err := s.RemoveLayer(ctx, b.Chain); !errors.Is(err, errs.Conflict) || errors.Is(err, snapshot.ErrKept) {
				t.Errorf("remove below a tree: %v", err)
			}
			if err := s.Remove(ctx, "k"); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Release(ctx, name); err != nil {
			t.Fatal(err)
		}
		if name == "moves" {
			if err := s.RemoveLayer(ctx, b.Chain); err != nil {
				t.Error(err)
			}
		}
	}
	if err := s.RemoveLayer(ctx, a.Chain); err != nil {
		t.Error(err)
	}
	noLeftovers(t, s, root)
}
