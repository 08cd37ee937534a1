package tarfs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

const (
	resolveStrict = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	resolveInRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
)

// openIn opens path below root. The empty path is the root itself.
func openIn(root int, path string, flags uint64, resolve uint64) (int, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, path, &how)
		// EAGAIN: something was renamed while the kernel walked; EINTR: a signal.
		if (err == unix.EAGAIN || err == unix.EINTR) && try < 128 {
			continue
		}
		return fd, err
	}
}

// openDir opens a directory below root and returns the path it really has there, which differs when symlinks were on the way.
func openDir(root int, path string) (fd int, real string, err error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	fd, err = openIn(root, path, flags, resolveStrict)
	if err == nil {
		return fd, path, nil
	}
	// O_DIRECTORY|NO_SYMLINKS answers ELOOP on a symlink in the middle and at the end.
	if err != unix.ELOOP {
		return -1, "", err
	}
	fd, err = openIn(root, path, flags, resolveInRoot)
	if err != nil {
		return -1, "", err
	}
	real, err = realPath(root, fd)
	if err != nil {
		unix.Close(fd)
		return -1, "", err
	}
	return fd, real, nil
}

// realPath tells where fd is below root, by the names the kernel knows for both.
func realPath(root, fd int) (string, error) {
	top, err := os.Readlink(fdPath(root))
	if err != nil {
		return "", err
	}
	sub, err := os.Readlink(fdPath(fd))
	if err != nil {
		return "", err
	}
	if sub == top {
		return "", nil
	}
	rest, ok := strings.CutPrefix(sub, strings.TrimSuffix(top, "/")+"/")
	if !ok {
		return "", fmt.Errorf("directory moved while it was resolved: %w", unix.EXDEV)
	}
	return rest, nil
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// futimens sets both times of an open file.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// dir is an open directory of the tree that is being written. Its times are put back when it is left, because every
// entry made in it moves them.
type dir struct {
	fd    int
	path  string // real, below the root
	times [2]unix.Timespec
	dirty bool
}

func (d *dir) leave() error {
	var err error
	if d.dirty {
		err = futimens(d.fd, &d.times)
	}
	return errs.Also(err, unix.Close(d.fd))
}

// dirs keeps the directories used last open: archives go through a tree in order, so nearly every entry finds its parent here.
type dirs struct {
	root *dir
	open []*dir // newest last
}

const openDirs = 16

func (c *dirs) find(path string) *dir {
	if path == "" {
		return c.root
	}
	for i := len(c.open) - 1; i >= 0; i-- {
		if c.open[i].path == path {
			return c.open[i]
		}
	}
	return nil
}

func (c *dirs) add(d *dir) error {
	var err error
	if len(c.open) == openDirs {
		err = c.open[0].leave()
		copy(c.open, c.open[1:])
		c.open = c.open[:openDirs-1]
	}
	c.open = append(c.open, d)
	return err
}

// forget leaves every directory but the root; needed before something is removed or replaced.
func (c *dirs) forget() error {
	var err error
	for _, d := range c.open {
		err = errs.Also(err, d.leave())
	}
	c.open = c.open[:0]
	return err
}

// newDir wraps an open directory with the times it has now.
func newDir(fd int, path string) (*dir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &dir{fd: fd, path: path, times: [2]unix.Timespec{st.Atim, st.Mtim}}, nil
}

// removeAt removes name below parent, with everything in it, by descriptor.
func removeAt(parent int, name string) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	fd, oerr := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if oerr != nil {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			if err := removeAt(fd, n); err != nil {
				return err
			}
		}
		if len(names) == 0 {
			if rerr := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); rerr != nil && rerr != unix.ENOENT {
				return &os.PathError{Op: "rmdir", Path: name, Err: rerr}
			}
			return nil
		}
		if err != nil {
			return err
		}
		// Deleting while reading may skip entries: read again from the start.
		if _, err := f.Seek(0, 0); err != nil {
			return err
		}
	}
}
