//go:build unix

package credentials

import (
	"os"
	"syscall"
)

// keepOwner gives the new file the owner of the old one: `sudo corten login` with the person's own HOME must not take the file from them. It does nothing where
// that is not allowed.
func keepOwner(tmp, path string) {
	st, err := os.Stat(path)
	if err != nil {
		return
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		_ = os.Chown(tmp, int(sys.Uid), int(sys.Gid))
	}
}
