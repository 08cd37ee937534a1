package safefs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func tree(t testing.TB) (*os.File, string, string) {
	t.Helper()
	base := t.TempDir()
	dir, outside := filepath.Join(base, "root"), filepath.Join(base, "outside")
	for _, d := range []string{dir, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Root(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir, outside
}

func TestMkdirAllStaysInside(t *testing.T) {
	root, dir, outside := tree(t)
	os.Symlink(outside, dir+"/abs")
	os.Symlink("../../outside", dir+"/rel")
	os.Symlink("/run", dir+"/var")
	for _, name := range []string{"/abs/x", "rel/x", "../../y", "/var/lock/z", "a/b/../c"} {
		f, err := MkdirAll(root, name, 0o755)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.Close()
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Fatal("something was made outside")
	}
	for _, want := range []string{outside + "/x", "/outside/x", "/y", "/run/lock/z", "/a/c"} {
		if st, err := os.Stat(dir + want); err != nil || !st.IsDir() {
			t.Errorf("%s was not made inside: %v", want, err)
		}
	}
}

// A working directory is made for the container's user, and an image that has something else there is told so by name.
func TestMkdirAllOwned(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	root, dir, outside := tree(t)
	os.MkdirAll(dir+"/have/it", 0o755)
	os.Symlink("/have", dir+"/link")
	os.Symlink(outside, dir+"/nowhere")
	os.WriteFile(dir+"/have/file", nil, 0o644)
	for _, name := range []string{"/have/it/a/b", "/link/it/c", "/have"} {
		f, err := MkdirAllOwned(root, name, 0o750, 1234, 4321)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.Close()
	}
	for name, uid := range map[string]uint32{"/have": 0, "/have/it": 0, "/have/it/a": 1234, "/have/it/a/b": 1234, "/have/it/c": 1234} {
		var st unix.Stat_t
		if err := unix.Lstat(dir+name, &st); err != nil || st.Uid != uid || st.Gid != 0 && st.Gid != 4321 {
			t.Errorf("%s is of %d:%d, %v", name, st.Uid, st.Gid, err)
		}
	}
	for name, at := range map[string]string{"/have/file": "/have/file", "/have/file/x": "/have/file", "/nowhere": "/nowhere", "/nowhere/x": "/nowhere"} {
		_, err := MkdirAllOwned(root, name, 0o750, 0, 0)
		if want := "make directory " + name + ": " + at + " exists and is not a directory"; err == nil || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Error("something was made outside")
	}
}

func TestReopen(t *testing.T) {
	root, dir, _ := tree(t)
	os.WriteFile(dir+"/f", []byte("hello"), 0o644)
	os.Mkdir(dir+"/d", 0o755)
	f, err := Open(root, "f", Handle, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	os.Rename(dir+"/f", dir+"/d/g") // the same file, whatever it is called
	again, err := Reopen(f, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if b, err := io.ReadAll(again); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	d, err := Reopen(root, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if names, err := d.Readdirnames(-1); err != nil || len(names) != 1 {
		t.Error(names, err)
	}
	if _, err := Reopen(f, os.O_RDONLY|unix.O_DIRECTORY); err == nil {
		t.Error("a file was opened as a directory")
	}
}

func TestLinks(t *testing.T) {
	root, _, _ := tree(t)
	if err := Symlink("/proc/mounts", root, "mtab"); err != nil {
		t.Fatal(err)
	}
	if err := Symlink("elsewhere", root, "mtab"); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
	link, err := Open(root, "mtab", Handle|unix.O_NOFOLLOW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if target, err := Readlink(link); err != nil || target != "/proc/mounts" {
		t.Errorf("%q, %v", target, err)
	}
	if _, err := Readlink(root); err == nil {
		t.Error("a directory has a target")
	}
}

func TestLoopEnds(t *testing.T) {
	root, dir, _ := tree(t)
	os.Symlink("b", dir+"/a")
	os.Symlink("a", dir+"/b")
	if _, err := MkdirAll(root, "a/x", 0o755); err == nil {
		t.Fatal("a loop of links was accepted")
	}
}

// While one side swaps a directory for a link to the outside, the other makes directories through it: none may appear outside.
func TestRace(t *testing.T) {
	root, dir, outside := tree(t)
	os.Mkdir(dir+"/d", 0o755)
	os.Symlink(outside, dir+"/l")
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, dir+"/d", unix.AT_FDCWD, dir+"/l", unix.RENAME_EXCHANGE)
		}
	}()
	for range 3000 {
		if f, err := MkdirAll(root, "/d/one/two", 0o755); err == nil {
			f.Close()
		}
		if left, _ := os.ReadDir(outside); len(left) > 0 {
			t.Errorf("%s was made outside", left[0].Name())
			break
		}
		if d, err := Open(root, "/d", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err == nil {
			unix.Unlinkat(int(d.Fd()), "one/two", unix.AT_REMOVEDIR)
			unix.Unlinkat(int(d.Fd()), "one", unix.AT_REMOVEDIR)
			d.Close()
		}
	}
	stop.Store(true)
	<-done
}

func TestReadFile(t *testing.T) {
	root, dir, _ := tree(t)
	os.WriteFile(dir+"/f", []byte("hello"), 0o644)
	os.Symlink("/f", dir+"/l")
	unix.Mkfifo(dir+"/p", 0o644)
	if b, err := ReadFile(root, "l", 10); err != nil || string(b) != "hello" {
		t.Fatal(string(b), err)
	}
	for _, name := range []string{"p", "missing", "/"} {
		if _, err := ReadFile(root, name, 10); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	if _, err := ReadFile(root, "f", 4); err == nil || !strings.Contains(err.Error(), "more than 4") {
		t.Error(err)
	}
	// What could not be read was taken for the end of the file: an error of the disk made an empty /etc/passwd of a full one.
	proc, err := Root("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if b, err := ReadFile(proc, "mem", 10); err == nil {
		t.Errorf("an error became %q", b)
	}
	if b, err := ReadFile(proc, "status", 1<<16); err != nil || len(b) == 0 { // says that it has no bytes
		t.Errorf("%q, %v", b, err)
	}
}

func TestParent(t *testing.T) {
	root, dir, _ := tree(t)
	os.MkdirAll(dir+"/a/b", 0o755)
	d, base, err := Parent(root, "/a/b/c")
	if err != nil || base != "c" {
		t.Fatal(base, err)
	}
	d.Close()
	for _, bad := range []string{"/", "", "..", "/a/..", "/a/.", "/missing/x"} {
		if d, _, err := Parent(root, bad); err == nil {
			d.Close()
			t.Errorf("%q has a parent", bad)
		}
	}
}

func FuzzMkdirAll(f *testing.F) {
	f.Add("a/b", "../x")
	f.Add("/l/l/../..", "/")
	f.Fuzz(func(t *testing.T, name, link string) {
		root, dir, outside := tree(t)
		if len(name) > 200 || os.Symlink(link, dir+"/l") != nil {
			return
		}
		if d, err := MkdirAllOwned(root, name, 0o755, os.Getuid(), os.Getgid()); err == nil {
			d.Close()
		}
		if d, err := MkdirAll(root, name, 0o755); err == nil {
			d.Close()
		}
		up, _ := os.ReadDir(filepath.Dir(dir))
		if left, _ := os.ReadDir(outside); len(left) > 0 || len(up) != 2 {
			t.Fatalf("%q over %q left the root", name, link)
		}
	})
}
