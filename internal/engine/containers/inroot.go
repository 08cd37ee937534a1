package containers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Everything in this file looks at a container's tree through a descriptor of its root: the kernel resolves links and ".." inside it (RESOLVE_IN_ROOT), so that no
// content of an image or container leads to the host.

// openIn opens a path inside root. The last part is followed when it is a link, unless O_NOFOLLOW is given.
func openIn(root *os.File, name string, flags int, mode uint32) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path.Join("/", name), &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR): // a rename raced with the resolution
			continue
		}
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

// readIn reads a file inside root, up to a bound: what an image contains is not to fill the engine's memory.
func readIn(root *os.File, name string) ([]byte, error) {
	f, err := openIn(root, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is not a regular file", name))
	}
	return io.ReadAll(io.LimitReader(f, 4<<20))
}

// mkdirIn makes a directory and its missing parents inside root, owned by owner, and returns it.
func mkdirIn(root *os.File, name string, mode uint32, uid, gid int) (*os.File, error) {
	const dirFlags = unix.O_PATH | unix.O_DIRECTORY
	if dir, err := openIn(root, name, dirFlags, 0); err == nil {
		return dir, nil
	}
	dir, err := openIn(root, "/", dirFlags, 0)
	if err != nil {
		return nil, err
	}
	at := "/"
	for _, part := range strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/") {
		at = path.Join(at, part)
		next, err := openIn(root, at, dirFlags, 0)
		if errors.Is(err, unix.ENOENT) {
			err = unix.Mkdirat(int(dir.Fd()), part, mode)
			if err == nil {
				err = unix.Fchownat(int(dir.Fd()), part, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
			} else if errors.Is(err, unix.EEXIST) {
				err = nil
			}
			if err == nil {
				next, err = openIn(root, at, dirFlags, 0)
			}
		}
		dir.Close()
		if err != nil {
			if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) { // ENOENT now: a link that leads to nothing
				return nil, fmt.Errorf("make directory %s: %s exists and is not a directory", name, at)
			}
			return nil, fmt.Errorf("make directory %s: %w", name, err)
		}
		dir = next
	}
	return dir, nil
}

// reopen gives a usable descriptor of what an O_PATH descriptor names.
func reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(f.Fd()), ".", flags|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) {
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
