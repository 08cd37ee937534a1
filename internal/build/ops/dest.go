package ops

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
)

// dest is a directory of the target. It is made when something goes into it: patterns may choose nothing of a directory.
type dest struct {
	c    *copier
	up   *dest // nil: it is the root
	name string
	real string
	// top: it is what the copy goes to, not a part of what is copied: when it is there it stays as it is.
	top bool
	// way: it is one that was made on the way to where the copy goes, with attributes of its own.
	way bool

	once    sync.Once
	opened  bool
	fd      int // for its own attributes
	put     int // for what goes into it
	err     error
	created bool         // it was made for this copy, and is empty
	inside  bool         // put is a directory of the tree's own changes
	st      *unix.Stat_t // of the source
	xattrs  []checksum.Xattr
}

// set says what it is a copy of.
func (d *dest) set(st *unix.Stat_t, xattrs []checksum.Xattr) { d.st, d.xattrs = st, xattrs }

// Where a directory is made for the copy, nothing of what is below the tree shows in it. What goes into it is put into the tree's own changes, then, not through the overlay: that
// costs a third. The directory itself is known to the overlay, which would not notice other attributes below it: it gets them there.
//
//	target (overlay)  app/ ── src/ (made here: fd) ── nothing is looked up in it while the copy goes on
//	own changes       app/ ── src/ (put) ── a/ (fd, put) ── files

// there is a directory that is open already.
func there(fd int, real string) *dest { return &dest{fd: fd, put: fd, real: real, opened: true} }

// open gives the descriptor for what goes into it, and makes the directory the first time.
func (d *dest) open() (int, error) {
	d.once.Do(func() {
		if d.opened {
			return
		}
		d.opened = true
		if d.fd, d.err = d.make(); d.err == nil {
			d.err = d.enter()
		}
		if d.err != nil {
			d.err = &os.PathError{Op: "copy", Path: "/" + d.real, Err: d.err}
		}
	})
	return d.put, d.err
}

// enter finds where to put what goes into it.
func (d *dest) enter() (err error) {
	d.put = d.fd
	if d.up != nil && d.up.inside {
		d.inside = true
		return nil
	}
	if !d.created || d.c.inside == nil {
		return nil
	}
	if d.put, err = pick.OpenReal(int(d.c.inside.Fd()), d.real, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		unix.Close(d.fd)
		return err
	}
	d.inside = true
	return nil
}

func (d *dest) make() (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if d.up == nil {
		return unix.Openat(d.c.w.root, ".", flags, 0)
	}
	up, err := d.up.open()
	if err != nil {
		return -1, err
	}
	err = unix.Mkdirat(up, d.name, 0o700)
	if err == unix.EEXIST {
		fd, err := unix.Openat(up, d.name, flags, 0)
		if err == nil {
			return fd, nil
		}
		if err != unix.ENOTDIR && err != unix.ELOOP {
			return -1, err
		}
		if !d.c.a.AlwaysReplaceExistingDestPaths {
			return -1, errors.New("cannot copy to non-directory: it exists and is not a directory")
		}
		if err := removeAt(up, d.name); err != nil {
			return -1, err
		}
		if err := unix.Mkdirat(up, d.name, 0o700); err != nil {
			return -1, err
		}
		d.created = true
		return unix.Openat(up, d.name, flags, 0)
	}
	if err != nil {
		return -1, err
	}
	d.created = true
	return unix.Openat(up, d.name, flags, 0)
}

// close gives the directory its attributes, now that nothing is put into it any more.
func (d *dest) close(good bool) error {
	if !d.opened || d.err != nil {
		return nil
	}
	var err error
	if good {
		err = d.finish()
	}
	if d.put != d.fd {
		if cerr := unix.Close(d.put); err == nil {
			err = cerr
		}
	}
	if cerr := unix.Close(d.fd); err == nil {
		err = cerr
	}
	if err != nil {
		err = &os.PathError{Op: "copy", Path: "/" + d.real, Err: err}
	}
	return err
}

func (d *dest) finish() error {
	if !d.top || d.created && !d.way {
		// A directory that was there takes the attributes of the one that is merged into it, but the copy's destination itself does not.
		return d.c.attributes(d.fd, d.st, d.xattrs)
	}
	return d.c.times(d.fd, "", d.st)
}
