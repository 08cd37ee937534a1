package copied

import (
	"archive/tar"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// node makes the pipe or device of an archive below root, through a descriptor of its folder. A device takes the right to make one.
func node(root *os.Root, name string, h *tar.Header, perm fs.FileMode) error {
	dir, err := root.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	mode := uint32(perm.Perm())
	switch h.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	default:
		mode |= unix.S_IFBLK
	}
	dev := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	if err := unix.Mknodat(int(dir.Fd()), filepath.Base(name), mode, dev); err != nil {
		return err
	}
	return unix.Fchmodat(int(dir.Fd()), filepath.Base(name), mode&0o777, 0) // whatever the umask says
}

// linkTime sets the time of a symbolic link below root, not of what it leads to.
func linkTime(root *os.Root, name string, at time.Time) error {
	dir, err := root.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	ts := unix.NsecToTimespec(at.UnixNano())
	return unix.UtimesNanoAt(int(dir.Fd()), filepath.Base(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
