package mirror

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// Entry is one name of a tree.
type Entry struct {
	// Path is relative, with slashes, without dots.
	Path string
	// Mode is the type and the permissions. Directories, regular files, symbolic links and fifos are taken.
	Mode    fs.FileMode
	Size    int64  // of a regular file
	ModTime int64  // in nanoseconds since 1970
	Link    string // the target of a symbolic link
}

// Source is a tree that comes.
type Source interface {
	// Next gives the names: each directory before what is in it, and sorted (by bytes) within a directory; io.EOF after the last.
	Next() (Entry, error)
	// Want asks for regular files by their numbers in the list, counted from 0. What comes is a tar with these files in this order under their names; attributes and sizes in it count, as
	// files may have changed since they were listed.
	Want(ctx context.Context, files []uint32) (io.ReadCloser, error)
}

// Update brings a mirror up to date from a list of names. The copy is the build's until release.
func (m *Mirrors) Update(ctx context.Context, src Source, req Request) (*build.Files, func(), error) {
	c, err := m.take(req)
	if err != nil {
		return nil, nil, err
	}
	if err := c.update(ctx, src, req); err != nil {
		c.give()
		return nil, nil, fmt.Errorf("transfer of %s: %w", req.Name, err)
	}
	return c.files(req)
}

// updating is one call of Update.
type updating struct {
	c     *copyOf
	all   bool // every file comes
	top   *os.Root
	stack []*level
	n     int64
	bytes int64
	want  []uint32
	files []Entry          // that are wanted
	times map[string]Entry // of directories
}

// level is a directory whose names are coming.
type level struct {
	entry Entry
	root  *os.Root
	last  string
	left  map[string]bool // names on disk that did not come
}

func (c *copyOf) update(ctx context.Context, src Source, req Request) (err error) {
	u := &updating{c: c, all: req.Context.Differ == "none", times: map[string]Entry{}}
	if u.top, err = os.OpenRoot(c.tree); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	top, err := newLevel(u.top, Entry{Mode: fs.ModeDir | 0o755})
	if err != nil {
		return err
	}
	u.stack = []*level{top}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := src.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := u.entry(e); err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
	}
	for len(u.stack) > 0 {
		if err := u.pop(); err != nil {
			return err
		}
	}
	if len(u.want) > 0 {
		if err := u.fetch(ctx, src, req); err != nil {
			return err
		}
	}
	// At last, as writing into a directory changes its time.
	for name, e := range u.times {
		if err := u.top.Chtimes(name, at(e), at(e)); err != nil {
			return err
		}
	}
	return nil
}

func at(e Entry) time.Time { return time.Unix(0, e.ModTime) }

func newLevel(root *os.Root, e Entry) (*level, error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	l := &level{entry: e, root: root, left: make(map[string]bool, len(names))}
	for _, n := range names {
		l.left[n] = true
	}
	return l, nil
}

// pop ends a directory: what did not come goes.
func (u *updating) pop() error {
	l := u.stack[len(u.stack)-1]
	u.stack = u.stack[:len(u.stack)-1]
	var err error
	for name := range l.left {
		err = errors.Join(err, l.root.RemoveAll(name))
	}
	if l.root != u.top {
		err = errors.Join(err, l.root.Close())
	}
	return err
}

func (u *updating) close() error {
	var err error
	for _, l := range u.stack {
		if l.root != u.top {
			err = errors.Join(err, l.root.Close())
		}
	}
	return errors.Join(err, u.top.Close())
}

// entry takes one name.
func (u *updating) entry(e Entry) error {
	number := u.n
	if u.n++; u.n > u.c.m.opts.MaxEntries {
		return errs.New(errs.Invalid, "the context has more than %d files", u.c.m.opts.MaxEntries)
	}
	if e.Path == "" || path.Clean("/"+e.Path) != "/"+e.Path || strings.IndexByte(e.Path, 0) >= 0 {
		return errs.New(errs.Invalid, "not a clean relative path")
	}
	dir, base := path.Split(e.Path)
	dir = strings.TrimSuffix(dir, "/")
	for len(u.stack) > 1 && u.stack[len(u.stack)-1].entry.Path != dir {
		if err := u.pop(); err != nil {
			return err
		}
	}
	l := u.stack[len(u.stack)-1]
	if l.entry.Path != dir || l.last >= base {
		return errs.New(errs.Invalid, "out of order")
	}
	l.last = base
	old, err := l.root.Lstat(base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(l.left, base)
	switch e.Mode.Type() {
	case fs.ModeDir:
		return u.directory(l, base, e, old)
	case fs.ModeSymlink:
		return link(l, base, e, old)
	case fs.ModeNamedPipe:
		return fifo(l, base, e, old)
	case 0:
		return u.regular(l, base, e, old, uint32(number))
	}
	return errs.New(errs.Invalid, "a file of type %s cannot be sent to another host", e.Mode.Type())
}

// modeBits are the bits that travel.
const modeBits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

func (u *updating) directory(l *level, base string, e Entry, old fs.FileInfo) error {
	if old != nil && !old.IsDir() {
		if err := l.root.RemoveAll(base); err != nil {
			return err
		}
		old = nil
	}
	if old == nil {
		if err := l.root.Mkdir(base, 0o700); err != nil {
			return err
		}
	}
	if old == nil || old.Mode()&modeBits != e.Mode&modeBits {
		if err := l.root.Chmod(base, e.Mode&modeBits); err != nil {
			return err
		}
	}
	root, err := l.root.OpenRoot(base)
	if err != nil {
		return err
	}
	next, err := newLevel(root, e)
	if err != nil {
		return errors.Join(err, root.Close())
	}
	u.stack = append(u.stack, next)
	if len(u.times) < 1<<20 { // beyond that, times of directories are of today
		u.times[e.Path] = e
	}
	return nil
}

func link(l *level, base string, e Entry, old fs.FileInfo) error {
	if e.Link == "" || len(e.Link) >= unix.PathMax || strings.IndexByte(e.Link, 0) >= 0 {
		return errs.New(errs.Invalid, "a link without a valid target")
	}
	if old != nil {
		if target, err := l.root.Readlink(base); err == nil && target == e.Link && old.ModTime().UnixNano() == e.ModTime {
			return nil
		}
		if err := l.root.RemoveAll(base); err != nil {
			return err
		}
	}
	if err := l.root.Symlink(e.Link, base); err != nil {
		return err
	}
	return stamp(l.root, base, e)
}

// stamp sets the time of a name itself, in a directory held open.
func stamp(dir *os.Root, base string, e Entry) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	ts := unix.NsecToTimespec(e.ModTime)
	return unix.UtimesNanoAt(int(f.Fd()), base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func fifo(l *level, base string, e Entry, old fs.FileInfo) error {
	if old != nil && old.Mode() == e.Mode {
		return nil
	}
	if err := l.root.RemoveAll(base); err != nil {
		return err
	}
	f, err := l.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Mknodat(int(f.Fd()), base, unix.S_IFIFO|0o600, 0); err != nil {
		return err
	}
	if err := l.root.Chmod(base, e.Mode&modeBits); err != nil {
		return err
	}
	return stamp(l.root, base, e)
}

func (u *updating) regular(l *level, base string, e Entry, old fs.FileInfo, number uint32) error {
	if e.Size < 0 {
		return errs.New(errs.Invalid, "a size of %d", e.Size)
	}
	if old != nil && !u.all && old.Mode().IsRegular() && old.Size() == e.Size && old.ModTime().UnixNano() == e.ModTime {
		if old.Mode()&modeBits == e.Mode&modeBits {
			return nil
		}
		return l.root.Chmod(base, e.Mode&modeBits)
	}
	if old != nil && !old.Mode().IsRegular() {
		if err := l.root.RemoveAll(base); err != nil {
			return err
		}
	}
	if u.bytes += e.Size; u.bytes > u.c.m.opts.MaxBytes {
		return errs.New(errs.Invalid, "the context is larger than %d bytes", u.c.m.opts.MaxBytes)
	}
	u.want = append(u.want, number)
	u.files = append(u.files, e)
	return nil
}

// fetch brings the wanted files in.
func (u *updating) fetch(ctx context.Context, src Source, req Request) error {
	content, err := src.Want(ctx, u.want)
	if err != nil {
		return err
	}
	defer content.Close()
	stop := context.AfterFunc(ctx, func() { _ = content.Close() }) // ends a Read that waits; ctx says why
	defer stop()
	fresh, err := os.OpenRoot(u.c.dir)
	if err != nil {
		return err
	}
	defer fresh.Close()
	var left, done int64 = u.c.m.opts.MaxBytes, 0
	tr := tar.NewReader(content)
	for _, e := range u.files {
		h, err := tr.Next()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: content: %w", e.Path, noEOF(err))
		}
		if h.Name != e.Path || h.Typeflag != tar.TypeReg {
			return errs.New(errs.Invalid, "asked for %q, got %q", e.Path, h.Name)
		}
		if left -= h.Size; left < 0 {
			return errs.New(errs.Invalid, "the context is larger than %d bytes", u.c.m.opts.MaxBytes)
		}
		if err := u.place(fresh, e, h, tr); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		done += h.Size
		if p := req.Context.Progress; p != nil {
			p.Status("transferring "+req.Name+":", done, u.bytes, false)
		}
	}
	if p := req.Context.Progress; p != nil {
		p.Status("transferring "+req.Name+":", done, done, true)
	}
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// place writes one file aside and puts it where it belongs. The directories on the way are real ones: entry made them.
func (u *updating) place(mirror *os.Root, e Entry, h *tar.Header, content io.Reader) error {
	const aside = "new/file"
	f, err := mirror.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, content)
	if err == nil && n != h.Size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = f.Chmod(h.FileInfo().Mode() & modeBits)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := mirror.Chtimes(aside, h.ModTime, h.ModTime); err != nil {
		return err
	}
	return mirror.Rename(aside, "tree/"+e.Path)
}
