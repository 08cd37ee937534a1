package checksum

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// node is what is known of one name. Its names end in a zero byte that is not a part of them, see cstring.
type node struct {
	name string
	kids []node // sorted
	stamp
	// known: sum is that of the thing with this stamp. settled: nothing can have happened to it since without changing the stamp. listed: kids are all names of the directory with this stamp.
	known, settled, listed bool
	sum                    Sum // of the entry; a directory's without what is in it
}

// stamp is by what a thing is known to be the same as before: any change of it changes the change time, at least.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
	mode         uint32
	uid, gid     uint32
	rdev         uint64
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: uint64(st.Rdev)}
}

func (n *node) isDir() bool { return n.known && n.mode&unix.S_IFMT == unix.S_IFDIR }

func (s *stamp) same(st *unix.Stat_t) bool {
	return s.ino == st.Ino && s.ctime == st.Ctim.Nano() && s.mtime == st.Mtim.Nano() && s.size == st.Size && s.mode == st.Mode && s.dev == uint64(st.Dev) &&
		s.uid == st.Uid && s.gid == st.Gid && s.rdev == uint64(st.Rdev)
}

const (
	// slack is the time in which a file may change twice without showing: the kernel's clock of file times moves in steps of at most 10 ms, some file systems' in steps of 2 s; these
	// give whole seconds.
	slack       = 30e6
	coarseSlack = 2100e6
	// maxDepth bounds how deep directories may lie: each level holds descriptors.
	maxDepth = 1000
)

// settledBy tells whether what is seen at the time now (before its content was read) is old enough for its stamp to be trusted.
func (s *stamp) settledBy(now int64) bool {
	last := max(s.mtime, s.ctime)
	wait := int64(slack)
	if s.ctime%1e9 == 0 {
		wait = coarseSlack
	}
	return last < now-wait
}

// refresher brings nodes up to date with what is on disk.
type refresher struct {
	ctx     context.Context
	log     *slog.Logger
	owner   *[2]uint32
	now     int64
	helpers task.Helpers
	// changed: a digest or a name is another than before. touched: something else is.
	changed, touched atomic.Bool
	hashed           atomic.Int64 // files whose content was read
}

func newRefresher(ctx context.Context, log *slog.Logger, owner *[2]uint32) *refresher {
	var ts unix.Timespec
	now := int64(0)
	if unix.ClockGettime(unix.CLOCK_REALTIME, &ts) == nil {
		now = ts.Nano()
	}
	return &refresher{ctx: ctx, log: log, owner: owner, now: now, helpers: task.NewHelpers(runtime.GOMAXPROCS(0) - 1)}
}

// each calls fn for all kids, side by side where there is a free helper: a directory that is known goes to one by itself, other things in pieces. What fn finds gone is no error.
func (r *refresher) each(kids []node, fn func(n *node) error) error {
	const piece = 256
	unknown := max(1, min(32, len(kids)/4))
	g := r.helpers.Group()
	run := func(from, to int) (err error) {
		defer task.Contain(r.log, "take checksums", &err)
		for i := from; i < to; i++ {
			err := fn(&kids[i])
			if errors.Is(err, unix.ENOENT) {
				// Gone since the directory was read: the next look finds out.
				r.changed.Store(true)
				kids[i].known, kids[i].mode = false, 0
				continue
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	for from := 0; from < len(kids); {
		start, to, least := from, from+1, 1
		if !kids[from].isDir() {
			least = piece
			if !kids[from].known {
				least = unknown
			}
			for to < len(kids) && to-from < least && !kids[to].isDir() {
				to++
			}
		}
		if do := func() error { return run(start, to) }; to-from >= least && len(kids) > 1 {
			g.Do(do)
		} else {
			g.Here(do)
		}
		from = to
	}
	return g.Wait()
}

// dir brings a directory up to date: itself and what at says is chosen below it. fd is open for O_PATH at least.
func (r *refresher) dir(fd int, n *node, at pick.Cursor, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return errs.New(errs.Invalid, "%s: directories lie deeper than %d", strings.TrimSuffix(n.name, "\x00"), maxDepth)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if !n.known || !n.settled || !n.listed || !n.same(&st) {
		if err := r.relist(fd, n, &st); err != nil {
			return err
		}
	}
	return r.each(n.kids, func(kid *node) error { return r.kid(fd, kid, at, depth) })
}

// relist reads a directory's own attributes and names.
func (r *refresher) relist(fd int, n *node, st *unix.Stat_t) error {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(own), n.name)
	defer f.Close()
	if err := unix.Fstat(own, st); err != nil {
		return err
	}
	if err := r.self(own, n, st); err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	sort.Strings(names)
	r.touched.Store(true)
	n.listed = true
	if len(names) == len(n.kids) {
		same := true
		for i := range names {
			same = same && names[i] == n.kids[i].name
		}
		if same {
			return nil
		}
	}
	r.changed.Store(true)
	kids := make([]node, len(names))
	old := n.kids
	for i, name := range names {
		for len(old) > 0 && old[0].name < name {
			old = old[1:]
		}
		if len(old) > 0 && old[0].name == name {
			kids[i] = old[0]
		} else {
			kids[i].name = cstring(name)
		}
	}
	n.kids = kids
	return nil
}

// cstring gives a name behind which stands a zero byte, for system calls.
func cstring(name string) string { return (name + "\x00")[:len(name)] }

// set takes a new digest.
func (r *refresher) set(n *node, st *unix.Stat_t, sum Sum) {
	if !n.known || n.sum != sum || n.mode&unix.S_IFMT != st.Mode&unix.S_IFMT {
		r.changed.Store(true)
	}
	r.touched.Store(true)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		n.kids, n.listed = nil, false
	}
	n.stamp, n.known, n.sum = stampOf(st), true, sum
	n.settled = n.settledBy(r.now)
}

// self digests an open directory without what is in it.
func (r *refresher) self(fd int, n *node, st *unix.Stat_t) error {
	e := EntryOf(st, r.owner)
	var err error
	if e.Xattrs, err = (XattrSource{Fd: fd}).Read(); err != nil {
		return err
	}
	r.set(n, st, e.Sum())
	return nil
}

// EntryOf is what a checksum covers of something on disk, but for its extended attributes. All that is read with an owner counts as his; nil: as on disk.
func EntryOf(st *unix.Stat_t, owner *[2]uint32) *Entry {
	e := &Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid}
	if owner != nil {
		e.UID, e.GID = owner[0], owner[1]
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Device = uint64(st.Rdev)
	case unix.S_IFREG:
		e.Size = st.Size
	}
	return e
}

// kid brings one name up to date.
func (r *refresher) kid(dir int, n *node, at pick.Cursor, depth int) error {
	// What is there may be a directory by now, whatever it was.
	next, deeper := at.Step(n.name, true)
	if !deeper && !next.Included {
		return nil
	}
	if n.isDir() {
		err := r.below(dir, n, next, deeper, depth)
		if err != unix.ENOTDIR && err != unix.ELOOP {
			return err
		}
	}
	var st unix.Stat_t
	if err := fstatat(dir, n.name, &st); err != nil {
		return err
	}
	if n.known && n.settled && n.same(&st) {
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return r.below(dir, n, next, deeper, depth)
	}
	if !next.Included {
		if n.isDir() {
			n.known, n.kids = false, nil
		}
		return nil
	}
	return r.examine(dir, n, &st)
}

// below goes into a directory.
func (r *refresher) below(dir int, n *node, at pick.Cursor, deeper bool, depth int) error {
	fd, err := openat(dir, n.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if deeper {
		return r.dir(fd, n, at, depth+1)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if n.known && n.settled && n.same(&st) {
		return nil
	}
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	n.listed = false
	return r.self(own, n, &st)
}

// examine digests what is no directory. st is what is thought to be there.
func (r *refresher) examine(dir int, n *node, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return r.file(dir, n)
	}
	e := EntryOf(st, r.owner)
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if e.Target, err = readlink(dir, n.name); err != nil {
			return err
		}
	}
	if e.Xattrs, err = (XattrSource{Path: ProcPath(dir, n.name)}).Read(); err != nil {
		return err
	}
	r.set(n, st, e.Sum())
	var again unix.Stat_t
	if err := fstatat(dir, n.name, &again); err != nil {
		return err
	}
	n.settled = n.settled && n.same(&again)
	return nil
}

// file digests a file. It is opened so that a fifo or device that took its place does neither block nor begin to work.
func (r *refresher) file(dir int, n *node) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	fd, err := openat(dir, n.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open", Path: n.name, Err: err}
	}
	defer unix.Close(fd)
	var st, after unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errs.New(errs.Unavailable, "%s was replaced by something that is no file while it was read", n.name)
	}
	e := EntryOf(&st, r.owner)
	size, sum, err := ReadSum(r.ctx, fd)
	if err != nil {
		return &os.PathError{Op: "read", Path: n.name, Err: err}
	}
	e.Size, e.Content = size, sum
	if e.Xattrs, err = (XattrSource{Fd: fd}).Read(); err != nil {
		return &os.PathError{Op: "read xattrs", Path: n.name, Err: err}
	}
	r.hashed.Add(1)
	r.set(n, &st, e.Sum())
	if err := unix.Fstat(fd, &after); err != nil {
		return err
	}
	n.settled = n.settled && n.same(&after)
	return nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// ReadSum digests what an open file holds from its beginning on.
func ReadSum(ctx context.Context, fd int) (size int64, sum Sum, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := unix.Pread(fd, *buf, 0)
	if err != nil {
		return 0, sum, err
	}
	if n < len(*buf) {
		// A read of a file is short at its end only; who changes it meanwhile is found out by its times.
		return int64(n), sha256.Sum256((*buf)[:n]), nil
	}
	h := sha256.New()
	for n > 0 {
		h.Write((*buf)[:n])
		size += int64(n)
		if err := ctx.Err(); err != nil {
			return 0, sum, err
		}
		n, err = unix.Pread(fd, *buf, size)
		if err != nil {
			return 0, sum, err
		}
	}
	h.Sum(sum[:0])
	return size, sum, nil
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// ProcPath names a file in an open directory for the calls that take no descriptor.
func ProcPath(dir int, name string) string { return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name }

func fstatat(dir int, name string, st *unix.Stat_t) error {
	return unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW)
}

func openat(dir int, name string, flags int) (int, error) { return unix.Openat(dir, name, flags, 0) }

// fold gives the digest of a node that was refreshed; ok is false when nothing of it is chosen.
func fold(n *node, at pick.Cursor, contents bool, seen func(path string), path string) (sum Sum, ok bool) {
	if !n.known || n.mode&unix.S_IFMT == unix.S_IFSOCK {
		return sum, false
	}
	if !n.isDir() {
		if at.Included && seen != nil {
			seen(path)
		}
		return n.sum, at.Included
	}
	self := n.sum
	if contents {
		self = Sum{}
	}
	h := newDirHash(self)
	ok = at.Included
	if ok && seen != nil {
		seen(path)
	}
	for i := range n.kids {
		kid := &n.kids[i]
		if !kid.known {
			continue
		}
		isDir := kid.isDir()
		next, deeper := at.Step(kid.name, isDir)
		if !next.Included && !deeper {
			continue
		}
		below := ""
		if seen != nil {
			below = path + "/" + kid.name
		}
		if isDir && !deeper {
			sum, any := Dir(kid.sum, nil), next.Included
			if any {
				h.add(kid.name, &sum)
				ok = true
			}
			continue
		}
		if sum, any := fold(kid, next, false, seen, below); any {
			h.add(kid.name, &sum)
			ok = true
		}
	}
	return h.sum(), ok
}
