package step

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"corten.dev/corten/internal/safefs"
)

func openRoot(t *testing.T, dir string) *os.File {
	t.Helper()
	root, err := safefs.Root(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStubs(t *testing.T) {
	dir := t.TempDir()
	long := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	must(t, os.MkdirAll(dir+"/usr/lib", 0o755))
	must(t, os.Symlink("usr/lib", dir+"/lib"))
	must(t, os.Symlink("/nowhere/at/all", dir+"/dangling"))
	must(t, os.Symlink("loop", dir+"/loop"))
	must(t, os.WriteFile(dir+"/file", nil, 0o644))
	for _, d := range []string{dir + "/usr/lib", dir + "/usr", dir} {
		must(t, os.Chtimes(d, long, long))
	}
	s, err := makeStubs(openRoot(t, dir), []point{
		{"/lib/a/b", true, true}, {"/lib/a/c", false, true}, {"/usr/lib", true, true}, {"/dangling/x", true, true}, {"/file/x", true, true}, {"/used/deep", true, true}, {"/gone", true, true}, {"/loop/x", true, true},
	})
	must(t, err)
	for path, isDir := range map[string]bool{"/usr/lib/a/b": true, "/usr/lib/a/c": false, "/nowhere/at/all/x": true, "/used/deep": true, "/gone": true} {
		if st, err := os.Lstat(dir + path); err != nil || st.IsDir() != isDir {
			t.Errorf("%s: %v", path, err)
		}
	}
	must(t, os.WriteFile(dir+"/used/more", []byte("x"), 0o644))
	must(t, os.Rename(dir+"/gone", dir+"/else")) // the step's own now
	must(t, os.Mkdir(dir+"/gone", 0o700))
	must(t, os.Chtimes(dir, long, long))
	must(t, s.remove())
	var left []string
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		left = append(left, path[len(dir):])
		return err
	}))
	want := map[string]bool{"": true, "/dangling": true, "/else": true, "/file": true, "/gone": true, "/lib": true, "/loop": true, "/used": true, "/used/more": true, "/usr": true, "/usr/lib": true}
	for _, path := range left {
		if !want[path] {
			t.Errorf("%s is left", path)
		}
	}
	if len(left) != len(want) {
		t.Errorf("left: %q", left)
	}
	for _, d := range []string{dir + "/usr/lib", dir + "/usr", dir} {
		if st, err := os.Stat(d); err != nil || !st.ModTime().Equal(long) {
			t.Errorf("%s changed at %v (%v)", d, st.ModTime(), err)
		}
	}
}

// Without the wish for more, only the mount point itself goes.
func TestStubsKeepParents(t *testing.T) {
	dir := t.TempDir()
	s, err := makeStubs(openRoot(t, dir), []point{{"/a/b/c", true, false}})
	must(t, err)
	must(t, s.remove())
	if _, err := os.Stat(dir + "/a/b"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/a/b/c"); err == nil {
		t.Error("the mount point stayed")
	}
}
