package serve

import (
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives a new version of a file the owner of the old one, so that a registry that runs as an ordinary user can still read it.
func keepOwner(f *os.File, old fs.FileInfo) error {
	if old == nil {
		return nil
	}
	if st, ok := old.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return f.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}
