// Package snapshottest is the suite that every snapshot driver has to pass.
//
// It owns nothing but the temporary folders of the test. It promises that a driver that passes can be put below the engine.
package snapshottest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// Open opens a store on root. The suite opens the same root again to see what a new process would find.
type Open func(t *testing.T, root string) snapshot.Store

// Entry is one entry of a test archive. A name that ends in / is a directory, one with "->" in Body's place a link.
type Entry struct {
	tar.Header
	Body string
}

// File, Dir, Link and Hard make entries.
func File(name, body string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func Dir(name string, mode int64) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, ""}
}

func Link(name, target string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func Hard(name, target string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, ""}
}

// Tar makes an archive.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.Body))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.Body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Chain applies n layers, each with a file f1 … fn, and returns the chain.
func Chain(t testing.TB, s snapshot.Store, n int) snapshot.ChainID {
	t.Helper()
	var chain snapshot.ChainID
	for i := 1; i <= n; i++ {
		chain = Apply(t, s, chain, Tar(t, File(fmt.Sprintf("f%d", i), fmt.Sprint(i)))).Chain
	}
	return chain
}

// Apply applies a layer that must be good.
func Apply(t testing.TB, s snapshot.Store, parent snapshot.ChainID, data []byte) snapshot.Layer {
	t.Helper()
	want := digest.FromBytes(data)
	l, err := s.Apply(context.Background(), parent, want, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if l.DiffID != want {
		t.Fatalf("diff id %s, want %s", l.DiffID, want)
	}
	return l
}

// Run runs the suite.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Open)
	}{
		{"ApplyAndRead", applyAndRead},
		{"LayerTarIsTheSameBytes", sameBytes},
		{"WrongDigestLeavesNothing", wrongDigest},
		{"ApplyTwiceAtATime", applyTwice},
		{"Whiteouts", whiteouts},
		{"Writable", writable},
		{"CommitAndReopen", commitAndReopen},
		{"RemoveLayerInUse", removeInUse},
		{"LeftoversAreCleaned", leftovers},
		{"RootAttributes", rootAttributes},
		{"ImpliedDirectories", impliedDirectories},
		{"StackRow", stackRow},
		{"StackFails", stackFails},
		{"StackKnown", stackKnown},
		{"LastUsage", lastUsage},
		{"Turn", turn},
		{"TurnIsDiff", turnIsDiff},
		{"TurnNothing", turnNothing},
		{"TurnMounted", turnMounted},
		{"TurnTwice", turnTwice},
		{"Relaxed", relaxed},
		{"RelaxedParents", relaxedParents},
		{"DamagedParent", damagedParent},
		{"Holds", holds},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open) })
	}
}

func view(t *testing.T, s snapshot.Store, chain snapshot.ChainID) *snapshot.Mounted {
	t.Helper()
	m, err := s.View(context.Background(), chain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func mount(t *testing.T, s snapshot.Store, key string) *snapshot.Mounted {
	t.Helper()
	m, err := s.Mount(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func at(m *snapshot.Mounted, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", m.Root.Fd(), name)
}

func read(t *testing.T, m *snapshot.Mounted, name string) string {
	t.Helper()
	data, err := os.ReadFile(at(m, name))
	if errors.Is(err, os.ErrNotExist) {
		return "-"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func mode(t *testing.T, m *snapshot.Mounted, name string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(at(m, name), &st); err != nil {
		t.Fatal(err)
	}
	return st.Mode & 0o7777
}

func write(t *testing.T, m *snapshot.Mounted, name, text string) {
	t.Helper()
	if err := os.WriteFile(at(m, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func applyAndRead(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	a := Apply(t, s, "", Tar(t, Dir("etc", 0o755), File("etc/a", "one"), Link("l", "etc/a"), Hard("h", "etc/a")))
	b := Apply(t, s, a.Chain, Tar(t, File("etc/b", "two")))
	m := view(t, s, b.Chain)
	for name, want := range map[string]string{"etc/a": "one", "etc/b": "two", "l": "one", "h": "one"} {
		if got := read(t, m, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if err := os.WriteFile(at(m, "new"), nil, 0o600); s.Name() == "overlay" && !errors.Is(err, unix.EROFS) {
		t.Errorf("write into a view: %v", err)
	}
	if a.Size != 3 || b.Size != 3 || b.Parent != a.Chain {
		t.Errorf("layers %+v %+v", a, b)
	}
	if _, err := s.Stat(context.Background(), "sha256:0"); !errors.Is(err, errs.NotFound) {
		t.Errorf("stat: %v", err)
	}
}

func sameBytes(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	xattr := File("x", "attr")
	xattr.PAXRecords = map[string]string{"SCHILY.xattr.user.k": "v", "SCHILY.xattr.trusted.overlay.opaque": "y"}
	big := File("big", strings.Repeat("0123456789", 100000))
	data := Tar(t, Dir("d", 0o700), File("d/f", "1"), big, File("d/f", "22"), xattr, Link("s", "d"), File("s/through", "3"), File("d", "now a file"), Hard("h", "big"), File("big", "small"), File(".wh.gone", "odd"))
	data = append(data, bytes.Repeat([]byte{0}, 5000)...)
	l := Apply(t, s, "", data)
	var buf bytes.Buffer
	if err := s.LayerTar(context.Background(), l.Chain, &buf); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf.Bytes(), data) {
		t.Fatal("other bytes")
	}
}

func wrongDigest(t *testing.T, open Open) {
	root := t.TempDir()
	s := open(t, root)
	_, err := s.Apply(context.Background(), "", digest.FromString("other"), bytes.NewReader(Tar(t, File("a", "1"))))
	if !errors.Is(err, errs.Invalid) {
		t.Fatalf("%v", err)
	}
	cut := Tar(t, File("a", strings.Repeat("x", 5000)))[:2000]
	if _, err := s.Apply(context.Background(), "", "", bytes.NewReader(cut)); !errors.Is(err, errs.Invalid) {
		t.Fatalf("%v", err)
	}
	if all, _ := s.Layers(context.Background()); len(all) != 0 {
		t.Fatalf("%v", all)
	}
	noLeftovers(t, s, root)
}

// noLeftovers waits for the background and looks.
func noLeftovers(t *testing.T, s snapshot.Store, root string) {
	t.Helper()
	if c, ok := s.(io.Closer); ok {
		c.Close()
	}
	for _, dir := range []string{"new", "trash"} {
		left, _ := os.ReadDir(filepath.Join(root, dir))
		if len(left) != 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

func applyTwice(t *testing.T, open Open) {
	root := t.TempDir()
	s := open(t, root)
	data := Tar(t, File("a", strings.Repeat("x", 1<<20)))
	for _, want := range []digest.Digest{digest.FromBytes(data), ""} {
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, err := s.Apply(context.Background(), "", want, bytes.NewReader(data)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	all, err := s.Layers(context.Background())
	if err != nil || len(all) != 1 {
		t.Fatalf("%v %v", all, err)
	}
	if err := s.RemoveLayer(context.Background(), all[0].Chain); err != nil {
		t.Fatal(err)
	}
	noLeftovers(t, s, root)
}

func whiteouts(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	a := Apply(t, s, "", Tar(t, Dir("d", 0o755), File("d/old", "1"), Dir("e", 0o755), File("e/old", "1"), File("f", "1"), File("g", "1"), Dir("r", 0o755), File("r/old", "1")))
	b := Apply(t, s, a.Chain, Tar(t, File("d/new", "2"), File("d/.wh..wh..opq", ""), File(".wh.e", ""), File("e/new", "2"), File(".wh.f", ""), File(".wh.g", ""), File("g", "2"), File(".wh.none", ""), Dir("r", 0o755), File("r/kept", "2"), File(".wh.r", "")))
	m := view(t, s, b.Chain)
	for name, want := range map[string]string{"d/old": "-", "d/new": "2", "e/old": "-", "e/new": "2", "f": "-", "g": "2", "r/old": "-", "r/kept": "2"} {
		if got := read(t, m, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	// A device 0:0 is overlayfs' own mark of a deletion: it means the same everywhere, and is never there itself.
	c := Apply(t, s, a.Chain, Tar(t, Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "f"}}, Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "d"}}, Dir("e", 0o755)))
	m = view(t, s, c.Chain)
	for name, there := range map[string]bool{"f": false, "d": false, "e/old": true, "g": true} {
		if _, err := os.Lstat(at(m, name)); (err == nil) != there || err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after devices 0:0, %s: %v", name, err)
		}
	}
	// A link to what was just deleted would take the deletion's mark for a file.
	for _, gone := range [][]Entry{{File(".wh.f", ""), Hard("y", "f")}, {Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "f"}}, Hard("y", "f")}} {
		if _, err := s.Apply(context.Background(), a.Chain, "", bytes.NewReader(Tar(t, gone...))); !errors.Is(err, errs.Invalid) {
			t.Errorf("a link to what was deleted: %v", err)
		}
	}
	c = Apply(t, s, b.Chain, Tar(t, Dir("d", 0o755), File("d/only", "3"), File(".wh..wh..opq", ""), File("g", "3"), Dir("r", 0o755)))
	m = view(t, s, c.Chain)
	for name, want := range map[string]string{"d/new": "-", "d/only": "3", "e/new": "-", "g": "3", "r/kept": "-"} {
		if got := read(t, m, name); got != want {
			t.Errorf("below a top that hides everything, %s is %q, want %q", name, got, want)
		}
	}
	for _, bad := range []string{".wh.", ".wh...", ".wh.x/y"} {
		if _, err := s.Apply(context.Background(), "", "", bytes.NewReader(Tar(t, File(bad, "")))); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func writable(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	l := Apply(t, s, "", Tar(t, Dir("d", 0o755), File("d/a", "1"), File("b", "2"), File("keep", "3")))
	if err := s.Prepare(ctx, "k", l.Chain, snapshot.Options{Labels: map[string]string{"whose": "c1"}, Durable: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(ctx, "k", l.Chain, snapshot.Options{}); !errors.Is(err, errs.Conflict) {
		t.Fatalf("prepare twice: %v", err)
	}
	m := mount(t, s, "k")
	other := mount(t, s, "k")
	for _, err := range []error{os.WriteFile(at(m, "d/new"), []byte("n"), 0o644), os.Remove(at(m, "b"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, other, "d/new"); got != "n" {
		t.Errorf("the other mount shows %q", got)
	}
	changes, err := s.Changes(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(changes); got != "[{/b 2} {/d 0} {/d/new 1}]" {
		t.Errorf("changes %s", got)
	}
	if n, err := s.Usage(ctx, "k"); err != nil || n < 1 {
		t.Errorf("usage %d %v", n, err)
	}
	var labels string
	if err := s.Walk(ctx, func(key string, l map[string]string) error { labels += key + l["whose"]; return nil }); err != nil || labels != "kc1" {
		t.Errorf("walk %q %v", labels, err)
	}
	m.Close()
	other.Close()
	for range 2 {
		if err := s.Remove(ctx, "k"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Mount(ctx, "k"); !errors.Is(err, errs.NotFound) {
		t.Errorf("mount: %v", err)
	}
	noLeftovers(t, s, root)
}

func commitAndReopen(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	l := Apply(t, s, "", Tar(t, Dir("d", 0o755), File("d/a", "1"), Dir("gone", 0o755), File("gone/x", "1"), File("b", "2")))
	if err := s.Prepare(ctx, "k", l.Chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	m := mount(t, s, "k")
	for _, err := range []error{
		os.WriteFile(at(m, "d/new"), []byte("n"), 0o600), os.Remove(at(m, "b")), os.RemoveAll(at(m, "gone")), os.Mkdir(at(m, "gone"), 0o700),
		os.Link(at(m, "d/new"), at(m, "hard")), os.Symlink("d/new", at(m, "soft")), os.Chmod(at(m, ""), 0o711),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	first, err := s.Commit(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Commit(ctx, "k")
	if err != nil || first != second {
		t.Fatalf("commit again: %+v %+v %v", first, second, err)
	}
	m.Close()
	var a, b bytes.Buffer
	if err := errors.Join(s.Diff(ctx, "k", &a), s.LayerTar(ctx, first.Chain, &b)); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Fatalf("diff and layer differ: %v", err)
	}
	s = open(t, root)
	v := view(t, s, first.Chain)
	for name, want := range map[string]string{"d/a": "1", "d/new": "n", "hard": "n", "soft": "n", "b": "-", "gone/x": "-"} {
		if got := read(t, v, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if st, err := os.Stat(at(v, "")); err != nil || st.Mode().Perm() != 0o711 {
		t.Errorf("root %v %v", st.Mode(), err)
	}
	v.Close()
	if m := mount(t, s, "k"); read(t, m, "d/new") != "n" {
		t.Error("the tree lost its file")
	}
}

func removeInUse(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	a := Apply(t, s, "", Tar(t, File("a", "1")))
	b := Apply(t, s, a.Chain, Tar(t, File("b", "1")))
	if err := s.Prepare(ctx, "k", b.Chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{false, true} {
		if again {
			s = open(t, root)
		}
		for _, chain := range []snapshot.ChainID{a.Chain, b.Chain} {
			if err := s.RemoveLayer(ctx, chain); !errors.Is(err, errs.Conflict) {
				t.Fatalf("%v", err)
			}
		}
	}
	if err := s.Remove(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	for _, chain := range []snapshot.ChainID{b.Chain, a.Chain} {
		if err := s.RemoveLayer(ctx, chain); err != nil {
			t.Fatal(err)
		}
	}
	noLeftovers(t, s, root)
}

func leftovers(t *testing.T, open Open) {
	root := t.TempDir()
	s := open(t, root)
	l := Apply(t, s, "", Tar(t, File("a", "1")))
	for _, dir := range []string{"new/zz/tree/x", "trash/zy/x", "trees/zx/upper"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Killed between making the record and filling it: nothing was promised. A record with half a text is another matter.
	for dir, text := range map[string]string{"trees/zw": "{", "trees/zv": ""} {
		if err := os.MkdirAll(filepath.Join(root, dir, "upper"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "tree.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, root)
	if all, _ := s.Layers(context.Background()); len(all) != 1 || all[0] != l {
		t.Errorf("layers %v", all)
	}
	noLeftovers(t, s, root)
	for dir, want := range map[string]bool{"trees/zx": false, "trees/zv": false, "lost/zv": false, "trees/zw": false, "lost/zw": true} {
		if _, err := os.Stat(filepath.Join(root, dir)); (err == nil) != want {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func rootAttributes(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	top := Dir(".", 0o751)
	top.Uid, top.Gid = 12, 34
	a := Apply(t, s, "", Tar(t, top, File("a", "1")))
	b := Apply(t, s, a.Chain, Tar(t, File("b", "1")))
	if err := s.Prepare(context.Background(), "k", b.Chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*snapshot.Mounted{view(t, s, b.Chain), mount(t, s, "k")} {
		var st unix.Stat_t
		if err := unix.Stat(at(m, ""), &st); err != nil || st.Mode&0o7777 != 0o751 || st.Uid != 12 || st.Gid != 34 {
			t.Errorf("root has mode %o owner %d:%d %v", st.Mode, st.Uid, st.Gid, err)
		}
	}
}

// A layer may name etc/x without etc/: the directory keeps its attributes, and one that is a link below is followed.
func impliedDirectories(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	a := Apply(t, s, "", Tar(t, Dir("etc", 0o700), Dir("usr/lib", 0o755), Link("lib", "usr/lib"), File("usr/lib/old", "1")))
	b := Apply(t, s, a.Chain, Tar(t, File("etc/x", "2"), File("lib/new", "2"), Hard("hard", "lib/old")))
	m := view(t, s, b.Chain)
	for name, want := range map[string]string{"etc/x": "2", "usr/lib/new": "2", "lib/old": "1", "lib/new": "2", "hard": "1"} {
		if got := read(t, m, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if st, err := os.Stat(at(m, "etc")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("etc %v %v", st.Mode(), err)
	}
}
