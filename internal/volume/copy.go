package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// copier copies a tree by descriptors. The source may be hostile and change under its hands; the destination is a new directory that nobody else knows.
type copier struct {
	ctx   context.Context
	root  *os.File         // the destination's root
	links map[inode]string // first name, below root, of source files that have several
	exact bool             // marks of overlayfs are content: the source is a volume, in which an engine of its own may keep its layers
	// flushed counts the files and directories that were flushed one by one. From flushOneByOne on the whole file system is flushed at the end instead.
	flushed int
}

// flushOneByOne is up to where flushing each file beats flushing the file system, which waits for whatever else is being written, such as a pull.
const flushOneByOne = 16

// copyTree copies what is below from to below to: owners, modes, times, hard and symbolic links, extended attributes, holes, devices and pipes.
// Sockets are left out, since they are nothing without their process. When it returns, the copy is on disk.
func copyTree(ctx context.Context, from, to *os.File) error {
	return (&copier{ctx: ctx, root: to, links: make(map[inode]string)}).tree(from, to)
}

// copyVolume is copyTree for what was a volume's already: what overlayfs marks in an image's tree are files like others here.
func copyVolume(ctx context.Context, from, to *os.File) error {
	return (&copier{ctx: ctx, root: to, links: make(map[inode]string), exact: true}).tree(from, to)
}

func (c *copier) tree(from, to *os.File) error {
	if err := c.dir(from, to, "", 0); err != nil {
		return err
	}
	if err := c.attributes(from, to); err != nil {
		return err
	}
	if err := c.flush(to); err != nil {
		return err
	}
	if c.flushed <= flushOneByOne {
		return nil
	}
	if err := retry(func() error { return unix.Syncfs(int(to.Fd())) }); err != nil {
		return fmt.Errorf("flush %s: %w", to.Name(), err)
	}
	return nil
}

// flush flushes one file or directory, as long as they are few.
func (c *copier) flush(f *os.File) error {
	if c.flushed++; c.flushed > flushOneByOne {
		return nil
	}
	err := f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // a file system that flushes as a whole only
		c.flushed, err = flushOneByOne+1, nil
	}
	return err
}

// dir copies the entries of a directory; at is its path below the root.
func (c *copier) dir(from, to *os.File, at string, depth int) error {
	if depth > maxDepth {
		return errs.New(errs.Invalid, "%s: directories are nested more than %d deep", from.Name(), maxDepth)
	}
	return each(from, func(name string) error {
		if err := c.ctx.Err(); err != nil {
			return context.Cause(c.ctx)
		}
		return c.entry(from, to, name, filepath.Join(at, name), depth)
	})
}

func (c *copier) entry(from, to *os.File, name, at string, depth int) error {
	st, err := statAt(from, name)
	if err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	id := inode{st.Dev, st.Ino}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := c.links[id]; ok {
			if err := unix.Linkat(int(c.root.Fd()), first, int(to.Fd()), name, 0); err != nil {
				return &os.LinkError{Op: "link", Old: first, New: at, Err: err}
			}
			return nil
		}
	}
	switch kind {
	case unix.S_IFDIR:
		return c.subdir(from, to, name, at, depth)
	case unix.S_IFREG:
		err = c.file(from, to, name)
	case unix.S_IFLNK:
		err = c.symlink(from, to, name)
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO:
		if kind == unix.S_IFCHR && st.Rdev == 0 && !c.exact {
			return nil // an overlay's whiteout: there is no such file
		}
		if err := unix.Mknodat(int(to.Fd()), name, st.Mode&(unix.S_IFMT|0o777), int(st.Rdev)); err != nil {
			return &os.PathError{Op: "make device", Path: at, Err: err}
		}
	default:
		return nil // a socket
	}
	if err != nil {
		return err
	}
	if st.Nlink > 1 {
		c.links[id] = at
	}
	if kind == unix.S_IFREG {
		return nil // done by descriptor
	}
	return c.specialAttributes(from, to, name, &st)
}

func (c *copier) subdir(from, to *os.File, name, at string, depth int) error {
	src, err := openAt(from, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // read only
	if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: at, Err: err}
	}
	dst, err := openAt(to, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	err = c.dir(src, dst, at, depth+1)
	if err == nil {
		err = c.attributes(src, dst) // after its entries, which change its times
	}
	if err == nil {
		err = c.flush(dst)
	}
	return errors.Join(err, dst.Close())
}

// file copies a regular file. It was one a moment ago: it is opened so that a pipe or device put in its place cannot hold or harm us, then looked at again.
func (c *copier) file(from, to *os.File, name string) error {
	src, err := openAt(from, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // read only
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: src.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errs.New(errs.Conflict, "copy %s: it changed while it was read", src.Name())
	}
	dst, err := openAt(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	err = copyContent(c.ctx, src, dst, st.Size)
	if err == nil {
		err = c.attributes(src, dst)
	}
	if err == nil {
		err = c.flush(dst)
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", src.Name(), err)
	}
	return nil
}

// copyContent shares the blocks where the file system can, else copies what is not a hole.
func copyContent(ctx context.Context, src, dst *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := unix.Ftruncate(int(dst.Fd()), size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil // nothing but a hole is left
		}
		end := size
		if err != nil {
			start = at // no support for holes
		} else if end, err = unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE); err != nil {
			end = size
		}
		if end = min(end, size); start >= end {
			return nil
		}
		if err := copyRange(ctx, src, dst, start, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// copyRange lets the kernel copy; where it cannot (two file systems on an old kernel), bytes go through us.
func copyRange(ctx context.Context, src, dst *os.File, start, end int64) error {
	in, out := start, start
	for in < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(min(end-in, 64<<20)), 0)
		switch {
		case err == unix.EINTR:
		case err == unix.EXDEV, err == unix.EINVAL, err == unix.ENOSYS, err == unix.EOPNOTSUPP, err == unix.EPERM, err == nil && n == 0:
			// No progress from a proc-like or foreign file system, or the file was cut short meanwhile: reading tells.
			_, err := io.Copy(io.NewOffsetWriter(dst, in), io.NewSectionReader(src, in, end-in))
			return err
		case err != nil:
			return err
		}
	}
	return nil
}

func (c *copier) symlink(from, to *os.File, name string) error {
	buf := make([]byte, unix.PathMax+1)
	n, err := unix.Readlinkat(int(from.Fd()), name, buf)
	if err != nil {
		return &os.PathError{Op: "read link", Path: filepath.Join(from.Name(), name), Err: err}
	}
	if err := unix.Symlinkat(string(buf[:n]), int(to.Fd()), name); err != nil {
		return &os.PathError{Op: "make link", Path: filepath.Join(to.Name(), name), Err: err}
	}
	return nil
}

// copyAttributes gives an open file or directory the owner, extended attributes, mode and times of another. The owner comes first: changing it drops the
// set-id bits and the file capabilities.
func copyAttributes(from, to *os.File) error { return (&copier{}).attributes(from, to) }

func (c *copier) attributes(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: from.Name(), Err: err}
	}
	return c.setAttributes(from, to, &st)
}

// setAttributes is copyAttributes with what was known of from earlier.
func setAttributes(from, to *os.File, st *unix.Stat_t) error {
	return (&copier{}).setAttributes(from, to, st)
}

func (c *copier) setAttributes(from, to *os.File, st *unix.Stat_t) error {
	fd := int(to.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return &os.PathError{Op: "chown", Path: to.Name(), Err: err}
	}
	if err := c.xattrs(procPath(from, ""), procPath(to, "")); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to.Name(), Err: err}
	}
	times := [2]unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, procPath(to, ""), times[:], 0); err != nil {
		return &os.PathError{Op: "set times of", Path: to.Name(), Err: err}
	}
	return nil
}

// specialAttributes does the same for what cannot be opened: links, devices, pipes.
func (c *copier) specialAttributes(from, to *os.File, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(int(to.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: filepath.Join(to.Name(), name), Err: err}
	}
	if err := c.xattrs(procPath(from, name), procPath(to, name)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		// Nothing but us can have put a link in this name's place: the destination is ours alone.
		if err := unix.Fchmodat(int(to.Fd()), name, st.Mode&0o7777, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: filepath.Join(to.Name(), name), Err: err}
		}
	}
	times := [2]unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(int(to.Fd()), name, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set times of", Path: filepath.Join(to.Name(), name), Err: err}
	}
	return nil
}

// procPath is a path to an open file, or to a name in an open directory, that calls without a descriptor form take.
func procPath(f *os.File, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	if name != "" {
		p += "/" + name
	}
	return p
}

// xattrs copies extended attributes. A path that is the descriptor itself is followed to it; a name in a directory is not followed. Overlay's own
// notes are left out. A destination that has no place for attributes of a kind goes without.
func (c *copier) xattrs(from, to string) error {
	list, get, set := unix.Llistxattr, unix.Lgetxattr, unix.Lsetxattr
	if strings.Count(from, "/") == 4 {
		list, get, set = unix.Listxattr, unix.Getxattr, unix.Setxattr
	}
	names, err := readXattr(func(buf []byte) (int, error) { return list(from, buf) })
	if err != nil || len(names) == 0 {
		return ignoreUnsupported("list attributes", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(names), "\x00"), "\x00") {
		if name == "security.selinux" || !c.exact && (strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")) {
			continue // of the place, not of the content
		}
		val, err := readXattr(func(buf []byte) (int, error) { return get(from, name, buf) })
		if err == unix.ENODATA {
			continue
		}
		if err == nil {
			err = set(to, name, val, 0)
		}
		if err := ignoreUnsupported("copy attribute "+name, err); err != nil {
			return err
		}
	}
	return nil
}

func ignoreUnsupported(what string, err error) error {
	if err == nil || err == unix.EOPNOTSUPP || err == unix.ENODATA {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// readXattr calls with a greater buffer until what is read fits.
func readXattr(call func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := call(buf)
		if err == unix.ERANGE && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
