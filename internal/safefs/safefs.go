// Package safefs opens paths that cannot leave a root directory, whatever links, dots and races they contain, and files of procfs that are really procfs.
//
// It owns nothing. It promises that every lookup is made by the kernel below a directory held open (openat2, RESOLVE_IN_ROOT), that what is missing is made one single name at a
// time in a directory that was reached that way, and that results are descriptors, so that nobody can swap a path between the check and the use. Linux 5.6 is the floor.
package safefs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// tries bounds how often a lookup is repeated when somebody renames directories meanwhile.
const tries = 1000

func openat2(dir int, name string, how *unix.OpenHow) (int, error) {
	how.Flags |= unix.O_CLOEXEC
	for range tries {
		fd, err := unix.Openat2(dir, name, how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// Handle opens what is there as a mere handle (O_PATH): nothing can be read through it, no device or fifo is touched. It is a flag for [Open].
const Handle = unix.O_PATH

// Root opens a directory as a root for the other functions.
func Root(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// Open opens name below root as if root were "/": absolute links start there and ".." stops there. Magic links of procfs are refused.
func Open(root *os.File, name string, flags int, mode os.FileMode) (*os.File, error) {
	how := &unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(mode.Perm())
	}
	fd, err := openat2(int(root.Fd()), inRoot(name), how)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// inRoot is name as openat2 takes it.
func inRoot(name string) string {
	if name == "" {
		return "/"
	}
	return name
}

// ReadFile reads a whole regular file of at most limit bytes below root. It does not block on a fifo that stands there instead.
func ReadFile(root *os.File, name string, limit int64) ([]byte, error) {
	f, err := Open(root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errs.New(errs.Invalid, "read %s: not a regular file", name)
	}
	body, err := io.ReadAll(io.LimitReader(f, limit+1)) // its size may be another by now, and some file systems tell none
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(body)) > limit {
		return nil, errs.New(errs.Invalid, "read %s: it has more than %d bytes", name, limit)
	}
	return body, nil
}

// maxLinks bounds the links that MkdirAll follows, as the kernel does.
const maxLinks = 40

// MkdirAll makes the directory name below root with all that is missing, and returns it open (O_PATH). A link that leads nowhere is followed: what it names is made, below root.
func MkdirAll(root *os.File, name string, mode os.FileMode) (*os.File, error) {
	return maker{root, mode, -1, -1, true}.all(name)
}

// MkdirAllOwned is MkdirAll for somebody: what is made belongs to uid and gid. A link that leads nowhere is in the way, as a file is: it is not for us to decide who gets what.
func MkdirAllOwned(root *os.File, name string, mode os.FileMode, uid, gid int) (*os.File, error) {
	return maker{root, mode, uid, gid, false}.all(name)
}

type maker struct {
	root     *os.File
	mode     os.FileMode
	uid, gid int  // -1 is whoever makes it
	dangling bool // links that lead nowhere are followed
}

func (m maker) all(name string) (*os.File, error) {
	if f, err := Open(m.root, name, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
		return f, nil
	}
	done := "/"
	todo := split(name)
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		if part == ".." {
			done = path.Dir(done)
			continue
		}
		target, err := m.step(done, part)
		if err != nil {
			return nil, fmt.Errorf("make directory %s: %w", name, err)
		}
		if target == "" {
			done = path.Join(done, part)
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("make directory %s: %w", name, unix.ELOOP)
		}
		if path.IsAbs(target) {
			done = "/"
		}
		todo = append(split(target), todo...)
	}
	return Open(m.root, done, unix.O_PATH|unix.O_DIRECTORY, 0)
}

func split(name string) (parts []string) {
	for _, p := range strings.Split(name, "/") {
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	return parts
}

// step makes one directory, or returns the target of the link that stands in its place.
func (m maker) step(parent, part string) (target string, err error) {
	dir, err := Open(m.root, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	err = unix.Mkdirat(int(dir.Fd()), part, uint32(m.mode.Perm()))
	if err == nil {
		if m.uid < 0 && m.gid < 0 {
			return "", nil
		}
		return "", unix.Fchownat(int(dir.Fd()), part, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != unix.EEXIST {
		return "", err
	}
	target, err = readlink(dir, part)
	if err != nil && err != unix.EINVAL { // EINVAL: not a link
		return "", err
	}
	if target != "" && m.dangling {
		return target, nil
	}
	at := path.Join(parent, part)
	there, err := Open(m.root, at, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) {
		return "", fmt.Errorf("%s exists and is not a directory", at)
	}
	if err != nil {
		return "", err
	}
	there.Close()
	return target, nil
}

func readlink(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Readlink reads the target of a link that is open itself ([Handle] with O_NOFOLLOW).
func Readlink(link *os.File) (string, error) { return readlink(link, "") }

// Reopen gives a descriptor with the given flags of what another one names, which may be a mere [Handle].
func Reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(f.Fd()), ".", flags|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR {
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Symlink makes the link name in a directory held open; name is one single name.
func Symlink(target string, dir *os.File, name string) error {
	return unix.Symlinkat(target, int(dir.Fd()), name)
}

// Parent opens the directory that name is in, below root, for calls that take a directory and a single name. What is missing is an error.
func Parent(root *os.File, name string) (dir *os.File, base string, err error) {
	clean := path.Join("/", name)
	if clean == "/" {
		return nil, "", errs.New(errs.Invalid, "%q names the root itself", name)
	}
	// ".." behind a link must be looked up, not computed: only the last component is taken off, and it must be a real name.
	trimmed := strings.TrimRight(name, "/")
	base = path.Base(trimmed)
	if base == "." || base == ".." {
		return nil, "", errs.New(errs.Invalid, "%q ends in a dot", name)
	}
	dir, err = Open(root, trimmed[:len(trimmed)-len(base)], unix.O_PATH|unix.O_DIRECTORY, 0)
	return dir, base, err
}
