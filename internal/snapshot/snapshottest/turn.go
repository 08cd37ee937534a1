package snapshottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// changed prepares a tree named key on chain and changes it.
func changed(t *testing.T, s snapshot.Store, key string, chain snapshot.ChainID, change func(at func(string) string) []error) {
	t.Helper()
	if err := s.Prepare(context.Background(), key, chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	m, err := s.Mount(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range change(func(name string) string { return at(m, name) }) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

// written is a tree with one more file.
func written(t *testing.T, s snapshot.Store, key string, chain snapshot.ChainID, name, text string) {
	t.Helper()
	changed(t, s, key, chain, func(at func(string) string) []error { return []error{os.WriteFile(at(name), []byte(text), 0o644)} })
}

func turned(t *testing.T, s snapshot.Store, key string, opts snapshot.TurnOptions) snapshot.Layer {
	t.Helper()
	l, err := s.Turn(context.Background(), key, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func turn(t *testing.T, open Open) {
	ctx := context.Background()
	for _, opts := range []snapshot.TurnOptions{{}, {Relaxed: true, Hold: "test/a b"}} {
		root := t.TempDir()
		s := open(t, root)
		base := Apply(t, s, "", Tar(t, Dir("d", 0o755), File("d/a", "1"), Dir("gone", 0o755), File("gone/x", "1"), File("b", "2"), Dir("rest", 0o755), File("rest/y", "1")))
		changed(t, s, "k", base.Chain, func(at func(string) string) []error {
			return []error{
				os.WriteFile(at("d/new"), []byte("n"), 0o600), os.Remove(at("b")), os.RemoveAll(at("gone")), os.Mkdir(at("gone"), 0o700), os.RemoveAll(at("rest")),
				os.Link(at("d/new"), at("hard")), os.Symlink("d/new", at("soft")), os.Chmod(at(""), 0o711), os.WriteFile(at("gone/fresh"), nil, 0o644), listenAt(at("d/socket")),
			}
		})
		var diff bytes.Buffer
		if err := s.Diff(ctx, "k", &diff); err != nil {
			t.Fatal(err)
		}
		l := turned(t, s, "k", opts)
		if l.DiffID != digest.FromBytes(diff.Bytes()) || l.Parent != base.Chain || l.Chain != snapshot.ChainOf(base.Chain, l.DiffID) || l.TarSize != int64(diff.Len()) || l.Size != 1 {
			t.Errorf("layer %+v, want the diff %s of %d bytes", l, digest.FromBytes(diff.Bytes()), diff.Len())
		}
		for _, again := range []bool{false, true} {
			if again {
				s = open(t, root)
			}
			if _, err := s.Mount(ctx, "k"); !errors.Is(err, errs.NotFound) {
				t.Errorf("mount of a tree that was turned: %v", err)
			}
			if have, err := s.Stat(ctx, l.Chain); err != nil || have != l {
				t.Errorf("stat %+v %v", have, err)
			}
			var tar bytes.Buffer
			if err := s.LayerTar(ctx, l.Chain, &tar); err != nil || !bytes.Equal(tar.Bytes(), diff.Bytes()) {
				t.Errorf("the layer's tar differs from the diff: %v", err)
			}
			v := view(t, s, l.Chain)
			for name, want := range map[string]string{"d/a": "1", "d/new": "n", "hard": "n", "soft": "n", "b": "-", "gone/x": "-", "gone/fresh": "", "rest/y": "-", "d/socket": "-"} {
				if got := read(t, v, name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			if got := mode(t, v, ""); got != 0o711 {
				t.Errorf("root has mode %o", got)
			}
			v.Close()
			if err := s.RemoveLayer(ctx, base.Chain); !errors.Is(err, errs.Conflict) {
				t.Errorf("the layer below went: %v", err)
			}
		}
		if err := s.Release(ctx, "test/a b"); err != nil {
			t.Fatal(err)
		}
		for _, chain := range []snapshot.ChainID{l.Chain, base.Chain} {
			if err := s.RemoveLayer(ctx, chain); err != nil {
				t.Error(err)
			}
		}
		noLeftovers(t, s, root)
	}
}

// listenAt leaves a socket behind, as a server that was killed does.
func listenAt(path string) error {
	dir, base := filepath.Split(path)
	// A socket's address is short: the long path of a test folder does not fit into it.
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	ln, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), base))
	if err != nil {
		return err
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	return ln.Close()
}

// What a tree was turned into is the layer that others make of the same tar, on this parent and on another one.
func turnIsDiff(t *testing.T, open Open) {
	ctx := context.Background()
	s := open(t, t.TempDir())
	base := Apply(t, s, "", Tar(t, Dir(".", 0o750), Dir("d", 0o710), File("d/a", "1")))
	other := Apply(t, s, "", Tar(t, Dir(".", 0o700), Dir("d", 0o755), File("d/other", "1")))
	written(t, s, "k", base.Chain, "d/b", strings.Repeat("x", 100000))
	l := turned(t, s, "k", snapshot.TurnOptions{Relaxed: true})
	moved, err := s.Stack(ctx, other.Chain, l.DiffID, nil, snapshot.Stacking{Relaxed: true, Hold: "test/moved"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLayer(ctx, moved.Chain); !errors.Is(err, errs.Conflict) {
		t.Errorf("a layer that is held went: %v", err)
	}
	v := view(t, s, moved.Chain)
	if read(t, v, "d/b") == "-" || read(t, v, "d/other") != "1" || read(t, v, "d/a") != "-" || mode(t, v, "") != 0o700 || mode(t, v, "d") != 0o710 {
		t.Errorf("the layer on another parent: root %o, d %o", mode(t, v, ""), mode(t, v, "d"))
	}
	var tar bytes.Buffer
	if err := s.LayerTar(ctx, moved.Chain, &tar); err != nil {
		t.Fatal(err)
	}
	again, err := s.Apply(ctx, base.Chain, l.DiffID, &tar)
	if err != nil || again.Chain != l.Chain {
		t.Errorf("applied: %+v %v", again, err)
	}
}

func turnNothing(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	base := Apply(t, s, "", Tar(t, File("a", "1")))
	for _, c := range []struct {
		chain snapshot.ChainID
		want  snapshot.Layer
	}{{base.Chain, base}, {"", snapshot.Layer{}}} {
		if err := s.Prepare(ctx, "k", c.chain, snapshot.Options{}); err != nil {
			t.Fatal(err)
		}
		if l := turned(t, s, "k", snapshot.TurnOptions{Hold: "test"}); l != c.want {
			t.Errorf("nothing on %q gave %+v", c.chain, l)
		}
		if err := s.Prepare(ctx, "k", c.chain, snapshot.Options{}); err != nil {
			t.Fatal(err)
		}
		const emptyTar = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
		l := turned(t, s, "k", snapshot.TurnOptions{Empty: true})
		if l.DiffID != emptyTar || l.Parent != c.chain || l.Size != 0 {
			t.Errorf("an empty layer on %q is %+v", c.chain, l)
		}
		if err := s.RemoveLayer(ctx, l.Chain); err != nil {
			t.Error(err)
		}
	}
	if err := s.RemoveLayer(ctx, base.Chain); !errors.Is(err, errs.Conflict) {
		t.Errorf("the held layer went: %v", err)
	}
	if _, err := s.Turn(ctx, "none", snapshot.TurnOptions{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("turn of no tree: %v", err)
	}
	noLeftovers(t, s, root)
}

func turnMounted(t *testing.T, open Open) {
	ctx := context.Background()
	s := open(t, t.TempDir())
	if err := s.Prepare(ctx, "k", "", snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	m := mount(t, s, "k")
	write(t, m, "f", "1")
	if _, err := s.Turn(ctx, "k", snapshot.TurnOptions{}); !errors.Is(err, errs.Conflict) {
		t.Fatalf("turn of a mounted tree: %v", err)
	}
	if m := mount(t, s, "k"); read(t, m, "f") != "1" {
		t.Error("the tree lost its file")
	} else {
		m.Close()
	}
	m.Close()
	turned(t, s, "k", snapshot.TurnOptions{})
}

// Several trees of equal content become one layer.
func turnTwice(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	const n = 5
	for i := range n {
		// Directories and files of one time, so that the bytes are the same.
		changed(t, s, fmt.Sprint(i), "", func(at func(string) string) []error {
			return []error{os.Symlink("x", at("l")), lutimes(at("l"))}
		})
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	chains := map[snapshot.ChainID]int{}
	for i := range n {
		wg.Go(func() {
			l, err := s.Turn(ctx, fmt.Sprint(i), snapshot.TurnOptions{Relaxed: true, Hold: fmt.Sprint("test/", i)})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			chains[l.Chain]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(chains) != 1 {
		t.Fatalf("layers %v", chains)
	}
	for i := range n {
		for chain := range chains {
			if err := s.RemoveLayer(ctx, chain); !errors.Is(err, errs.Conflict) {
				t.Errorf("removed while %d hold it: %v", n-i, err)
			}
		}
		if err := s.Release(ctx, fmt.Sprint("test/", i)); err != nil {
			t.Error(err)
		}
	}
	for chain := range chains {
		if err := s.RemoveLayer(ctx, chain); err != nil {
			t.Error(err)
		}
	}
	noLeftovers(t, s, root)
}

// lutimes gives a link a fixed time.
func lutimes(path string) error {
	ts := []unix.Timespec{{Sec: 1700000000}, {Sec: 1700000000}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
}
