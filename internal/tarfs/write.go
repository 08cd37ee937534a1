package tarfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// WriteOptions change what [Write] puts into the archive; the zero value writes the whole tree without an entry for its root.
type WriteOptions struct {
	// Whiteouts is Literal, or Convert for a layer's own directory: overlayfs' marks become ".wh." names.
	Whiteouts   Whiteouts
	OpaqueXattr string
	// Root adds an entry "./" for the root itself.
	Root bool
	// Base stands in front of every name; the root itself then has this name.
	Base string
	// WholeSeconds cuts times to seconds, as old readers expect.
	WholeSeconds bool
	// Meta takes what Assemble needs to write the archive again from this very tree. A file that changes its size meanwhile is an error then. Not together with Base.
	Meta io.Writer
	// Omit are absolute paths that are left out, with all below them.
	Omit []string
	// Leaves are names in the archive of directories that are written without what is in them. With NoMade so are those, below the root, of file systems whose content the
	// kernel makes as it is read: proc, sysfs and their like.
	Leaves []string
	NoMade bool
	// ReadMade reads files whose content the kernel makes as it is read, whatever size they say they have. Not all of them can be read (some are for writing only): those are left
	// out, and the archive, complete but for them, has a note of them at its end, and then none of the zeros that end an archive: see Write.
	ReadMade bool
	// Skipped hears of what does not go into the archive: sockets. May be nil.
	Skipped func(path string)
	// Stats, when set, is filled with what was written: Entries, Bytes and Root.
	Stats *Stats
}

type writer struct {
	ctx   context.Context
	opts  WriteOptions
	tw    *tar.Writer
	links map[inode]string
	buf   []byte
	layer bool  // the archive is a layer: names of deletions are refused
	err   error // of a callback
	rec   *recorder
	stats Stats

	unread      error // the first file that ReadMade could not read
	unreadFiles int
}

// UnreadNote is the PAX record of the global header that tells which files could not be read. Programs that do not know it skip the header, and find the archive cut off after it.
const UnreadNote = "CORTEN.unread"

// Write writes the tree as an archive, entries sorted by name, so that equal trees give equal bytes. Sockets are left out. A file that
// changes its size meanwhile is cut or filled with zeros to the size it had. With ReadMade the error may be of files that are left out, when all else is written:
//
//	entry … entry, global header {UnreadNote: the error's text}
func Write(ctx context.Context, root *os.File, w io.Writer, opts WriteOptions) error {
	if opts.Meta != nil && opts.Base != "" {
		return errs.New(errs.Invalid, "archive: Meta does not go together with Base")
	}
	wr := newWriter(ctx, w, opts)
	fd := int(root.Fd())
	if opts.Root {
		name := opts.Base
		if name == "" {
			name = "."
		}
		if err := wr.rootEntry(fd, name); err != nil {
			return err
		}
	}
	if err := wr.children(fd, opts.Base); err != nil {
		return err
	}
	if wr.unread != nil {
		return wr.noteUnread()
	}
	return wr.close()
}

// noteUnread writes the note of what was left out, and leaves the archive without an end.
func (w *writer) noteUnread() error {
	err := fmt.Errorf("all but one file are copied: %w", w.unread)
	if w.unreadFiles > 1 {
		err = fmt.Errorf("all but %d files are copied, the first of them: %w", w.unreadFiles, w.unread)
	}
	hdr := &tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{UnreadNote: err.Error()}}
	return errors.Join(err, w.tw.WriteHeader(hdr), w.tw.Flush())
}

func newWriter(ctx context.Context, w io.Writer, opts WriteOptions) *writer {
	if opts.OpaqueXattr == "" {
		opts.OpaqueXattr = TrustedOpaque
	}
	wr := &writer{ctx: ctx, opts: opts, links: map[inode]string{}, buf: make([]byte, 256<<10), layer: opts.Whiteouts == Convert}
	wr.stats.Root = opts.Root
	if opts.Meta != nil {
		wr.rec = newRecorder(nil, opts.Meta, 0)
		w = &recordingWriter{w, wr.rec}
	}
	wr.tw = tar.NewWriter(w)
	return wr
}

// omits tells whether a path, without a slash in front, is to be left out.
func (w *writer) omits(path string) bool {
	return slices.ContainsFunc(w.opts.Omit, func(out string) bool {
		out = strings.TrimPrefix(out, "/")
		return path == out || strings.HasPrefix(path, out+"/")
	})
}

func (w *writer) close() error {
	if err := w.tw.Close(); err != nil {
		return err
	}
	if w.opts.Stats != nil {
		*w.opts.Stats = w.stats
	}
	if w.rec == nil {
		return nil
	}
	return w.rec.end()
}

func (w *writer) writeHeader(hdr *tar.Header) error {
	w.stats.Entries++
	return w.tw.WriteHeader(hdr)
}

// entry writes what was found under a name and, if it is a directory, what is in it.
func (w *writer) entry(dir int, name, path string, f *sight) error {
	fd, err := w.only(dir, name, path, f)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	if slices.Contains(w.opts.Leaves, path) || w.opts.NoMade && made(fd) {
		return nil
	}
	return w.children(fd, path)
}

// single writes one name without what is in it.
func (w *writer) single(dir int, name, path string) error {
	f := w.find(dir, name, path)
	defer f.close()
	if f.err != nil {
		return f.err
	}
	fd, err := w.only(dir, name, path, f)
	if fd >= 0 {
		unix.Close(fd)
	}
	return err
}

// only writes the entry of a name. A directory is given open; -1 for all else.
func (w *writer) only(dir int, name, path string, f *sight) (int, error) {
	if f.st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return -1, w.plain(dir, name, path, f)
	}
	fd, err := w.openDir(dir, name, path)
	if err != nil {
		return -1, err
	}
	if err := w.dirEntry(fd, path); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (w *writer) openDir(dir int, name, path string) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/" + path, Err: err}
	}
	return fd, nil
}

// plain writes anything but a directory.
func (w *writer) plain(dir int, name, path string, f *sight) error {
	st := &f.st
	switch {
	case w.opts.Whiteouts == Convert && isWhiteout(st):
		at, base := split(path)
		return w.marker(join(at, whPrefix+base))
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		return w.file(path, f)
	case st.Mode&unix.S_IFMT == unix.S_IFSOCK:
		if w.opts.Skipped != nil {
			w.opts.Skipped(path)
		}
		return nil
	}
	return w.special(dir, name, path, st)
}

// marker writes the empty file that stands for a deletion. It has no time, so that equal changes give equal bytes.
func (w *writer) marker(path string) error {
	return w.writeHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// rootEntry writes the root's own entry. Opened anew: root may be good for paths only, as that of a mount is.
func (w *writer) rootEntry(root int, name string) error {
	fd, err := w.openDir(root, ".", "")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return w.dirEntry(fd, name)
}

func (w *writer) dirEntry(fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	hdr := w.header(&st, path+"/", tar.TypeDir)
	_, xattrs, err := listXattrs(byFd(fd))
	if err != nil {
		return err
	}
	addXattrs(hdr, xattrs)
	if err := w.writeHeader(hdr); err != nil {
		return err
	}
	if w.opts.Whiteouts != Convert {
		return nil
	}
	var val [4]byte
	n, err := unix.Fgetxattr(fd, w.opts.OpaqueXattr, val[:])
	if err == nil && n == 1 && val[0] == 'y' {
		if path == "." {
			path = ""
		}
		return w.marker(join(path, whOpaque))
	}
	return nil
}

// file writes a file.
func (w *writer) file(path string, f *sight) error {
	hdr := w.header(&f.st, path, tar.TypeReg)
	addXattrs(hdr, f.xattrs)
	if w.isLink(&f.st, path, hdr) {
		return w.writeHeader(hdr)
	}
	size := f.st.Size
	hdr.Size = size
	if err := w.writeHeader(hdr); err != nil {
		return err
	}
	if w.rec != nil && size > 0 {
		w.rec.file(path, size)
	}
	n, err := w.content(f)
	if err != nil {
		return err
	}
	w.stats.Bytes += n
	if w.rec != nil {
		if w.rec.content = false; n < size {
			return fmt.Errorf("/%s: has %d bytes of %d, it was cut meanwhile", path, n, size)
		}
	}
	return w.zeros(size - n)
}

// content writes what is in a file, as far as its size goes.
func (w *writer) content(f *sight) (done int64, err error) {
	if f.data != nil {
		n, err := w.tw.Write(f.data)
		return int64(n), err
	}
	for done < f.st.Size {
		buf := w.buf[:min(int64(len(w.buf)), f.st.Size-done)]
		n, err := unix.Pread(f.fd, buf, done)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return done, err
		}
		if _, err := w.tw.Write(buf[:n]); err != nil {
			return done, err
		}
		done += int64(n)
	}
	return done, nil
}

// isLink turns hdr into a hard link when the file was written before under another name.
func (w *writer) isLink(st *unix.Stat_t, path string, hdr *tar.Header) bool {
	if st.Nlink < 2 {
		return false
	}
	id := inode{uint64(st.Dev), st.Ino}
	first, ok := w.links[id]
	if !ok {
		w.links[id] = path
		return false
	}
	hdr.Typeflag, hdr.Linkname, hdr.Size, hdr.PAXRecords = tar.TypeLink, first, 0, nil
	return true
}

func (w *writer) zeros(n int64) error {
	if n <= 0 {
		return nil
	}
	clear(w.buf)
	for n > 0 {
		part := min(n, int64(len(w.buf)))
		if _, err := w.tw.Write(w.buf[:part]); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// special writes links, devices and fifos.
func (w *writer) special(dir int, name, path string, st *unix.Stat_t) error {
	target := ""
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		var err error
		if target, err = readlinkat(dir, name); err != nil {
			return &os.PathError{Op: "readlink", Path: "/" + path, Err: err}
		}
	}
	_, xattrs, err := listXattrs(byName(dir, name))
	if err != nil {
		return err
	}
	return w.node(path, st, target, xattrs)
}

// node writes what has no content.
func (w *writer) node(path string, st *unix.Stat_t, target string, xattrs map[string]string) error {
	var hdr *tar.Header
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		hdr = w.header(st, path, tar.TypeSymlink)
		hdr.Linkname = target
	case unix.S_IFCHR, unix.S_IFBLK:
		kind := byte(tar.TypeChar)
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = tar.TypeBlock
		}
		hdr = w.header(st, path, kind)
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	case unix.S_IFIFO:
		hdr = w.header(st, path, tar.TypeFifo)
	default:
		return errs.New(errs.Invalid, "/%s: unknown kind of file %o", path, st.Mode&unix.S_IFMT)
	}
	addXattrs(hdr, xattrs)
	if w.isLink(st, path, hdr) {
		hdr.Devmajor, hdr.Devminor = 0, 0
	}
	return w.writeHeader(hdr)
}

func (w *writer) header(st *unix.Stat_t, name string, kind byte) *tar.Header {
	mod := time.Unix(st.Mtim.Unix())
	if w.opts.WholeSeconds {
		mod = mod.Truncate(time.Second)
	}
	return &tar.Header{
		Typeflag: kind, Name: name, Mode: int64(st.Mode & 0o7777),
		Uid: int(st.Uid), Gid: int(st.Gid), ModTime: mod, Format: tar.FormatPAX,
	}
}

func addXattrs(hdr *tar.Header, values map[string]string) {
	if len(values) == 0 {
		return
	}
	hdr.PAXRecords = make(map[string]string, len(values))
	for name, value := range values {
		// A PAX record cannot hold an equals sign in its name.
		if !strings.Contains(name, "=") {
			hdr.PAXRecords[paxXattr+name] = value
		}
	}
}
