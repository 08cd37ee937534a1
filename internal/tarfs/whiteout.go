package tarfs

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// parent returns the open directory path, which is made when missing.
func (x *extractor) parent(path string) (*dir, error) {
	if d := x.dirs.find(path); d != nil {
		return d, nil
	}
	fd, real, err := openDir(x.dirs.root.fd, path)
	if err == nil {
		if real != path {
			if d := x.dirs.find(real); d != nil {
				unix.Close(fd)
				return d, nil
			}
		}
		d, err := newDir(fd, real)
		if err != nil {
			return nil, err
		}
		return d, x.dirs.add(d)
	}
	if err != unix.ENOENT && !(err == unix.ENOTDIR && x.opts.Whiteouts == Convert) {
		return nil, err
	}
	return x.implied(path)
}

// implied makes a directory that the archive uses without listing it. Over a Base it looks like the one below: a path through
// a link there goes where the link goes, and the attributes are those of the directory that it will hide.
func (x *extractor) implied(path string) (*dir, error) {
	at, base := split(path)
	up, err := x.parent(at)
	if err != nil {
		return nil, err
	}
	real := join(up.path, base)
	low := -1
	if x.opts.Whiteouts == Convert {
		var where string
		if low, where, err = x.baseLookup(real); err != nil {
			return nil, err
		}
		if low >= 0 {
			defer unix.Close(low)
			if where != real {
				return x.parent(where)
			}
		}
	}
	hidden := false
	err = unix.Mkdirat(up.fd, base, 0o755)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if serr := unix.Fstatat(up.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); serr != nil {
			return nil, serr
		}
		if !x.isWhiteout(&st) {
			return nil, unix.ENOTDIR
		}
		if err = unix.Unlinkat(up.fd, base, 0); err == nil {
			hidden, err = true, unix.Mkdirat(up.fd, base, 0o755)
		}
	}
	if err != nil {
		return nil, err
	}
	up.dirty = true
	x.mark(real)
	d, err := x.enter(up, base, real)
	if err != nil {
		return nil, err
	}
	if hidden {
		return d, x.setOpaque(d.fd)
	}
	if low >= 0 {
		return d, x.likeBase(d, low)
	}
	return d, x.impliedOwner(d)
}

// impliedOwner gives a directory nobody described the mode it should have whatever the process' umask is.
func (x *extractor) impliedOwner(d *dir) error {
	if o := x.opts.Owner; o != nil {
		if err := unix.Fchown(d.fd, o.UID, o.GID); err != nil {
			return err
		}
	}
	return unix.Fchmod(d.fd, 0o755)
}

func (x *extractor) likeBase(d *dir, low int) error {
	if err := copyAttributes(low, d.fd); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(low, &st); err != nil {
		return err
	}
	d.times, d.dirty = [2]unix.Timespec{st.Atim, st.Mtim}, true
	return nil
}

// baseLookup opens the directory path of the tree below and tells where it really is; -1 when there is none.
func (x *extractor) baseLookup(path string) (int, string, error) {
	if !x.asked {
		x.asked = true
		if x.opts.Base != nil {
			f, err := x.opts.Base()
			if err != nil {
				return -1, "", err
			}
			x.base = f
		}
	}
	if x.base == nil {
		return -1, "", nil
	}
	fd, real, err := openDir(int(x.base.Fd()), path)
	switch err {
	case nil:
		return fd, real, nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return -1, "", nil
	}
	return -1, "", &os.PathError{Op: "open", Path: path, Err: err}
}

func (x *extractor) baseDir(path string) (int, error) {
	fd, _, err := x.baseLookup(path)
	return fd, err
}

func (x *extractor) isWhiteout(st *unix.Stat_t) bool {
	return x.opts.Whiteouts == Convert && isWhiteout(st)
}

// isWhiteout tells overlayfs' mark for a deleted name.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// deletion handles a ".wh." name: it hides or removes what the layers below have there, never what this layer wrote.
func (x *extractor) deletion(at, base string) error {
	if base == whOpaque {
		parent, err := x.parent(at)
		if err != nil {
			return err
		}
		switch {
		case x.opts.Whiteouts == Convert && parent == x.dirs.root:
			return x.hideBase()
		case x.opts.Whiteouts == Convert:
			return x.setOpaque(parent.fd)
		}
		return x.clear(parent)
	}
	if strings.HasPrefix(base, whMeta) {
		return nil // bookkeeping of AUFS, nothing to do with the tree
	}
	name := strings.TrimPrefix(base, whPrefix)
	if name == "" || name == "." || name == ".." {
		return errs.New(errs.Invalid, "deletion of no name")
	}
	if x.opts.Whiteouts == Convert {
		parent, err := x.parent(at)
		if err != nil {
			return err
		}
		return x.hide(parent, name)
	}
	return x.remove(at, name)
}

// hideBase hides all that the tree below has at its top, name by name: overlayfs does not believe the root of a layer that it hides what is below.
func (x *extractor) hideBase() error {
	low, err := x.baseDir("")
	if err != nil || low < 0 {
		return err
	}
	f := os.NewFile(uintptr(low), "base")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := x.hide(x.dirs.root, name); err != nil {
			return err
		}
	}
	return nil
}

// hide makes overlayfs' mark for name.
func (x *extractor) hide(parent *dir, name string) error {
	parent.dirty = true
	err := unix.Mknodat(parent.fd, name, unix.S_IFCHR, 0)
	if err != unix.EEXIST {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	// This layer has something of that name. A file hides what is below by itself; a directory must be told to.
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return x.opaqueDir(join(parent.path, name))
	}
	return nil
}

// opaqueDir makes (or takes) the directory path and marks it as hiding everything below.
func (x *extractor) opaqueDir(path string) error {
	at, base := split(path)
	parent, err := x.parent(at)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(parent.fd, base, 0o755); err != nil && err != unix.EEXIST {
		return err
	}
	fd, err := unix.Openat(parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return x.setOpaque(fd)
}

func (x *extractor) setOpaque(fd int) error {
	return unix.Fsetxattr(fd, x.opts.opaque(), []byte("y"), 0)
}

// remove carries a deletion out in a tree that holds the layers below. Missing is fine.
func (x *extractor) remove(at, name string) error {
	fd, real, err := openDir(x.dirs.root.fd, at)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	unix.Close(fd)
	path := join(real, name)
	parent, err := x.parent(real)
	if err != nil {
		return err
	}
	if x.has(path) {
		// Made by this layer: only what else is in it goes.
		d, err := x.parent(path)
		if errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		if err != nil {
			return err
		}
		return x.clear(d)
	}
	own, err := unix.FcntlInt(uintptr(parent.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	parent.dirty = true
	if err := x.dirs.forget(); err != nil {
		return err
	}
	return removeAt(own, name)
}

// clear removes everything from a directory that this layer did not write.
func (x *extractor) clear(d *dir) error {
	d.dirty = true
	path := d.path
	own, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(own), path)
	defer f.Close()
	if err := x.dirs.forget(); err != nil {
		return err
	}
	if err := x.clearIn(f, path); err != nil {
		return err
	}
	return futimens(own, &d.times)
}

func (x *extractor) clearIn(f *os.File, path string) error {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		full := join(path, name)
		if !x.has(full) {
			if err := removeAt(int(f.Fd()), name); err != nil {
				return err
			}
			continue
		}
		fd, err := unix.Openat(int(f.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == unix.ENOTDIR || err == unix.ELOOP {
			continue
		}
		if err != nil {
			return err
		}
		sub := os.NewFile(uintptr(fd), full)
		err = x.clearIn(sub, full)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
