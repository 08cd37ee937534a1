package mount

import (
	"errors"
	"fmt"
	"os"

	"corten.dev/corten/internal/linux/ns"
	"golang.org/x/sys/unix"
)

// BareNamespace makes a mount namespace that has nothing but an empty, read-only directory as its root, and returns a handle of it. Whoever enters it and unshares gets a mount
// namespace of its own that costs no copy of the host's mounts, and hides nothing of the host's that would have to be taken out of it again.
func BareNamespace() (*os.File, error) {
	var f *os.File
	var err error
	ns.OnOwnThread(func() { f, err = becomeBare() })
	if err != nil {
		return nil, fmt.Errorf("bare mount namespace: %w", err)
	}
	return f, nil
}

// becomeBare moves the calling thread into the namespace.
func becomeBare() (_ *os.File, err error) {
	root, err := FS("tmpfs", "none", Options{ReadOnly: true, Data: []string{"mode=555", "nr_inodes=1"}, Set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC})
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	f, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("make / private: %w", err)
	}
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("attach the root: %w", err)
	}
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return nil, err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return nil, fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("leave the host's tree: %w", err)
	}
	return f, nil
}
