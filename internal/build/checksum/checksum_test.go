package checksum

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum/pick"
)

func open(t testing.TB, dir string) *Sums {
	t.Helper()
	s, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func files(t testing.TB, dir string) *build.Files {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &build.Files{Root: f, Key: dir, Owner: &[2]uint32{}}
}

func sum(t testing.TB, s *Sums, f *build.Files, sel pick.Selection) digest.Digest {
	t.Helper()
	dgst, err := s.Files(context.Background(), f, sel)
	if err != nil {
		t.Fatalf("%+v: %v", sel, err)
	}
	return dgst
}

func write(t testing.TB, name, body string) {
	t.Helper()
	os.MkdirAll(filepath.Dir(name), 0o755)
	if err := os.WriteFile(name, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
}

// age makes everything below dir look as if it had been there for long: its change time cannot be set, so the clock of the test must pass.
func age() { time.Sleep(40 * time.Millisecond) }

func big(t testing.TB, n int) string {
	dir := t.TempDir()
	for i := range n {
		sub := fmt.Sprintf("%s/d%d/e%d", dir, i/1000, i/100%10)
		if i%100 == 0 {
			os.MkdirAll(sub, 0o755)
		}
		if err := os.WriteFile(fmt.Sprintf("%s/file%d.go", sub, i), []byte(fmt.Sprint("package p // ", i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	age()
	return dir
}

func BenchmarkFiles(b *testing.B) {
	dir := big(b, 50000)
	f := files(b, dir)
	all := pick.Selection{Path: "/", Contents: true}
	ignore := *f
	ignore.Exclude = []string{".git", "node_modules", "**/*.md", "Dockerfile*", "!keep.md"}
	state := b.TempDir()
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			s := open(b, b.TempDir())
			sum(b, s, f, all)
			s.Close()
		}
	})
	s := open(b, state)
	sum(b, s, f, all)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			sum(b, s, f, all)
		}
	})
	b.Run("unchanged-ignore", func(b *testing.B) {
		sum(b, s, &ignore, all)
		for b.Loop() {
			sum(b, s, &ignore, all)
		}
	})
	b.Run("after-start", func(b *testing.B) {
		s.Close()
		for b.Loop() {
			s := open(b, state)
			sum(b, s, f, all)
			s.Close()
		}
	})
	s = open(b, state)
	b.Run("one-changed", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			os.WriteFile(dir+"/d7/e3/file7300.go", []byte(fmt.Sprint("changed ", i)), 0o644)
			sum(b, s, f, all)
		}
	})
	b.Run("stat-only", func(b *testing.B) {
		for b.Loop() {
			for i := range 50000 {
				var st unix.Stat_t
				if err := unix.Lstat(fmt.Sprintf("%s/d%d/e%d/file%d.go", dir, i/1000, i/100%10, i), &st); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// What changes a digest, and what does not.
func TestCovers(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/d/a", "one")
	write(t, dir+"/d/b", "two")
	write(t, dir+"/other", "x")
	os.Symlink("a", dir+"/d/ln")
	s, f := open(t, t.TempDir()), files(t, dir)
	f.Owner = nil
	sel := pick.Selection{Path: "/d"}
	last := sum(t, s, f, sel)
	step := func(what string, changes bool, fn func() error) {
		t.Helper()
		if err := fn(); err != nil {
			t.Skipf("%s: %v", what, err)
		}
		now := sum(t, s, f, sel)
		if (now != last) != changes {
			t.Errorf("%s: changed %v, wanted %v", what, now != last, changes)
		}
		if fresh := sum(t, open(t, t.TempDir()), f, sel); fresh != now {
			t.Errorf("%s: the cache says %s, the disk %s", what, now, fresh)
		}
		last = now
	}
	step("nothing", false, func() error { return nil })
	step("times", false, func() error { return os.Chtimes(dir+"/d/a", time.Unix(1, 0), time.Unix(1, 0)) })
	step("content of equal size and time", true, func() error {
		write(t, dir+"/d/a", "eno")
		return os.Chtimes(dir+"/d/a", time.Unix(1, 0), time.Unix(1, 0))
	})
	step("mode", true, func() error { return os.Chmod(dir+"/d/a", 0o600) })
	step("mode of the directory", true, func() error { return os.Chmod(dir+"/d", 0o700) })
	step("link target", true, func() error { os.Remove(dir + "/d/ln"); return os.Symlink("b", dir+"/d/ln") })
	step("name", true, func() error { return os.Rename(dir+"/d/b", dir+"/d/c") })
	step("something beside it", false, func() error { write(t, dir+"/other", "y"); return nil })
	step("empty directory", true, func() error { return os.Mkdir(dir+"/d/e", 0o755) })
	step("fifo", true, func() error { return unix.Mkfifo(dir+"/d/p", 0o600) })
	step("socket", false, func() error { return unix.Mknod(dir+"/d/s", unix.S_IFSOCK|0o600, 0) })
	step("hard link in place of an equal file", false, func() error {
		write(t, dir+"/d/c", "eno")
		os.Chmod(dir+"/d/c", 0o600)
		last = sum(t, s, f, sel)
		os.Remove(dir + "/d/c")
		return os.Link(dir+"/d/a", dir+"/d/c")
	})
	step("file in place of a directory", true, func() error { os.Remove(dir + "/d/e"); write(t, dir+"/d/e", ""); return nil })
	step("directory in place of a file", true, func() error { os.Remove(dir + "/d/e"); return os.Mkdir(dir+"/d/e", 0o755) })
	step("xattr", true, func() error { return unix.Setxattr(dir+"/d/a", "user.x", []byte("1"), 0) })
	step("owner", true, func() error { return os.Chown(dir+"/d/a", 7, 8) })
	f.Owner = &[2]uint32{}
	last = sum(t, s, f, sel)
	step("owner of a context's file", false, func() error { return os.Chown(dir+"/d/a", 9, 9) })
}

// The cache never says another thing than the disk, whatever was done a moment before: a random walk, with what is cheapest to get wrong.
func TestNeverStale(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	rnd := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	s, f := open(t, state), files(t, dir)
	sels := []pick.Selection{
		{Path: "/"}, {Path: "/", Contents: true, Exclude: []string{"**/1", "!2/1"}}, {Path: "/2", Contents: true}, {Path: "/*/3", Wildcard: true, Follow: true},
		{Path: "/1", Follow: true}, {Path: "/", Include: []string{"*/2"}},
	}
	name := func() string {
		parts := []string{dir}
		for range 1 + rnd.IntN(3) {
			parts = append(parts, fmt.Sprint(rnd.IntN(4)))
		}
		return filepath.Join(parts...)
	}
	for i := range 600 {
		for range rnd.IntN(4) {
			p := name()
			switch rnd.IntN(8) {
			case 0, 1:
				os.MkdirAll(p, 0o755)
			case 2, 3:
				os.WriteFile(p, []byte(fmt.Sprint(rnd.IntN(3))), 0o644)
			case 4:
				os.Rename(p, name())
			case 5:
				os.RemoveAll(p)
			case 6:
				os.Symlink(fmt.Sprint("../", rnd.IntN(4)), p)
			case 7:
				os.Chmod(p, 0o755)
				os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0))
			}
		}
		if i%50 == 0 {
			age()
		}
		if i%70 == 0 {
			s.Close()
			s = open(t, state)
		}
		sel := sels[rnd.IntN(len(sels))]
		view := *f
		if rnd.IntN(2) == 0 {
			view.Exclude = []string{"3", "*/2"}
		}
		got, err := s.Files(context.Background(), &view, sel)
		fresh := open(t, t.TempDir())
		want, werr := fresh.Files(context.Background(), &view, sel)
		if got != want || (err == nil) != (werr == nil) {
			t.Fatalf("step %d, %+v: the cache says %s %v, the disk %s %v", i, sel, got, err, want, werr)
		}
		fresh.Close()
	}
}

// What is known outlives the engine, and what is damaged costs only time.
func TestKept(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	for i := range 100 {
		write(t, fmt.Sprintf("%s/%d/f", dir, i), fmt.Sprint(i))
	}
	age()
	s, f := open(t, state), files(t, dir)
	all := pick.Selection{Path: "/"}
	want := sum(t, s, f, all)
	s.Close()
	s = open(t, state)
	k := s.load(f.Key)
	if len(k.root.kids) != 100 || !k.root.kids[50].kids[0].settled || len(k.results) != 1 {
		t.Fatalf("%d names are known", len(k.root.kids))
	}
	data, err := os.ReadFile(s.path(f.Key))
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range [][]byte{nil, data[:100], append([]byte("x"), data...), bytes.Replace(data, []byte{'5', '0', 0}, []byte{'.', '.', 0}, 1)} {
		os.WriteFile(s.path(f.Key), damage, 0o600)
		s := open(t, state)
		if got := sum(t, s, f, all); got != want {
			t.Errorf("%s after damage, %s before", got, want)
		}
		s.Close()
	}
	var names []os.DirEntry
	if names, _ = os.ReadDir(state); len(names) != 2 {
		t.Errorf("%d files are left", len(names))
	}
}

// Nothing that a context holds blocks, leads out or goes round without end.
func TestHostile(t *testing.T) {
	base := t.TempDir()
	dir := base + "/context"
	write(t, base+"/secret", "outside")
	write(t, dir+"/f", "inside")
	os.Symlink("../secret", dir+"/rel")
	os.Symlink(base+"/secret", dir+"/abs")
	os.Symlink("loop", dir+"/loop")
	os.Symlink("b", dir+"/a")
	os.Symlink("a", dir+"/b")
	os.Symlink("/proc/self/root", dir+"/magic")
	os.Symlink(".", dir+"/self")
	unix.Mkfifo(dir+"/fifo", 0o644)
	deep := dir
	for range 60 {
		deep += "/dir"
	}
	os.MkdirAll(deep, 0o755)
	s, f := open(t, t.TempDir()), files(t, dir)
	done := make(chan struct{})
	go func() {
		defer close(done)
		sum(t, s, f, pick.Selection{Path: "/"})
		sum(t, s, f, pick.Selection{Path: "/fifo", Follow: true})
		sum(t, s, f, pick.Selection{Path: "/self/self/self/f", Follow: true})
		sum(t, s, f, pick.Selection{Path: "/*", Wildcard: true, Follow: true})
		sum(t, s, f, pick.Selection{Path: "/../../../f"})
		for _, p := range []string{"/rel", "/abs", "/loop", "/a", "/magic/etc", "/fifo/x", "/" + strings.Repeat("x", 300), "/" + strings.Repeat("x/", 3000), "/f\x00"} {
			if dgst, err := s.Files(context.Background(), f, pick.Selection{Path: p, Follow: true}); err == nil {
				t.Errorf("%q has the digest %s", p, dgst)
			}
		}
		for _, p := range []string{"[", "/[a-/x", "*/[", "\\"} {
			s.Files(context.Background(), f, pick.Selection{Path: p, Wildcard: true})
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it hangs")
	}
}

// Somebody swaps files, links and directories while a checksum is taken: nothing of outside is read, nothing hangs, nothing crashes.
func TestSwaps(t *testing.T) {
	base := t.TempDir()
	dir := base + "/context"
	write(t, dir+"/d/f", "inside")
	write(t, base+"/out/f", "outside")
	os.Symlink("../out", dir+"/l")
	unix.Mkfifo(dir+"/p", 0o644)
	s, f := open(t, t.TempDir()), files(t, dir)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	inner, err := os.Open(dir + "/d")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	swap := func(at int, a, b string) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					unix.Renameat2(at, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
				}
			}
		})
	}
	swap(unix.AT_FDCWD, dir+"/d", dir+"/l")
	swap(int(inner.Fd()), "f", dir+"/p")
	for i := range 1000 {
		for _, p := range []string{"/", "/d", "/d/f", "/l/f"} {
			_, err := s.Files(context.Background(), f, pick.Selection{Path: p, Follow: i%2 == 0})
			_ = err // whatever it is by now
		}
	}
	close(stop)
	wg.Wait()
	var found string
	k := s.load(f.Key)
	var walk func(n *node, at string)
	walk = func(n *node, at string) {
		if n.known && n.size == int64(len("outside")) && n.mode&unix.S_IFMT == unix.S_IFREG {
			found = at
		}
		for i := range n.kids {
			walk(&n.kids[i], at+"/"+n.kids[i].name)
		}
	}
	walk(&k.root, "")
	if found != "" {
		t.Errorf("%s is from outside", found)
	}
}

func FuzzDecode(f *testing.F) {
	k := &known{results: map[Sum]digest.Digest{{1}: digest.FromString("x")}}
	k.root = node{known: true, listed: true, kids: []node{{name: "a", known: true}, {name: "b", kids: []node{{name: "c"}}}}}
	f.Add(encode(k))
	f.Add([]byte(filesMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > filesHeader { // past the check sum, which finds most things
			binary.LittleEndian.PutUint32(data[len(filesMagic):], crc32.Checksum(data[len(filesMagic)+4:], castagnoli))
		}
		k, err := decode(data)
		if err != nil {
			return
		}
		again, err := decode(encode(k))
		if err != nil || len(again.root.kids) != len(k.root.kids) {
			t.Fatalf("%d kids became %d, %v", len(k.root.kids), len(again.root.kids), err)
		}
	})
}

func FuzzChains(f *testing.F) {
	f.Add(appendRecord(nil, Sum{1}, Sum{2}))
	f.Add(make([]byte, chainRecord*2+5))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &chainResults{known: map[Sum]Sum{}}
		if n := c.parse(data); n > len(data) || len(c.order)*chainRecord > n {
			t.Fatal(n, len(c.order))
		}
	})
}

func Example() {
	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)
	os.MkdirAll(dir+"/src", 0o755)
	os.WriteFile(dir+"/src/main.go", []byte("package main\n"), 0o644)
	sums, _ := New(Options{Dir: dir + "/checksums"})
	defer sums.Close()
	root, _ := os.Open(dir + "/src")
	defer root.Close()
	dgst, err := sums.Files(context.Background(), &build.Files{Root: root, Key: dir, Owner: &[2]uint32{}}, pick.Selection{Path: "/*.go", Wildcard: true})
	fmt.Println(dgst.Algorithm(), err)
	// Output: sha256 <nil>
}
