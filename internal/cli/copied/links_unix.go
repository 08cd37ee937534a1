//go:build unix

package copied

import (
	"io/fs"
	"syscall"
)

// inode tells a file with several names from others; false for one that has one name.
func inode(st fs.FileInfo) (id [2]uint64, several bool) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || sys.Nlink < 2 {
		return id, false
	}
	return [2]uint64{uint64(sys.Dev), uint64(sys.Ino)}, true
}
