package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// inside keeps an open of one name where it belongs: no link is followed, no mount is crossed, nothing above is reached.
const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// maxDepth bounds how deep trees are followed, and with it the descriptors that a hostile tree can make us hold.
const maxDepth = 512

func retry(fn func() error) error {
	for {
		if err := fn(); err != unix.EINTR {
			return err
		}
	}
}

// openAt opens one name in a directory by descriptor.
func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW), Resolve: inside}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat2(int(dir.Fd()), name, &how)
		if err == unix.EAGAIN { // a rename raced with the look-up; it says nothing about the name
			err = unix.EINTR
		}
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
}

// openDir opens a directory by a path that the store trusts.
func openDir(at int, path string, flags int) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat(at, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW|flags, 0)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func statAt(dir *os.File, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		err = &os.PathError{Op: "stat", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return st, err
}

// each calls fn for every name in a directory, a thousand names at a time, so that a directory of a million does not fill the memory.
func each(dir *os.File, fn func(name string) error) error {
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if err := fn(name); err != nil {
				return err
			}
		}
		if err == io.EOF || err == nil && len(names) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// errStop ends a walk early.
var errStop = errors.New("stop")

func isEmpty(dir *os.File) (bool, error) {
	empty := true
	err := each(dir, func(name string) error {
		if name == inMountFill || name == inMountFilled {
			return nil
		}
		empty = false
		return errStop
	})
	if err == errStop {
		err = nil
	}
	if err == nil {
		_, err = dir.Seek(0, io.SeekStart)
	}
	return empty, err
}

// removeTree removes a tree whose parent the store trusts; one that is not there is no error. It does not follow links nor enter other mounts. A tree too
// deep for our descriptors is folded: what lies deep is moved up and removed from there.
func removeTree(path string) error {
	parent, err := openDir(unix.AT_FDCWD, filepath.Dir(path), 0)
	if err != nil {
		return err
	}
	defer parent.Close() //nolint:errcheck // a directory
	r := remover{top: parent}
	if err := r.remove(parent, filepath.Base(path), 0); err != nil {
		return err
	}
	for len(r.folded) > 0 {
		name := r.folded[len(r.folded)-1]
		r.folded = r.folded[:len(r.folded)-1]
		if err := r.remove(parent, name, 0); err != nil {
			return err
		}
	}
	return nil
}

type remover struct {
	top    *os.File
	folded []string
	serial int
}

func (r *remover) remove(dir *os.File, name string, depth int) error {
	err := unlinkAt(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	if err = unlinkAt(dir, name, unix.AT_REMOVEDIR); err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if depth >= maxDepth {
		r.serial++
		to := ".deep@" + strconv.Itoa(os.Getpid()) + "." + strconv.Itoa(r.serial)
		if err := unix.Renameat(int(dir.Fd()), name, int(r.top.Fd()), to); err != nil {
			return &os.PathError{Op: "rename", Path: filepath.Join(dir.Name(), name), Err: err}
		}
		r.folded = append(r.folded, to)
		return nil
	}
	sub, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.EXDEV) {
		return errs.New(errs.Conflict, "remove %s: something is mounted there; unmount it first", filepath.Join(dir.Name(), name))
	}
	if err != nil {
		return err
	}
	defer sub.Close() //nolint:errcheck // a directory
	for range 3 {     // removing while reading may skip names on some file systems
		if err := each(sub, func(n string) error { return r.remove(sub, n, depth+1) }); err != nil {
			return err
		}
		err = unlinkAt(dir, name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) {
			break
		}
		if _, serr := sub.Seek(0, io.SeekStart); serr != nil {
			return serr
		}
	}
	return err
}

func unlinkAt(dir *os.File, name string, flags int) error {
	err := retry(func() error { return unix.Unlinkat(int(dir.Fd()), name, flags) })
	if err != nil {
		err = &os.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return err
}

// treeSize adds up the sizes of files, each once. What lies deeper than maxDepth is not counted.
func treeSize(ctx context.Context, dir *os.File) (int64, error) {
	w := sizer{ctx: ctx, seen: make(map[inode]struct{})}
	err := w.walk(dir, 0)
	return w.total, err
}

type inode struct{ dev, ino uint64 }

type sizer struct {
	ctx   context.Context
	seen  map[inode]struct{} // files with several names
	total int64
}

func (w *sizer) walk(dir *os.File, depth int) error {
	return each(dir, func(name string) error {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		st, err := statAt(dir, name)
		if errors.Is(err, unix.ENOENT) {
			return nil // the volume is in use
		}
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if st.Nlink > 1 {
				id := inode{st.Dev, st.Ino}
				if _, ok := w.seen[id]; ok {
					return nil
				}
				w.seen[id] = struct{}{}
			}
			w.total += st.Size
			return nil
		}
		if depth >= maxDepth {
			return nil
		}
		sub, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil // gone, changed, or another file system
		}
		if err != nil {
			return err
		}
		err = w.walk(sub, depth+1)
		return errors.Join(err, sub.Close())
	})
}

// moveEntries moves all entries of one directory to another on the same file system. A name that is taken there keeps what it has.
func moveEntries(from, to *os.File) error {
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := retry(func() error {
			return unix.Renameat2(int(from.Fd()), name, int(to.Fd()), name, unix.RENAME_NOREPLACE)
		})
		if err == unix.EINVAL { // a file system without this flag (nfs): the directory was empty a moment ago
			if _, serr := statAt(to, name); errors.Is(serr, unix.ENOENT) {
				err = retry(func() error { return unix.Renameat(int(from.Fd()), name, int(to.Fd()), name) })
			} else {
				err = unix.EEXIST
			}
		}
		if err != nil && err != unix.EEXIST && err != unix.ENOENT {
			return fmt.Errorf("move %s into %s: %w", filepath.Join(from.Name(), name), to.Name(), err)
		}
	}
	return nil
}

// Own gives a directory or file and all below it, on the same file system, to somebody. Links are not followed. What belongs to them already is left alone, so that their
// set-id bits and file capabilities stay.
func Own(ctx context.Context, root *os.File, uid, gid uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: root.Name(), Err: err}
	}
	o := owner{ctx: ctx, uid: uid, gid: gid}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		dir, err := openDir(int(root.Fd()), ".", 0) // root may be a mere O_PATH
		if err != nil {
			return err
		}
		err = o.walk(dir, 0)
		if err = errors.Join(err, dir.Close()); err != nil {
			return err
		}
	}
	return o.give(int(root.Fd()), "", &st, root.Name())
}

type owner struct {
	ctx      context.Context
	uid, gid uint32
}

func (o *owner) give(dir int, name string, st *unix.Stat_t, called string) error {
	if st.Uid == o.uid && st.Gid == o.gid {
		return nil
	}
	err := unix.Fchownat(dir, name, int(o.uid), int(o.gid), unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	if err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "chown", Path: filepath.Join(called, name), Err: err}
	}
	return nil
}

func (o *owner) walk(dir *os.File, depth int) error {
	return each(dir, func(name string) error {
		if err := o.ctx.Err(); err != nil {
			return context.Cause(o.ctx)
		}
		st, err := statAt(dir, name)
		if errors.Is(err, unix.ENOENT) {
			return nil // others use it, too
		}
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if depth >= maxDepth {
				return errs.New(errs.Invalid, "%s: directories are nested more than %d deep", dir.Name(), maxDepth)
			}
			sub, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
			switch {
			case errors.Is(err, unix.EXDEV):
				return nil // another file system
			case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
				return nil // gone or changed
			case err != nil:
				return err
			}
			err = o.walk(sub, depth+1)
			if err = errors.Join(err, sub.Close()); err != nil {
				return err
			}
		}
		return o.give(int(dir.Fd()), name, &st, dir.Name())
	})
}
