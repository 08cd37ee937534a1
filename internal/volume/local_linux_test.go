package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/volume"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func mustCreate(t testing.TB, s *volume.LocalStore, name string, opts map[string]string) volume.Volume {
	t.Helper()
	vol, err := s.Create(context.Background(), volume.CreateOptions{Name: name, Options: opts})
	if err != nil {
		t.Fatal(err)
	}
	return vol
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func source(t testing.TB, dir string) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // as an image's root comes: a path and no more
	must(t, err)
	f := os.NewFile(uintptr(fd), dir)
	t.Cleanup(func() { must(t, f.Close()) })
	return f
}

func isMounted(t testing.TB, path string) bool {
	t.Helper()
	var st unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, path, 0, 0, &st))
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// One test for `--opt type=tmpfs --opt device=tmpfs --opt o=size=1m,uid=1000`: mounted for the first user, kept over a restart of the engine, gone after the last.
func TestTmpfsVolume(t *testing.T) {
	needRoot(t)
	ctx, root := context.Background(), t.TempDir()
	s := open(t, root, quiet())
	opts := map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000,noexec"}
	vol := mustCreate(t, s, "tmp", opts)
	if size, err := s.Usage(ctx, "tmp"); err != nil || size != -1 {
		t.Errorf("usage while not mounted: %d, %v", size, err)
	}
	for _, user := range []string{"c1", "c2", "c1"} {
		path, err := s.Mount(ctx, "tmp", user)
		must(t, err)
		if path != vol.Mountpoint || !isMounted(t, path) {
			t.Fatalf("not mounted at %s", path)
		}
	}
	var st unix.Stat_t
	must(t, unix.Stat(vol.Mountpoint, &st))
	var sfs unix.Statfs_t
	must(t, unix.Statfs(vol.Mountpoint, &sfs))
	if st.Uid != 1000 || int64(sfs.Blocks)*sfs.Bsize != 1<<20 || sfs.Flags&unix.ST_NOEXEC == 0 {
		t.Errorf("uid %d, size %d, flags %x", st.Uid, int64(sfs.Blocks)*sfs.Bsize, sfs.Flags)
	}
	must(t, s.Fill(ctx, "tmp", source(t, makeTree(t))))
	if _, err := os.Stat(filepath.Join(vol.Mountpoint, "file")); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(vol.Mountpoint, ".corten-fill")); err == nil {
		t.Error("the fill left its folder")
	}
	must(t, s.Unmount(ctx, "tmp", "c1"))

	again := open(t, root, quiet()) // the engine comes back while c2 runs
	if !isMounted(t, vol.Mountpoint) {
		t.Fatal("a restart unmounted a volume in use")
	}
	must(t, again.Unmount(ctx, "tmp", "c2"))
	if isMounted(t, vol.Mountpoint) {
		t.Error("still mounted after the last user")
	}
	must(t, again.Remove(ctx, "tmp", false))
}

func TestBindVolume(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s, there := open(t, t.TempDir(), quiet()), t.TempDir()
	must(t, os.WriteFile(filepath.Join(there, "kept"), nil, 0o600))
	vol := mustCreate(t, s, "bind", map[string]string{"type": "none", "device": there, "o": "bind,ro"})
	_, err := s.Mount(ctx, "bind", "c")
	must(t, err)
	if err := os.WriteFile(filepath.Join(vol.Mountpoint, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only volume: %v", err)
	}
	// A crash leaves the mount; removal must never reach through it.
	must(t, s.Remove(ctx, "bind", false))
	if _, err := os.Stat(filepath.Join(there, "kept")); err != nil {
		t.Fatalf("removing the volume removed what it was bound to: %v", err)
	}
	mustCreate(t, s, "lost", map[string]string{"type": "none", "device": filepath.Join(there, "missing"), "o": "bind"})
	if _, err := s.Mount(ctx, "lost", "c"); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "mount volume lost") {
		t.Errorf("bind of what is not there: %v", err)
	}
}

// Something that an administrator mounted inside a volume is not the volume's: removal stops there.
func TestRemoveStopsAtMounts(t *testing.T) {
	needRoot(t)
	s, there := open(t, t.TempDir(), quiet()), t.TempDir()
	must(t, os.WriteFile(filepath.Join(there, "kept"), nil, 0o600))
	vol := mustCreate(t, s, "vol", nil)
	at := filepath.Join(vol.Mountpoint, "at")
	must(t, os.Mkdir(at, 0o755))
	must(t, unix.Mount(there, at, "", unix.MS_BIND, ""))
	err := s.Remove(context.Background(), "vol", false)
	t.Log(err)
	if _, err := os.Stat(filepath.Join(there, "kept")); err != nil {
		t.Errorf("removal went through a mount: %v", err)
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], filepath.Dir(filepath.Dir(vol.Mountpoint))) {
			must(t, unix.Unmount(f[4], 0))
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	s := open(t, t.TempDir(), quiet())
	for _, c := range []struct {
		opts map[string]string
		text string
	}{
		{map[string]string{"foo": "bar"}, `invalid option: "foo"`},
		{map[string]string{"device": "tmpfs"}, `missing required option: "type"`},
		{map[string]string{"type": "tmpfs"}, `missing required option: "device"`},
		{map[string]string{"o": "size=1m"}, `missing required option: "device"`},
		{map[string]string{"size": "1m", "type": "tmpfs", "device": "tmpfs"}, "o=size=… of a tmpfs"},
		{map[string]string{"size": "1k"}, "is not between"},
		{map[string]string{"size": "much"}, "is no number of bytes"},
		{map[string]string{"type": "nfs", "device": "h:/x", "o": "bg,soft"}, "option of mount.nfs"},
		{map[string]string{"type": "ext4", "device": "img", "o": "loop"}, "absolute path of an image"},
		{map[string]string{"type": "none", "device": "rel", "o": "bind"}, "absolute path"},
		{map[string]string{"type": "none", "device": "/x", "o": "remount"}, "remount"},
	} {
		_, err := s.Create(context.Background(), volume.CreateOptions{Name: "vol", Options: c.opts})
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v: %v", c.opts, err)
		}
	}
}

// makeTree makes one of everything.
func makeTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(at("file"), []byte("content"), 0o600))
	must(t, os.Chown(at("file"), 12, 34))
	must(t, os.Chmod(at("file"), os.ModeSetuid|0o755))
	must(t, unix.Setxattr(at("file"), "user.note", []byte("hello"), 0))
	must(t, os.Link(at("file"), at("name2")))
	must(t, os.MkdirAll(at("a/b"), 0o751))
	must(t, os.Link(at("file"), at("a/b/name3")))
	must(t, os.Symlink("/etc/passwd", at("abs")))
	must(t, os.Symlink("../../..", at("up")))
	must(t, os.Lchown(at("up"), 5, 6))
	must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Chmod(at("null"), 0o666))
	must(t, unix.Mkfifo(at("pipe"), 0o600))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, os.Chdir(dir)) // the path may be too long for a socket's address
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "sock"}))
	must(t, os.Chdir("/"))
	must(t, unix.Close(fd))
	f, err := os.Create(at("sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), 5<<20)
	must(t, err)
	must(t, f.Truncate(64<<20))
	must(t, f.Close())
	old := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	for _, name := range []string{"file", "a/b", "a", "null"} {
		must(t, os.Chtimes(at(name), old, old))
	}
	return dir
}

func TestFillKeepsEverything(t *testing.T) {
	needRoot(t)
	s := open(t, t.TempDir(), quiet())
	vol, dir := mustCreate(t, s, "vol", nil), makeTree(t)
	must(t, s.Fill(context.Background(), "vol", source(t, dir)))
	for _, name := range []string{".", "file", "name2", "a", "a/b", "a/b/name3", "abs", "up", "null", "pipe", "sparse"} {
		var from, to unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, name), &from))
		if err := unix.Lstat(filepath.Join(vol.Mountpoint, name), &to); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		same := from.Mode == to.Mode && from.Uid == to.Uid && from.Gid == to.Gid && from.Rdev == to.Rdev && from.Mtim == to.Mtim
		if from.Mode&unix.S_IFMT != unix.S_IFDIR {
			same = same && from.Nlink == to.Nlink && from.Size == to.Size
		}
		if !same {
			t.Errorf("%s:\nfrom %+v\nto   %+v", name, from, to)
		}
		if name == "sparse" && to.Blocks*512 > 1<<20 {
			t.Errorf("the holes were filled: %d bytes on disk", to.Blocks*512)
		}
	}
	if _, err := os.Lstat(filepath.Join(vol.Mountpoint, "sock")); err == nil {
		t.Error("a socket was copied")
	}
	for name, link := range map[string]string{"abs": "/etc/passwd", "up": "../../.."} {
		if got, err := os.Readlink(filepath.Join(vol.Mountpoint, name)); err != nil || got != link {
			t.Errorf("%s leads to %q, %v", name, got, err)
		}
	}
	var note [16]byte
	if n, err := unix.Getxattr(filepath.Join(vol.Mountpoint, "name2"), "user.note", note[:]); err != nil || string(note[:n]) != "hello" {
		t.Errorf("extended attribute %q, %v", note[:n], err)
	}
	body, err := os.ReadFile(filepath.Join(vol.Mountpoint, "sparse"))
	must(t, err)
	if !bytes.Equal(body[5<<20:5<<20+6], []byte("middle")) || bytes.Count(body, []byte{0}) != 64<<20-6 {
		t.Error("the sparse file has other content")
	}
}

// A container's tree can be deeper than any path or our descriptors reach. It must go away all the same.
func TestRemoveDeepTree(t *testing.T) {
	s := open(t, t.TempDir(), quiet())
	vol := mustCreate(t, s, "deep", nil)
	dir, err := unix.Open(vol.Mountpoint, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	for range 5000 {
		must(t, unix.Mkdirat(dir, "d", 0o755))
		next, err := unix.Openat(dir, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(dir))
		dir = next
	}
	must(t, unix.Close(dir))
	if _, err := s.Usage(context.Background(), "deep"); err != nil {
		t.Error(err)
	}
	src := source(t, vol.Mountpoint)
	other := mustCreate(t, s, "other", nil)
	if err := s.Fill(context.Background(), "other", src); !errors.Is(err, errs.Invalid) {
		t.Errorf("fill from a hostile tree: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(other.Mountpoint)); err != nil || len(entries) != 1 {
		t.Errorf("the failed fill left %v, %v", entries, err)
	}
	must(t, s.Remove(context.Background(), "deep", false))
	left, err := os.ReadDir(filepath.Join(filepath.Dir(filepath.Dir(vol.Mountpoint)), ".trash"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// The story of each: the engine was killed at the worst moment, and comes back.
func TestRecovery(t *testing.T) {
	ctx, root := context.Background(), t.TempDir()
	s := open(t, root, quiet())
	for _, name := range []string{"norecord", "empty", "nofolder", "removed", "half", "moving"} {
		mustCreate(t, s, name, nil)
	}
	at := func(parts ...string) string { return filepath.Join(append([]string{root}, parts...)...) }
	must(t, os.WriteFile(at("norecord", "_data", "precious"), nil, 0o600))
	must(t, os.Remove(at(".records", "norecord.json")))
	must(t, os.Remove(at(".records", "empty.json")))
	must(t, os.RemoveAll(at("nofolder")))
	must(t, os.WriteFile(at("removed", "_data", "x"), nil, 0o600))
	must(t, os.Rename(at("removed"), at(".trash", "removed@1")))
	must(t, os.MkdirAll(at("half", "_fill", "part"), 0o700))
	must(t, os.MkdirAll(at("moving", "_filled", "rest"), 0o700))
	must(t, os.WriteFile(at("moving", "_filled", "mine"), []byte("image's"), 0o600))
	must(t, os.WriteFile(at("moving", "_data", "mine"), []byte("container's"), 0o600))

	var said bytes.Buffer
	again := open(t, root, slog.New(slog.NewTextHandler(&said, nil)))
	list, err := again.List(ctx)
	must(t, err)
	var names []string
	for _, vol := range list {
		names = append(names, vol.Name)
	}
	if got := strings.Join(names, " "); got != "half moving nofolder norecord" {
		t.Errorf("volumes after the crash: %s", got)
	}
	for _, name := range []string{"norecord", "empty", "nofolder", "removed"} {
		if !strings.Contains(said.String(), "volume="+name+"\n") && !strings.Contains(said.String(), "volume="+name) {
			t.Errorf("nothing was said of %s:\n%s", name, said.String())
		}
	}
	for path, there := range map[string]bool{
		at("norecord", "_data", "precious"): true, at("empty"): false, at("nofolder", "_data"): true, at("removed"): false, at(".trash", "removed@1"): false,
		at("half", "_fill"): false, at("moving", "_filled"): false, at("moving", "_data", "rest"): true,
	} {
		if _, err := os.Lstat(path); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
	if body, err := os.ReadFile(at("moving", "_data", "mine")); err != nil || string(body) != "container's" {
		t.Errorf("a container's file became %q, %v", body, err)
	}
}

const fillerEnv = "CORTEN_TEST_VOLUME_FILLER"

// TestFiller is no test: it is the process that TestKilledFill kills.
func TestFiller(t *testing.T) {
	root, src, ok := strings.Cut(os.Getenv(fillerEnv), ":")
	if !ok {
		t.Skip("run by TestKilledFill")
	}
	s := open(t, root, quiet())
	for i := 0; ; i++ {
		name := fmt.Sprintf("vol%d", i%3)
		mustCreate(t, s, name, nil)
		must(t, s.Fill(context.Background(), name, source(t, src)))
		must(t, s.Remove(context.Background(), fmt.Sprintf("vol%d", (i+1)%3), true))
	}
}

// Kill the engine at random moments while it makes, fills and removes volumes: every volume that is there is empty or whole.
func TestKilledFill(t *testing.T) {
	root, src := t.TempDir(), t.TempDir()
	const files = 200
	for i := range files {
		must(t, os.WriteFile(filepath.Join(src, fmt.Sprint(i)), bytes.Repeat([]byte{'x'}, i), 0o600))
	}
	ctx := context.Background()
	for range 15 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFiller$")
		cmd.Env = append(os.Environ(), fillerEnv+"="+root+":"+src)
		must(t, cmd.Start())
		time.Sleep(time.Duration(20+rand.IntN(80)) * time.Millisecond)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed
		s, err := volume.New(volume.Options{Root: root, Logger: quiet()})
		must(t, err)
		list, err := s.List(ctx)
		must(t, err)
		for _, vol := range list {
			entries, err := os.ReadDir(vol.Mountpoint)
			must(t, err)
			if len(entries) != 0 && len(entries) != files {
				t.Errorf("%s is half filled: %d files", vol.Name, len(entries))
			}
			must(t, s.Fill(ctx, vol.Name, source(t, src)))
			if entries, err = os.ReadDir(vol.Mountpoint); err != nil || len(entries) != files {
				t.Errorf("%s has %d files, %v", vol.Name, len(entries), err)
			}
		}
		must(t, s.Close())
	}
	for _, dir := range []string{".trash", ".records"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		must(t, err)
		for _, e := range entries {
			if dir == ".trash" || !strings.HasSuffix(e.Name(), ".json") {
				t.Errorf("left over: %s/%s", dir, e.Name())
			}
		}
	}
}

func BenchmarkCreateFillRemove(b *testing.B) {
	s := open(b, b.TempDir(), quiet())
	src := b.TempDir()
	must(b, os.WriteFile(filepath.Join(src, "f"), []byte("x"), 0o600))
	from := source(b, src)
	ctx := context.Background()
	for _, fill := range []bool{false, true} {
		b.Run(fmt.Sprintf("fill=%v", fill), func(b *testing.B) {
			for b.Loop() {
				mustCreate(b, s, "vol", nil)
				if fill {
					must(b, s.Fill(ctx, "vol", from))
				}
				must(b, s.Remove(ctx, "vol", false))
			}
		})
	}
}
