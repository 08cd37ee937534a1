package copied

import (
	"archive/tar"
	"errors"
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

const capabilityAttr = "security.capability"

// capabilities are the file's, as the kernel keeps them; mostly none.
func capabilities(f *os.File) string {
	var val [64]byte // 24 at most so far
	n, err := unix.Fgetxattr(int(f.Fd()), capabilityAttr, val[:])
	if err != nil {
		return ""
	}
	return string(val[:n])
}

// setCapabilities gives them to a copy. Ordinary users may not, nor can every file system: then the copy goes without, as cp's would.
func setCapabilities(f *os.File, caps string) error {
	err := unix.Fsetxattr(int(f.Fd()), capabilityAttr, []byte(caps), 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
