package mount

import (
	"errors"
	"os"
	"strconv"
	"testing"

	"corten.dev/corten/internal/linux/ns"
	"golang.org/x/sys/unix"
)

// Kernels before 6.15 refuse to clone what is detached (EINVAL): without the detour a second step could not share a cache mount, and no mount could show a part of a tree.
func TestHolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	for name, h := range map[string]*Holder{"as the kernel is": {}, "as before 6.15": {slow: true}} {
		t.Run(name, func(t *testing.T) {
			fs, err := FS("tmpfs", "none", Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer fs.Close()
			if err := unix.Mkdirat(int(fs.Fd()), "part", 0o755); err != nil {
				t.Fatal(err)
			}
			part, err := os.Open("/proc/self/fd/" + itoa(fs.Fd()) + "/part")
			if err != nil {
				t.Fatal(err)
			}
			defer part.Close()
			first, release, err := h.Clone(fs, part)
			if err != nil {
				t.Fatal(err)
			}
			second, releaseSecond, err := h.Clone(fs, fs)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkdirat(int(first.Fd()), "inside", 0o755); err != nil {
				t.Fatal(err)
			}
			other, releaseOther, err := h.Clone(second, second) // of the same file system, but another mount
			if err != nil {
				t.Fatal(err)
			}
			other.Close()
			if err := releaseOther(); err != nil {
				t.Fatal(err)
			}
			second.Close()
			var releaseToo func() error
			if second, releaseToo, err = h.Clone(fs, fs); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(release(), releaseSecond()); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstatat(int(second.Fd()), "part/inside", &st, 0); err != nil {
				t.Error(err)
			}
			// A clone can be attached elsewhere, also when nobody holds what it came from.
			if err := releaseToo(); err != nil {
				t.Fatal(err)
			}
			if err := attachInOwn(second); err != nil {
				t.Error(err)
			}
			first.Close()
			second.Close()
			if n := len(h.held); n > 0 {
				t.Errorf("%d mounts are still held", n)
			}
		})
	}
}

func itoa(fd uintptr) string { return strconv.Itoa(int(fd)) }

// attachInOwn attaches a mount in a namespace of its own, and looks into it there.
func attachInOwn(tree *os.File) (err error) {
	ns.OnOwnThread(func() {
		var bare *os.File
		if bare, err = becomeBare(); err != nil {
			return
		}
		bare.Close()
		if err = unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return
		}
		if err = unix.Fchdir(int(tree.Fd())); err == nil {
			err = unix.Access("part/inside", unix.F_OK)
		}
	})
	return err
}
