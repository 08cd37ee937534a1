package tarfs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// Writing an archive is half system calls and half formatting and hashing: in directories of more than a few names a goroutine looks at the next names and reads small files while
// the writer is at work.
//
//	ahead   look, open, read ─▶ sight ─▶ … at most aheadNames ─▶ sight ─▶ entry   writer
const (
	aheadNames = 16
	aheadBytes = 16 << 10 // of a file
	aheadLeast = 8        // names of a directory that make it worth a goroutine
)

// sight is a name of a directory as it was found.
type sight struct {
	st     unix.Stat_t
	fd     int // of a file that is not read yet; else -1
	data   []byte
	xattrs map[string]string
	err    error
}

func (f *sight) close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

// children writes what is in a directory.
func (w *writer) children(fd int, path string) error {
	names, err := readNames(fd)
	if err != nil {
		err = &os.PathError{Op: "read", Path: "/" + path, Err: err}
		if w.opts.ReadMade && made(fd) { // of a thread that ended, say
			w.leaveOut(err)
			return nil
		}
		return err
	}
	next := func(name string) *sight { return w.find(fd, name, join(path, name)) }
	if len(names) >= aheadLeast {
		var stop func()
		next, stop = w.ahead(fd, path, names)
		defer stop()
	}
	for _, name := range names {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		f := next(name)
		err, before := f.err, w.stats.Entries
		if err == nil && !w.omits(join(path, name)) {
			err = w.entry(fd, name, join(path, name), f)
		}
		f.close()
		if errors.Is(err, unix.ENOENT) {
			continue // gone since the directory was read: the tree is in use
		}
		if err != nil && w.opts.ReadMade && w.stats.Entries == before && made(fd) { // nothing of it is written
			w.leaveOut(err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leaveOut counts what ReadMade could not read.
func (w *writer) leaveOut(err error) {
	if w.unreadFiles++; w.unread == nil {
		w.unread = err
	}
}

// ahead finds names in their order. The descriptor is used until stop returns.
func (w *writer) ahead(fd int, path string, names []string) (next func(string) *sight, stop func()) {
	all := make(chan *sight, aheadNames)
	quit := make(chan struct{})
	go func() {
		defer close(all)
		for _, name := range names {
			select {
			case all <- w.find(fd, name, join(path, name)):
			case <-quit:
				return
			}
		}
	}()
	stop = func() {
		close(quit)
		for f := range all {
			f.close()
		}
	}
	return func(string) *sight { return <-all }, stop
}

// find looks at a name, and opens it when it is a file. A bug in it costs this archive only, whoever runs it.
func (w *writer) find(dir int, name, path string) (f *sight) {
	f = &sight{fd: -1}
	defer func() {
		if bug := recover(); bug != nil {
			f.err = fmt.Errorf("/%s: a bug in reading it: %v", path, bug)
		}
	}()
	if f.err = unix.Fstatat(dir, name, &f.st, unix.AT_SYMLINK_NOFOLLOW); f.err != nil {
		f.err = &os.PathError{Op: "stat", Path: "/" + path, Err: f.err}
		return f
	}
	if w.layer && strings.HasPrefix(name, whPrefix) {
		f.err = errs.New(errs.Invalid, "/%s: a name beginning with %s cannot be kept in a layer", path, whPrefix)
		return f
	}
	if f.st.Mode&unix.S_IFMT == unix.S_IFREG {
		w.look(f, dir, name, path)
	}
	return f
}

// look opens a file, and reads what there is no other way to know the length of.
func (w *writer) look(f *sight, dir int, name, path string) {
	if err := f.open(dir, name); err != nil {
		f.err = &os.PathError{Op: "open", Path: "/" + path, Err: err}
	} else if w.opts.ReadMade {
		if err := f.readMade(); err != nil {
			f.err = &os.PathError{Op: "read", Path: "/" + path, Err: err}
		}
	}
}

// open opens first and looks then: what is written is what was opened, whatever happens to the name.
func (f *sight) open(dir int, name string) (err error) {
	f.fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		f.fd = -1
		return err
	}
	return f.take()
}

// take looks at what was opened, and reads it when it is small.
func (f *sight) take() (err error) {
	if err := unix.Fstat(f.fd, &f.st); err != nil {
		return err
	}
	if f.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.ENOENT // replaced a moment ago
	}
	if _, f.xattrs, err = listXattrs(byFd(f.fd)); err != nil {
		return err
	}
	if f.st.Size == 0 || f.st.Size > aheadBytes {
		return nil
	}
	buf := make([]byte, f.st.Size)
	n, err := readFull(f.fd, buf)
	f.data = buf[:n]
	return err
}

// readFull reads until the buffer is full or the file ends.
func readFull(fd int, buf []byte) (n int, err error) {
	for n < len(buf) {
		m, err := unix.Pread(fd, buf[n:], int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return n, err
		}
		n += m
	}
	return n, nil
}
