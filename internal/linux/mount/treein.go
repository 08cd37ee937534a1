package mount

import (
	"fmt"
	"os"

	"corten.dev/corten/internal/linux/ns"
	"golang.org/x/sys/unix"
)

// TreeIn clones the mount at path in another mount namespace, without what is mounted below it.
func TreeIn(namespace *os.File, path string) (root *os.File, err error) {
	ns.OnOwnThread(func() {
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			err = fmt.Errorf("unshare: %w", err)
			return
		}
		if err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
			err = fmt.Errorf("enter mount namespace: %w", err)
			return
		}
		root, err = Tree(path, false)
	})
	return root, err
}
