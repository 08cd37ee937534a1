package ext4_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/ext4"
	"corten.dev/corten/internal/linux/loop"
)

func format(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := ext4.Format(f, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// What e2fsck has to say of any size: nothing but that there is no lost+found.
func TestCheckedByOthers(t *testing.T) {
	fsck, err := exec.LookPath("e2fsck")
	if err != nil {
		t.Skip("needs e2fsck")
	}
	for _, size := range []int64{ext4.MinSize, 5 << 20, 100 << 20, 127<<20 + 12345, 128 << 20, 129 << 20, 1 << 30, 10<<30 + 4096, 40 << 30} {
		name := format(t, size)
		out, _ := exec.Command(fsck, "-f", "-n", name).CombinedOutput()
		text := strings.ReplaceAll(string(out), "/lost+found not found.  Create? no\n", "")
		for _, bad := range []string{"? no", "rror", "orrupt", "WARNING"} {
			if strings.Contains(text, bad) && !strings.Contains(text, "e2fsck: aborted") {
				t.Errorf("%d bytes: %s", size, out)
				break
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil || st.Blocks*512 > 40<<20 {
			t.Errorf("%d bytes take %d on disk: %v", size, st.Blocks*512, err)
		}
		if length, err := ext4.Length(size); err != nil || length != st.Size {
			t.Errorf("length %d, %v; the file has %d", length, err, st.Size)
		}
	}
}

// The kernel mounts it, and it holds what was asked for and not much more.
func TestKernelMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const size = 20 << 20
	dev, err := loop.Attach(format(t, size), loop.Options{})
	if errors.Is(err, errs.Unavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	dir := t.TempDir()
	if err := unix.Mount(dev.Name(), dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("it is not empty: %v, %v", entries, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < size-(64<<10) || fs.Bavail*uint64(fs.Bsize) > size+(1<<20) {
		t.Errorf("%d bytes are free, %v", fs.Bavail*uint64(fs.Bsize), err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "sub", "full"))
	if err != nil {
		t.Fatal(err)
	}
	var wrote int
	for err == nil && wrote < 2*size {
		var n int
		n, err = f.Write(make([]byte, 64<<10))
		wrote += n
	}
	if cerr := f.Close(); cerr != nil {
		t.Error(cerr)
	}
	if !errors.Is(err, unix.ENOSPC) || wrote < size-(1<<20) {
		t.Errorf("%d bytes were written: %v", wrote, err)
	}
	if err := unix.Setxattr(dir, "user.a", []byte("b"), 0); err != nil {
		t.Error(err)
	}
}

func TestBounds(t *testing.T) {
	for _, size := range []int64{0, -1, ext4.MinSize - 1, ext4.MaxSize + 1} {
		if _, err := ext4.Length(size); !errors.Is(err, errs.Invalid) {
			t.Errorf("%d: %v", size, err)
		}
	}
	if _, err := ext4.Length(ext4.MaxSize); err != nil {
		t.Error(err)
	}
}
