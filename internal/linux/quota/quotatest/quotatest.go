// Package quotatest makes file systems with project quotas, for tests.
//
// It owns them and their mounts. It promises that none is left when the test ends. A host that cannot have one skips with a plain word.
package quotatest

import (
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/loop"
)

// Mount mounts a new ext4 with prjquota, of an image with the features that mke2fs gives it, and returns its folder. size is in mke2fs's words. Kernels without quota formats refuse the mount.
func Mount(t testing.TB, size string) string {
	t.Helper()
	mkfs, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Skip("needs mke2fs")
	}
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command(mkfs, "-q", "-t", "ext4", "-O", "quota,project", "-E", "quotatype=prjquota", image, size).CombinedOutput(); err != nil {
		t.Skipf("mke2fs: %v: %s", err, out)
	}
	dev, err := loop.Attach(image, loop.Options{})
	if err != nil {
		t.Skip(err)
	}
	defer dev.Close()
	top := t.TempDir()
	if err := unix.Mount(dev.Name(), top, "ext4", 0, "prjquota"); err != nil {
		t.Skipf("this kernel mounts no ext4 with project quotas (CONFIG_QFMT_V2): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(top, 0); err != nil {
			t.Error(err)
		}
	})
	return top
}
