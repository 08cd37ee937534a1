package tarfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// maxSparse bounds what a sparse file of an archive may claim: its holes cost no space, but reading them costs time.
const maxSparse = 1 << 40

// earlyFlush is the size from which a file's bytes are sent to the disk while the rest of the archive is still being read.
const earlyFlush = 1 << 20

type extractor struct {
	ctx   context.Context
	opts  Options
	rec   *recorder
	tr    *tar.Reader
	dirs  dirs
	seed  maphash.Seed
	seen  map[uint64]struct{} // paths that this archive made, hashed
	base  *os.File
	asked bool // Base was called
	buf   []byte
	stats Stats
}

// Extract writes the archive r (uncompressed) into the directory root. What it wrote stays there when it fails.
// All of r is read, also what follows the archive's end.
func Extract(ctx context.Context, root *os.File, r io.Reader, opts Options) (Stats, error) {
	if (opts.Meta == nil) != (opts.Kept == nil) {
		return Stats{}, errs.New(errs.Invalid, "archive: Meta and Kept go together")
	}
	// Opened anew: root may be good for paths only (O_PATH, as that of a mount is), and the directory gets attributes and times.
	fd, err := unix.Openat(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, fmt.Errorf("open the directory to extract into: %w", err)
	}
	top, err := newDir(fd, "")
	if err != nil {
		return Stats{}, err
	}
	x := &extractor{ctx: ctx, opts: opts, rec: newRecorder(r, opts.Meta, opts.MaxBytes), seed: maphash.MakeSeed(), seen: map[uint64]struct{}{}, buf: make([]byte, 256<<10)}
	x.dirs.root = top
	x.tr = tar.NewReader(x.rec)
	err = x.run()
	err = errs.Also(err, x.dirs.forget(), top.leave())
	x.stats.Based = x.asked
	return x.stats, err
}

func (x *extractor) run() error {
	for {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		x.rec.content = false
		hdr, err := x.tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return readError(err)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if x.opts.MaxEntries > 0 && x.stats.Entries == x.opts.MaxEntries {
			return errs.New(errs.Invalid, "archive: more than %d entries, which is its bound", x.opts.MaxEntries)
		}
		if x.opts.MaxBytes > 0 && hdr.Size > x.opts.MaxBytes-x.rec.read && !isSparse(hdr) {
			return entryError(hdr.Name, x.rec.tooLarge())
		}
		if err := x.entry(hdr); err != nil {
			return entryError(hdr.Name, err)
		}
		x.stats.Entries++
	}
	x.rec.content = false
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{x.rec}, x.buf); err != nil {
		return readError(err)
	}
	return x.rec.end()
}

// readError gives damage in the archive the kind Invalid, and leaves errors of the reader below alone.
func readError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, tar.ErrInsecurePath) {
		return errs.New(errs.Invalid, "archive: %w", err)
	}
	return fmt.Errorf("archive: %w", err)
}

func entryError(name string, err error) error {
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, tar.ErrHeader),
		errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOENT),
		errors.Is(err, unix.EFBIG), errors.Is(err, unix.EISDIR), errors.Is(err, unix.E2BIG), errors.Is(err, unix.EMLINK),
		errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
		return errs.New(errs.Invalid, "archive: %q: %w", name, err)
	}
	return fmt.Errorf("archive: %q: %w", name, err)
}

func (x *extractor) entry(hdr *tar.Header) error {
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return errs.New(errs.Invalid, "the root must be a directory")
		}
		if x.opts.Whiteouts == Literal && !x.opts.Root {
			return nil // what is there is not described by an archive of what goes into it
		}
		x.stats.Root = true
		return x.apply(x.dirs.root, hdr)
	}
	at, base := split(join(x.opts.At, name))
	if x.opts.Whiteouts != Literal {
		if strings.HasPrefix(at, whPrefix) || strings.Contains(at, "/"+whPrefix) {
			return errs.New(errs.Invalid, "names beginning with %s are reserved for deletions", whPrefix)
		}
		if strings.HasPrefix(base, whPrefix) {
			return x.deletion(at, base)
		}
		if hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0 {
			return x.deletion(at, whPrefix+base)
		}
	}
	parent, err := x.parent(at)
	if err != nil {
		return err
	}
	return x.make(parent, base, hdr)
}

// make brings one entry into being. A name that is taken is freed first and tried again.
func (x *extractor) make(parent *dir, base string, hdr *tar.Header) error {
	path := join(parent.path, base)
	for try := 0; ; try++ {
		parent.dirty = true
		err := x.makeNew(parent, base, path, hdr)
		if !errors.Is(err, unix.EEXIST) {
			if err == nil {
				x.mark(path)
			}
			return err
		}
		if try == 2 {
			return err
		}
		same, err := x.taken(parent, base, path, hdr)
		if err != nil || same {
			return err
		}
		// taken may have closed every directory.
		if parent, err = x.parent(parent.path); err != nil {
			return err
		}
	}
}

func (x *extractor) makeNew(parent *dir, base, path string, hdr *tar.Header) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return x.file(parent, base, path, hdr)
	case tar.TypeDir:
		return x.dir(parent, base, path, hdr)
	case tar.TypeLink:
		return x.link(parent, base, path, hdr.Linkname)
	case tar.TypeSymlink:
		if hdr.Linkname == "" {
			return errs.New(errs.Invalid, "symbolic link to nothing")
		}
		if err := unix.Symlinkat(hdr.Linkname, parent.fd, base); err != nil {
			return err
		}
		return x.nodeAttributes(parent, base, path, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return x.node(parent, base, path, hdr)
	}
	return errs.New(errs.Invalid, "entries of type %q are not known", string(rune(hdr.Typeflag)))
}

// taken frees the name for hdr. It answers true when what is there is good as it is: a directory for a directory.
func (x *extractor) taken(parent *dir, base, path string, hdr *tar.Header) (same bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && hdr.Typeflag == tar.TypeDir {
		d, err := x.parent(path)
		if err != nil {
			return false, err
		}
		x.mark(path)
		return true, x.apply(d, hdr)
	}
	if x.opts.NoOverwriteDirNonDir {
		if isDir {
			return false, errs.New(errs.Invalid, "cannot overwrite directory %q with non-directory %q", "/"+path, base)
		}
		if hdr.Typeflag == tar.TypeDir {
			return false, errs.New(errs.Invalid, "cannot overwrite non-directory %q with directory %q", "/"+path, base)
		}
	}
	if hdr.Typeflag == tar.TypeLink {
		same, err := x.sameFile(hdr.Linkname, &st)
		if err != nil || same {
			return same, err
		}
	}
	wasWhiteout := x.isWhiteout(&st)
	if err := x.drop(parent, base, path, isDir); err != nil {
		return false, err
	}
	if wasWhiteout && hdr.Typeflag == tar.TypeDir {
		// The layer below stays hidden: what replaces the deletion is opaque.
		return false, x.opaqueDir(path)
	}
	return false, nil
}

// sameFile tells whether the hard link that is to be made is there already.
func (x *extractor) sameFile(linkname string, st *unix.Stat_t) (bool, error) {
	at, base, err := x.linkTarget(linkname)
	if err != nil {
		return false, err
	}
	var other unix.Stat_t
	if err := unix.Fstatat(at.fd, base, &other, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	return other.Dev == st.Dev && other.Ino == st.Ino, nil
}

// drop removes what stands at base. What this archive itself wrote there goes to Kept, for Assemble.
func (x *extractor) drop(parent *dir, base, path string, isDir bool) error {
	fd := parent.fd
	if isDir {
		// Directories below may be open; but the parent must stay. Take it out of the list first.
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		defer unix.Close(own)
		if err := x.dirs.forget(); err != nil {
			return err
		}
		fd = own
	}
	if x.opts.Meta != nil && x.has(path) {
		name := x.rec.replaced(path)
		return unix.Renameat(fd, base, int(x.opts.Kept.Fd()), name)
	}
	return removeAt(fd, base)
}

func (x *extractor) file(parent *dir, base, path string, hdr *tar.Header) error {
	fd, err := unix.Openat(parent.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	if isSparse(hdr) {
		err = x.sparse(f, hdr)
	} else if hdr.Size > 0 {
		x.rec.file(path, hdr.Size)
		var n int64
		to := io.Writer(f)
		if x.opts.Holes {
			to, err = &holes{f: f}, f.Truncate(hdr.Size)
		}
		if err == nil {
			n, err = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{x.tr}, x.buf)
		}
		x.rec.content = false
		x.stats.Bytes += n
		if err == nil && n >= earlyFlush {
			// Only a hint: the one flush at the end finds less to do.
			_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		}
	}
	if err == nil {
		err = x.attributes(fd, path, hdr)
	}
	if err == nil {
		err = futimens(fd, times(hdr))
	}
	return errs.Also(err, f.Close())
}

// holes writes to a file that has its length already, and leaves out what is zero anyway.
type holes struct {
	f   *os.File
	off int64
}

// holeSize is the least that is left out: smaller holes would cost extents instead of bytes.
const holeSize = 64 << 10

// Write implements [io.Writer].
func (h *holes) Write(p []byte) (n int, err error) {
	for n < len(p) {
		block := p[n:min(len(p), n+holeSize)]
		if len(block) < holeSize || block[0] != 0 || !bytes.Equal(block[1:], block[:holeSize-1]) {
			if _, err := h.f.WriteAt(block, h.off); err != nil {
				return n, err
			}
		}
		h.off += int64(len(block))
		n += len(block)
	}
	return n, nil
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	_, pax0 := hdr.PAXRecords["GNU.sparse.map"]
	_, pax1 := hdr.PAXRecords["GNU.sparse.major"]
	return pax0 || pax1
}

// sparse writes a file with holes. The reader shows holes as zeros; a block of zeros is left out again.
func (x *extractor) sparse(f *os.File, hdr *tar.Header) error {
	if hdr.Size > maxSparse {
		return errs.New(errs.Invalid, "sparse file of %d bytes, more than %d", hdr.Size, int64(maxSparse))
	}
	if err := f.Truncate(hdr.Size); err != nil {
		return err
	}
	var off int64
	for {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		before := x.rec.read
		n, err := io.ReadFull(x.tr, x.buf)
		// Bytes that took nothing from the stream are a hole for sure; so no need to look at them.
		if n > 0 && x.rec.read != before {
			if _, werr := f.WriteAt(x.buf[:n], off); werr != nil {
				return werr
			}
			x.stats.Bytes += int64(n)
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF && off == hdr.Size {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (x *extractor) dir(parent *dir, base, path string, hdr *tar.Header) error {
	if err := unix.Mkdirat(parent.fd, base, 0o700); err != nil {
		return err
	}
	d, err := x.enter(parent, base, path)
	if err != nil {
		return err
	}
	return x.apply(d, hdr)
}

// enter opens a directory that is known to be there and remembers it.
func (x *extractor) enter(parent *dir, base, path string) (*dir, error) {
	fd, err := unix.Openat(parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d, err := newDir(fd, path)
	if err != nil {
		return nil, err
	}
	return d, x.dirs.add(d)
}

// apply gives a directory the attributes of its entry; the times follow when it is left.
func (x *extractor) apply(d *dir, hdr *tar.Header) error {
	d.times, d.dirty = *times(hdr), true
	return x.attributes(d.fd, d.path, hdr)
}

func (x *extractor) link(parent *dir, base, path, linkname string) error {
	at, target, err := x.linkTarget(linkname)
	if err != nil {
		return err
	}
	// Opening the target's directory may have closed the parent.
	if parent, err = x.parent(parent.path); err != nil {
		return err
	}
	if x.opts.Whiteouts == Convert {
		var st unix.Stat_t
		if unix.Fstatat(at.fd, target, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && x.isWhiteout(&st) {
			return errs.New(errs.Invalid, "hard link to %q, which was deleted", linkname)
		}
	}
	if err := unix.Linkat(at.fd, target, parent.fd, base, 0); err != nil {
		if err == unix.EPERM {
			return errs.New(errs.Invalid, "hard link to %q is not possible: %w", linkname, err)
		}
		return err
	}
	parent.dirty = true
	return nil
}

// linkTarget finds where a hard link points: a name in the archive's own tree. With a Base, a file that is only there is
// brought up first, as overlayfs would do.
func (x *extractor) linkTarget(linkname string) (*dir, string, error) {
	name, err := cleanName(linkname)
	if err != nil {
		return nil, "", err
	}
	if name == "" {
		return nil, "", errs.New(errs.Invalid, "hard link to the root")
	}
	at, base := split(join(x.opts.At, name))
	parent, err := x.parent(at)
	if err != nil {
		return nil, "", err
	}
	if x.opts.Whiteouts != Convert {
		return parent, base, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != unix.ENOENT {
		return parent, base, err
	}
	low, err := x.baseDir(parent.path)
	if err != nil || low < 0 {
		return parent, base, err
	}
	defer unix.Close(low)
	parent.dirty = true
	err = copyNode(low, base, parent.fd, base, x.buf)
	if err == unix.ENOENT {
		err = nil // linkat will say so
	}
	return parent, base, err
}

func (x *extractor) node(parent *dir, base, path string, hdr *tar.Header) error {
	mode := uint32(hdr.Mode) & 0o7777
	switch hdr.Typeflag {
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	default:
		mode |= unix.S_IFIFO
	}
	var dev uint64
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devminor < 0 || hdr.Devmajor > 0xfff || hdr.Devminor > 0xfffff {
			return errs.New(errs.Invalid, "device number %d:%d", hdr.Devmajor, hdr.Devminor)
		}
		dev = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	err := unix.Mknodat(parent.fd, base, mode, int(dev))
	if err == unix.EPERM && x.opts.Skipped != nil && inUserNS() {
		// Nobody but the host's root may make one; the container gets its devices from the runtime anyway.
		x.opts.Skipped(path, "device node", err)
		return nil
	}
	if err != nil {
		return err
	}
	return x.nodeAttributes(parent, base, path, hdr)
}

// inUserNS tells whether root here is not root of the host.
func inUserNS() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(data)), " ") != "0 0 4294967295"
}

func (x *extractor) mark(path string)     { x.seen[maphash.String(x.seed, path)] = struct{}{} }
func (x *extractor) has(path string) bool { _, ok := x.seen[maphash.String(x.seed, path)]; return ok }
