package pick

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/tonistiigi/fsutil"
	"golang.org/x/sys/unix"
)

func root(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// seen lists what a view shows, directories that only lead to something included.
func seen(t testing.TB, dir string, view View) []string {
	t.Helper()
	tree, err := New(root(t, dir), view)
	if err != nil {
		t.Fatal(err)
	}
	ms, err := tree.Matches(Selection{Path: "/"})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	var walk func(fd int, at string, c Cursor) bool
	walk = func(fd int, at string, c Cursor) bool {
		names, err := Names(fd)
		if err != nil {
			t.Fatal(err)
		}
		any := false
		for _, name := range names {
			var st unix.Stat_t
			unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			next, deeper := c.Step(name, isDir)
			in := next.Included
			if isDir && deeper {
				sub, _ := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
				in = walk(sub, join(at, name), next) || in
				unix.Close(sub)
			}
			if in {
				all = append(all, join(at, name))
				any = true
			}
		}
		return any
	}
	walk(tree.Root(), "", ms[0].At)
	ms[0].Close()
	sort.Strings(all)
	return all
}

// What a view hides is what BuildKit's own filter hides, for random trees and patterns.
func TestViewAsFsutil(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	words := []string{"a", "b", "c.go", "d.md", "e"}
	globs := []string{"a", "b", "*.go", "**", "*", "a/*", "**/e", "e/**", "?", "[ab]", "a/b", "**/*.md", "b/**/a", "c.go", "a/b/c.go", "ln", "ln/a", "e/*.md"}
	for i := range 300 {
		dir := t.TempDir()
		for range 12 {
			p := dir
			for range 1 + rnd.IntN(3) {
				p = filepath.Join(p, words[rnd.IntN(len(words))])
			}
			os.MkdirAll(filepath.Dir(p), 0o755)
			os.WriteFile(p, nil, 0o644)
		}
		os.Symlink(words[rnd.IntN(len(words))], dir+"/ln")
		list := func(exceptions bool) (out []string) {
			for range rnd.IntN(4) {
				g := globs[rnd.IntN(len(globs))]
				if exceptions && rnd.IntN(3) == 0 {
					g = "!" + g
				}
				out = append(out, g)
			}
			return out
		}
		view := View{Include: list(true), Exclude: list(true)}
		if rnd.IntN(3) == 0 {
			view.Follow = list(false)
		}
		var want []string
		err := fsutil.Walk(context.Background(), dir, &fsutil.FilterOpt{IncludePatterns: view.Include, ExcludePatterns: view.Exclude, FollowPaths: view.Follow}, func(p string, _ fs.FileInfo, err error) error {
			want = append(want, p)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		sort.Strings(want)
		if got := seen(t, dir, view); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%d: %+v shows\n%v, fsutil\n%v", i, view, got, want)
		}
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(dir+"/a/b", 0o755)
	os.WriteFile(dir+"/a/f", nil, 0o644)
	os.Symlink("/a", dir+"/abs")
	os.Symlink("../../../a/b/..", dir+"/a/up")
	os.Symlink("none/x", dir+"/dangling")
	os.Symlink("/abs/b", dir+"/two")
	fd := int(root(t, dir).Fd())
	for _, c := range []struct{ name, real, fresh string }{
		{"", "", ""}, {"/", "", ""}, {"a/b", "a/b", "a/b"}, {"abs/b", "a/b", "a/b"}, {"a/up/f", "a/f", "a/f"}, {"two", "a/b", "a/b"}, {"two/../f", "a/f", "a/f"}, {"../../a", "a", "a"},
		{"none/y", "!", "none/y"}, {"dangling", "!", "none/x"}, {"dangling/z", "!", "none/x/z"}, {"none/../a", "!", "a"}, {"a/f/x", "!", "!"}, {"a/b/../../abs/f", "a/f", "a/f"},
	} {
		real, err := Resolve(fd, c.name, true)
		if err != nil {
			real = "!"
		}
		fresh, err := ResolveNew(fd, c.name, true)
		if err != nil {
			fresh = "!"
		}
		if real != c.real || fresh != c.fresh {
			t.Errorf("%q is %q, new %q", c.name, real, fresh)
		}
	}
	if real, err := Resolve(fd, "abs", false); real != "abs" || err != nil {
		t.Errorf("abs itself: %q, %v", real, err)
	}
}

// Whatever path and patterns are asked for, nothing outside of the tree is found.
func FuzzMatches(f *testing.F) {
	f.Add("/a*/../x", "../..", "!a")
	f.Add("l/[ab]/?", "/../out", "**/b")
	f.Fuzz(func(t *testing.T, name, link, pattern string) {
		base := t.TempDir()
		dir := base + "/root"
		os.MkdirAll(dir+"/a/b", 0o755)
		os.WriteFile(base+"/secret", nil, 0o644)
		os.WriteFile(dir+"/a/x", nil, 0o644)
		if strings.ContainsRune(link, 0) || os.Symlink(link, dir+"/l") != nil {
			return
		}
		var out unix.Stat_t
		unix.Stat(base+"/secret", &out)
		for _, view := range []View{{}, {Exclude: []string{pattern}}, {Include: []string{pattern}, Follow: []string{name}}} {
			tree, err := New(root(t, dir), view)
			if err != nil {
				continue
			}
			for _, wild := range []bool{false, true} {
				ms, err := tree.Matches(Selection{Path: name, Wildcard: wild, Follow: wild, Exclude: []string{pattern}})
				if err != nil {
					continue
				}
				for _, m := range ms {
					if m.Stat.Ino == out.Ino || strings.Contains("/"+m.Real+"/", "/../") {
						t.Fatalf("%q finds %q", name, m.Real)
					}
					m.Close()
				}
			}
		}
	})
}
