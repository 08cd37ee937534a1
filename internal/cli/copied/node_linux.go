package copied

import (
	"archive/tar"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// node makes a pipe or a device, through a descriptor of its folder.
func (x *extractor) node(name string, h *tar.Header, perm fs.FileMode) error {
	dir, err := x.root.Open(filepath.Dir(name))
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
	return x.own(name, h)
}
