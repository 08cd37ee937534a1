package ops

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/errs"
)

// errGone: what was to be copied vanished.
var errGone = errors.New("vanished while it was copied")

// describe looks at an open file or directory.
func (c *copier) describe(fd int) (*checksum.Entry, *unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, err
	}
	e := checksum.EntryOf(&st, c.files)
	var err error
	e.Xattrs, err = checksum.XattrSource{Fd: fd}.Read()
	return e, &st, err
}

// ids are the owner that a copy gets.
func (c *copier) ids(st *unix.Stat_t) (uid, gid int) {
	switch {
	case c.own != nil:
		return c.own.uid, c.own.gid
	case c.files != nil:
		return int(c.files[0]), int(c.files[1])
	}
	return int(st.Uid), int(st.Gid)
}

func (c *copier) perm(st *unix.Stat_t) uint32 {
	if c.mode != nil {
		return c.mode.apply(st.Mode)
	}
	return st.Mode & 0o7777
}

// attributes gives an open file or directory owner, xattrs, mode and times, in this order: each step may clear what a later one sets.
func (c *copier) attributes(fd int, st *unix.Stat_t, xattrs []checksum.Xattr) error {
	uid, gid := c.ids(st)
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return ownerError(uid, gid, err)
	}
	for _, x := range xattrs {
		if err := tolerate(unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0)); err != nil {
			return fmt.Errorf("xattr %s: %w", x.Name, err)
		}
	}
	if err := unix.Fchmod(fd, c.perm(st)); err != nil {
		return err
	}
	return c.times(fd, "", st)
}

// tolerate lets an xattr go that this file system or user may not have.
func tolerate(err error) error {
	if err == unix.ENOTSUP || err == unix.EPERM || err == unix.EACCES {
		return nil
	}
	return err
}

func ownerError(uid, gid int, err error) error {
	if err == unix.EINVAL {
		return errs.New(errs.Invalid, "owner %d:%d has no number in this user namespace (give the user larger ranges in /etc/subuid and /etc/subgid): %w", uid, gid, err)
	}
	return err
}

func (c *copier) times(fd int, name string, st *unix.Stat_t) error {
	if c.time != nil {
		return setTime(fd, name, c.time)
	}
	return setTimes(fd, name, st.Atim, st.Mtim)
}

// node copies what is no directory from src/name to d/as. What stands there is replaced, unless it is a directory.
func (c *copier) node(ctx context.Context, src int, name string, st *unix.Stat_t, d *dest, as string) (sum checksum.Sum, ok bool, err error) {
	dst, err := d.open()
	if err != nil {
		return sum, false, err
	}
	fail := func(err error) error {
		if errors.Is(err, errGone) || errors.Is(err, ctx.Err()) && ctx.Err() != nil {
			return err
		}
		return &os.PathError{Op: "copy", Path: path.Join("/", d.real, as), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		sum, err = c.regular(ctx, src, name, d, as)
	} else {
		sum, err = c.special(src, name, st, dst, as)
	}
	if err != nil {
		return sum, false, fail(err)
	}
	return sum, true, nil
}

// free makes way for a copy.
func (c *copier) free(dst int, as string) error {
	err := unix.Unlinkat(dst, as, 0)
	if err == unix.EISDIR || err == unix.EPERM {
		if !c.a.AlwaysReplaceExistingDestPaths {
			return errors.New("cannot replace to directory with file")
		}
		return removeAt(dst, as)
	}
	return err
}

// create makes something new at a name, after making way for it.
func (c *copier) create(dst int, as string, fn func() error) error {
	err := fn()
	if err != unix.EEXIST {
		return err
	}
	if err := c.free(dst, as); err != nil {
		return err
	}
	return fn()
}

// special copies a link, device or fifo.
func (c *copier) special(src int, name string, st *unix.Stat_t, dst int, as string) (sum checksum.Sum, err error) {
	e := checksum.EntryOf(st, c.files)
	make := func() error { return unix.Mknodat(dst, as, st.Mode&^0o7777|0o600, int(st.Rdev)) }
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		buf := [unix.PathMax]byte{}
		n, err := unix.Readlinkat(src, name, buf[:])
		if err != nil {
			return sum, gone(err)
		}
		e.Target = string(buf[:n])
		make = func() error { return unix.Symlinkat(e.Target, dst, as) }
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return sum, errs.New(errs.Invalid, "a character device 0:0 cannot be in a layer: it stands for a deletion there")
		}
	case unix.S_IFBLK, unix.S_IFIFO:
	default:
		return sum, errs.New(errs.Invalid, "files of type %o cannot be copied", st.Mode&unix.S_IFMT)
	}
	if e.Xattrs, err = (checksum.XattrSource{Path: checksum.ProcPath(src, name)}).Read(); err != nil {
		return sum, gone(err)
	}
	if err := c.create(dst, as, make); err != nil {
		return sum, err
	}
	uid, gid := c.ids(st)
	if err := unix.Fchownat(dst, as, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return sum, ownerError(uid, gid, err)
	}
	for _, x := range e.Xattrs {
		if err := tolerate(unix.Lsetxattr(checksum.ProcPath(dst, as), x.Name, []byte(x.Value), 0)); err != nil {
			return sum, err
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		// It was made a moment ago in a tree that is nobody else's, and it is no link.
		if err := unix.Fchmodat(dst, as, c.perm(st), 0); err != nil {
			return sum, err
		}
	}
	return e.Sum(), c.times(dst, as, st)
}

func gone(err error) error {
	if err == unix.ENOENT {
		return errGone
	}
	return err
}

// regular copies a file, or makes a link to the copy of another of its names.
func (c *copier) regular(ctx context.Context, src int, name string, d *dest, as string) (sum checksum.Sum, err error) {
	from, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return sum, gone(err)
	}
	defer unix.Close(from)
	e, st, err := c.describe(from)
	if err != nil {
		return sum, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return sum, errs.New(errs.Unavailable, "it was replaced by something that is no file while it was read")
	}
	if st.Nlink < 2 {
		return c.content(ctx, from, e, st, d.put, as)
	}
	id := inode{uint64(st.Dev), st.Ino}
	c.mu.Lock()
	first := c.links[id]
	if first == nil {
		mine := &firstCopy{done: make(chan struct{}), real: path.Join(d.real, as)}
		c.links[id] = mine
		c.mu.Unlock()
		defer close(mine.done)
		mine.sum, err = c.content(ctx, from, e, st, d.put, as)
		mine.ok = err == nil
		return mine.sum, err
	}
	c.mu.Unlock()
	<-first.done // by somebody who is at work on just that file
	if first.ok && c.link(first.real, d, as) == nil {
		return first.sum, nil
	}
	return c.content(ctx, from, e, st, d.put, as)
}

// link makes one more name for a copy. When that is not possible (replaced meanwhile, too many names) the caller copies again.
func (c *copier) link(real string, d *dest, as string) error {
	root := c.w.root
	if d.inside { // what was copied is a part of the tree's own changes, wherever it was put
		root = int(c.inside.Fd())
	}
	dir, base, err := parentIn(root, real)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return c.create(d.put, as, func() error { return unix.Linkat(dir, base, d.put, as, 0) })
}

const (
	// small files are read and written in one go.
	small = 128 << 10
	// noHoles: a file with fewer bytes in blocks than this less than its size has holes worth keeping.
	holes = 64 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, small); return &b }}

// content makes a copy of an open file.
func (c *copier) content(ctx context.Context, from int, e *checksum.Entry, st *unix.Stat_t, dst int, as string) (sum checksum.Sum, err error) {
	to := -1
	err = c.create(dst, as, func() (err error) {
		to, err = unix.Openat(dst, as, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return sum, err
	}
	defer func() {
		if cerr := unix.Close(to); err == nil {
			err = cerr
		}
	}()
	if err := c.bytes(ctx, from, to, e, st); err != nil {
		return sum, err
	}
	if c.digests {
		sum = e.Sum()
	}
	return sum, c.attributes(to, st, e.Xattrs)
}

// bytes copies what is in a file, and notes its size and digest when asked for.
func (c *copier) bytes(ctx context.Context, from, to int, e *checksum.Entry, st *unix.Stat_t) error {
	if st.Size <= small {
		whole, err := c.short(from, to, e)
		if whole || err != nil {
			return err
		}
	}
	if err := c.long(ctx, from, to, st); err != nil {
		return err
	}
	if !c.digests {
		return nil
	}
	// What was copied is what counts, and nobody changes the copy.
	var err error
	e.Size, e.Content, err = checksum.ReadSum(ctx, to)
	return err
}

// short copies a small file; false when it is not small any more.
func (c *copier) short(from, to int, e *checksum.Entry) (bool, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := unix.Pread(from, *buf, 0)
	if err != nil || n == len(*buf) {
		return false, err
	}
	for done := 0; done < n; {
		m, err := unix.Pwrite(to, (*buf)[done:n], int64(done))
		if err != nil {
			return false, err
		}
		done += m
	}
	e.Size = int64(n)
	if c.digests {
		e.Content = sha256.Sum256((*buf)[:n])
	}
	return true, nil
}

// long copies a large file: by sharing its blocks, else what is not a hole within the kernel.
func (c *copier) long(ctx context.Context, from, to int, st *unix.Stat_t) error {
	if unix.IoctlFileClone(to, from) == nil {
		return nil
	}
	if st.Blocks*512+holes >= st.Size {
		_, err := copyRange(ctx, from, to, 0, -1)
		return err
	}
	size := st.Size
	if err := unix.Ftruncate(to, size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		data, err := unix.Seek(from, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			data = off // the file system knows no holes
		}
		hole, err := unix.Seek(from, data, unix.SEEK_HOLE)
		if err != nil || hole > size {
			hole = size
		}
		if hole <= data {
			return nil // it was cut meanwhile
		}
		if _, err := copyRange(ctx, from, to, data, hole-data); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

// copyRange copies n bytes at off, or all up to the end when n is -1.
func copyRange(ctx context.Context, from, to int, off, n int64) (done int64, err error) {
	const most = 16 << 20 // so that it can be cancelled
	for n < 0 || done < n {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		want := int64(most)
		if n >= 0 {
			want = min(want, n-done)
		}
		a, b := off+done, off+done
		got, err := unix.CopyFileRange(from, &a, to, &b, int(want), 0)
		if done == 0 && (err != nil || got == 0) {
			// Not between these file systems, or a file system that says nothing: by hand.
			return readWrite(ctx, from, to, off, n)
		}
		if err != nil {
			return done, err
		}
		if got == 0 {
			return done, nil
		}
		done += int64(got)
	}
	return done, nil
}

func readWrite(ctx context.Context, from, to int, off, n int64) (done int64, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for n < 0 || done < n {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		piece := *buf
		if n >= 0 {
			piece = piece[:min(int64(len(piece)), n-done)]
		}
		got, err := unix.Pread(from, piece, off+done)
		if err != nil || got == 0 {
			return done, err
		}
		for at := 0; at < got; {
			m, err := unix.Pwrite(to, piece[at:got], off+done+int64(at))
			if err != nil {
				return done, err
			}
			at += m
		}
		done += int64(got)
	}
	return done, nil
}
