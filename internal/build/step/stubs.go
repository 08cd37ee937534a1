package step

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/safefs"
)

// point is a mount point to be.
type point struct {
	path    string // absolute, clean
	dir     bool
	parents bool // directories around it that had to be made go with it
}

// stub is a file or directory that was made to be mounted over.
type stub struct {
	parent *os.File
	name   string
	self   *os.File // keeps its inode from being somebody else's
	keep   bool     // a directory around one; it stays
}

// stubs are all of a step, in the order in which they were made.
type stubs struct{ list []stub }

// makeStubs makes what is missing of the mount points. What cannot be made is left to the executor, which will say why.
func makeStubs(root *os.File, points []point) (_ *stubs, err error) {
	s := &stubs{}
	for _, p := range points {
		if err := s.make(root, p); err != nil {
			return s, fmt.Errorf("mount point %s: %w", p.path, err)
		}
	}
	return s, nil
}

// maxLinks bounds the links on the way to a mount point, as the kernel does.
const maxLinks = 40

// make makes one mount point with all directories around it that are missing. Links are followed, also those that lead to what is missing.
func (s *stubs) make(root *os.File, p point) error {
	name := p.path
	for range maxLinks {
		next, err := s.walk(root, name, p)
		if err != nil || next == "" {
			return err
		}
		name = next
	}
	return nil // the executor finds the same loop
}

// walk goes down the path as far as it exists, and makes the rest. Where a link to what is missing is in the way, it gives the path behind it.
func (s *stubs) walk(root *os.File, name string, p point) (behind string, err error) {
	parts := strings.Split(strings.Trim(name, "/"), "/")
	dir, err := safefs.Open(root, "/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer func() { dir.Close() }()
	for i, part := range parts {
		at, last := "/"+strings.Join(parts[:i+1], "/"), i == len(parts)-1
		there, err := safefs.Open(root, at, safefs.Handle, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return "", nil // what the executor finds as well
		}
		if err != nil {
			if there, err = makeStub(dir, part, p.dir || !last); errors.Is(err, unix.EEXIST) {
				return linkAt(dir, at, parts[i+1:])
			}
			if err != nil {
				return "", err
			}
			if err := s.add(dir, part, there, !last && !p.parents); err != nil {
				return "", errors.Join(err, there.Close())
			}
		} else {
			defer there.Close()
		}
		if last {
			return "", nil
		}
		next, err := safefs.Reopen(there, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			if errors.Is(err, unix.ENOTDIR) {
				return "", nil
			}
			return "", err
		}
		dir.Close()
		dir = next
	}
	return "", nil
}

// linkAt gives the path that a link in dir and the rest behind it lead to; "" when it is none.
func linkAt(dir *os.File, at string, rest []string) (string, error) {
	fd, err := unix.Openat(int(dir.Fd()), path.Base(at), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	link := os.NewFile(uintptr(fd), at)
	defer link.Close()
	target, err := safefs.Readlink(link)
	if err != nil {
		return "", nil //nolint:nilerr // not a link
	}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(at), target)
	}
	return path.Join(append([]string{"/", target}, rest...)...), nil
}

// add remembers what was made.
func (s *stubs) add(dir *os.File, name string, self *os.File, keep bool) error {
	parent, err := safefs.Reopen(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		s.list = append(s.list, stub{parent: parent, name: name, self: self, keep: keep})
	}
	return err
}

// makeStub makes one and gives it open. The directory around looks as if nothing had happened.
func makeStub(dir *os.File, name string, isDir bool) (f *os.File, err error) {
	at := int(dir.Fd())
	err = keepTimes(dir, func() error {
		if isDir {
			return unix.Mkdirat(at, name, 0o755)
		}
		fd, err := unix.Openat(at, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// keepTimes puts the times of a directory back after fn changed it.
func keepTimes(dir *os.File, fn func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// remove takes them away again, the last first: each only if it is still the one that was made, where it was made, and empty.
func (s *stubs) remove() (err error) {
	for _, st := range slices.Backward(s.list) {
		if !st.keep {
			err = errors.Join(err, st.remove())
		}
		err = errors.Join(err, st.parent.Close(), st.self.Close())
	}
	s.list = nil
	return err
}

func (st stub) remove() error {
	var made, now unix.Stat_t
	at := int(st.parent.Fd())
	if err := unix.Fstat(int(st.self.Fd()), &made); err != nil {
		return err
	}
	err := unix.Fstatat(at, st.name, &now, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT || err == nil && (now.Ino != made.Ino || now.Dev != made.Dev) {
		return nil // the step moved it, or put something else there
	}
	if err != nil {
		return fmt.Errorf("mount point %s: %w", st.name, err)
	}
	flags := 0
	if now.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	} else if now.Size != 0 {
		return nil
	}
	err = keepTimes(st.parent, func() error { return unix.Unlinkat(at, st.name, flags) })
	if err == unix.ENOTEMPTY || err == unix.EEXIST {
		return nil // it is of use now
	}
	return err
}
