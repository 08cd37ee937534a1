package tarfs

import (
	"context"
	"io"
	"os"
	"sort"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// CopyTree copies everything in src, which nobody changes meanwhile, into the empty directory dst: attributes, hard links, holes; by
// reference where the file system can share blocks.
func CopyTree(ctx context.Context, src, dst *os.File) error {
	c := &copier{ctx: ctx, links: map[inode]string{}, top: int(dst.Fd()), buf: make([]byte, 256<<10)}
	return c.dir(int(src.Fd()), int(dst.Fd()), "")
}

type inode struct{ dev, ino uint64 }

type copier struct {
	ctx   context.Context
	links map[inode]string // first copy of a file with several names
	top   int
	buf   []byte
}

func (c *copier) dir(src, dst int, path string) error {
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(src, dst, name, join(path, name)); err != nil {
			return err
		}
	}
	return copyAttributes(src, dst)
}

func (c *copier) entry(src, dst int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		from, to, err := openBoth(src, dst, name)
		if err != nil {
			return &os.PathError{Op: "copy", Path: path, Err: err}
		}
		defer unix.Close(from)
		defer unix.Close(to)
		return c.dir(from, to, path)
	}
	if st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := c.links[id]; ok {
			return unix.Linkat(c.top, first, dst, name, 0)
		}
		c.links[id] = path
	}
	if err := copyNode(src, name, dst, name, c.buf); err != nil {
		return &os.PathError{Op: "copy", Path: path, Err: err}
	}
	return nil
}

func openBoth(src, dst int, name string) (from, to int, err error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if err = unix.Mkdirat(dst, name, 0o700); err != nil && err != unix.EEXIST {
		return -1, -1, err
	}
	if from, err = unix.Openat(src, name, flags, 0); err != nil {
		return -1, -1, err
	}
	if to, err = unix.Openat(dst, name, flags, 0); err != nil {
		unix.Close(from)
	}
	return from, to, err
}

// readNames lists a directory by a descriptor of its own, sorted.
func readNames(fd int) ([]string, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}

// copyNode copies one thing that is no directory, with all its attributes.
func copyNode(src int, name string, dst int, as string, buf []byte) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return copyFile(src, name, dst, as, buf)
	case unix.S_IFDIR:
		return errs.New(errs.Invalid, "%s is a directory", name)
	case unix.S_IFLNK:
		target, err := readlinkat(src, name)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, dst, as); err != nil {
			return err
		}
	case unix.S_IFSOCK:
		return nil // a socket without its process is nothing
	default:
		if err := unix.Mknodat(dst, as, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(dst, as, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := fchmodatNofollow(dst, as, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(byName(src, name), byName(dst, as)); err != nil {
		return err
	}
	return unix.UtimesNanoAt(dst, as, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyFile(src int, name string, dst int, as string, buf []byte) error {
	fd, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(fd), name)
	defer from.Close()
	fd, err = unix.Openat(dst, as, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), as)
	err = copyContent(from, to, buf)
	if err == nil {
		err = copyAttributes(int(from.Fd()), int(to.Fd()))
	}
	return errs.Also(err, to.Close())
}

// copyContent shares the blocks if it can, else copies the parts that are not holes.
func copyContent(from, to *os.File, buf []byte) error {
	st, err := from.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	if err := to.Truncate(st.Size()); err != nil {
		return err
	}
	for off := int64(0); off < st.Size(); {
		data, err := unix.Seek(int(from.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			data = off // the file system knows no holes
		}
		hole, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			hole = st.Size()
		}
		// Plain reads and writes: copy_file_range gives wrong answers on some stacked file systems.
		_, err = io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(to, data)}, struct{ io.Reader }{io.NewSectionReader(from, data, hole-data)}, buf)
		if err != nil {
			return err
		}
		off = hole
	}
	return nil
}

// copyAttributes gives an open file or directory everything but the content of another.
func copyAttributes(src, dst int) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(byFd(src), byFd(dst)); err != nil {
		return err
	}
	return futimens(dst, &[2]unix.Timespec{st.Atim, st.Mtim})
}

func copyXattrs(src, dst attrRef) error {
	names, values, err := listXattrs(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := dst.set(name, []byte(values[name]))
		if err != nil && err != unix.ENOTSUP && err != unix.EPERM {
			return err
		}
	}
	return nil
}

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
