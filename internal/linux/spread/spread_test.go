package spread

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/loop"
	"corten.dev/corten/internal/linux/mount"
)

// format makes an ext4 and mounts it, attached nowhere.
func format(t *testing.T, features string) *os.File {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", features, image, "64m").CombinedOutput(); err != nil {
		t.Skipf("mke2fs: %v: %s", err, out)
	}
	dev, err := loop.Attach(image, loop.Options{})
	if err != nil {
		t.Skip(err)
	}
	defer dev.Close()
	fs, err := mount.FS("ext4", dev.Name(), mount.Options{})
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { fs.Close() })
	return fs
}

// On a disk without a journal, where 300 containers had come and gone, each file of the next one took 45 µs to make instead of 6: a start took 23 ms instead of 17.
func TestOnlyWithoutJournal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for features, want := range map[string]bool{"has_journal": false, "^has_journal": true} {
		t.Run(features, func(t *testing.T) {
			fs := format(t, features)
			dir := fmt.Sprintf("/proc/self/fd/%d/dir", fs.Fd())
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for range 2 { // an engine that starts again finds it so
				if err := Below(dir); err != nil {
					t.Fatal(err)
				}
			}
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
			if err != nil {
				t.Fatal(err)
			}
			if got := flags&topDir != 0; got != want {
				t.Errorf("folders are spread: %v", got)
			}
		})
	}
	if err := Below("/proc/self"); err != nil { // no ext4
		t.Error(err)
	}
	if err := Below("/nowhere"); !os.IsNotExist(err) {
		t.Error(err)
	}
}
