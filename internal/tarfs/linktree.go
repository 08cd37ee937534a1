package tarfs

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// LinkTree makes the empty directory dst equal to src, which nobody changes: directories of its own with the same attributes, overlayfs' marks included, and
// everything else by hard links. A file that has as many links as its file system allows is copied.
func LinkTree(ctx context.Context, src, dst *os.File) error {
	l := &linker{copier{ctx: ctx, links: map[inode]string{}, top: int(dst.Fd()), buf: make([]byte, 64<<10)}}
	return l.tree(int(src.Fd()), int(dst.Fd()), "")
}

type linker struct{ copier }

func (l *linker) tree(src, dst int, path string) error {
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		if err := l.node(src, dst, name, join(path, name)); err != nil {
			return err
		}
	}
	for _, mark := range []string{TrustedOpaque, UserOpaque} {
		var val [16]byte
		if n, err := unix.Fgetxattr(src, mark, val[:]); err == nil {
			if err := unix.Fsetxattr(dst, mark, val[:n], 0); err != nil {
				return &os.PathError{Op: "set " + mark, Path: path, Err: err}
			}
		}
	}
	return copyAttributes(src, dst)
}

func (l *linker) node(src, dst int, name, path string) error {
	err := unix.Linkat(src, name, dst, name, 0)
	switch err {
	case nil:
		return nil
	case unix.EPERM: // a directory
		from, to, err := openBoth(src, dst, name)
		if err != nil {
			return &os.PathError{Op: "link", Path: path, Err: err}
		}
		defer unix.Close(from)
		defer unix.Close(to)
		return l.tree(from, to, path)
	case unix.EMLINK:
		return l.entry(src, dst, name, path)
	}
	return &os.PathError{Op: "link", Path: path, Err: err}
}
