package ops

import (
	"context"
	"errors"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/task"
)

// maxDepth bounds how deep directories may lie: each level holds descriptors.
const maxDepth = 1000

// copier does one copy.
type copier struct {
	w       *work
	a       *pb.FileActionCopy
	own     *owner // what is copied gets it; nil: as in the source
	mode    *modeChange
	time    *time.Time
	files   *[2]uint32 // the owner that all files of the source count as having
	digests bool       // what is copied is digested on the way
	inside  *os.File   // the tree's own changes; nil: they are not apart
	helpers task.Helpers

	mu    sync.Mutex
	links map[inode]*firstCopy
}

type inode struct{ dev, ino uint64 }

// firstCopy is the copy of a file with several names; the other names become links to it.
type firstCopy struct {
	done chan struct{}
	real string
	sum  checksum.Sum
	ok   bool
}

func newCopier(w *work, a *pb.FileActionCopy, own *owner, src source) (*copier, error) {
	c := &copier{w: w, a: a, own: own, time: when(a.Timestamp), links: map[inode]*firstCopy{}, helpers: task.NewHelpers(runtime.GOMAXPROCS(0) - 1)}
	if src.files != nil {
		c.digests, c.files = true, src.files.Owner
	}
	var err error
	switch {
	case a.ModeStr != "":
		c.mode, err = parseMode(a.ModeStr)
	case a.Mode != -1:
		c.mode = &modeChange{octal: true, bits: uint32(a.Mode) & 0o7777}
	}
	return c, err
}

// fresh is how directories are made on the way to a copy.
func (c *copier) fresh() fresh {
	how := fresh{mode: defaultDir, own: c.own, time: c.time}
	if c.mode != nil && c.mode.octal {
		how.mode = c.mode.bits & 0o777
	}
	return how
}

// all copies what is chosen. The digest is that of what was copied, of the same kind that checksum gives; empty unless the source is read in place.
func (c *copier) all(ctx context.Context, tree *pick.Tree, sel pick.Selection) (digest.Digest, error) {
	if in, ok := c.w.o.trees.(snapshot.Insider); ok {
		inside, err := in.Inside(c.w.key)
		if err != nil {
			return "", err
		}
		defer inside.Close()
		c.inside = inside
	}
	matches, err := tree.Matches(sel)
	if err != nil {
		return "", err
	}
	defer func() {
		for _, m := range matches {
			m.Close()
		}
	}()
	if len(matches) == 0 && !c.a.AllowEmptyWildcard {
		return "", errs.New(errs.NotFound, "%q: not found", path.Join("/", c.a.Src))
	}
	if !c.a.CreateDestPath {
		dir, _ := path.Split(path.Join("/", c.a.Dest))
		if _, err := pick.Resolve(c.w.root, dir, true); err != nil {
			return "", errs.As(errs.NotFound, &os.PathError{Op: "stat", Path: c.a.Dest, Err: err})
		}
	}
	var kids []checksum.Kid
	for _, m := range matches {
		sum, ok, err := c.match(ctx, m)
		if err != nil {
			return "", err
		}
		if ok {
			kids = append(kids, checksum.Kid{Name: m.Name, Sum: sum})
		}
	}
	if !c.digests {
		return "", nil
	}
	return checksum.Selected(kids), nil
}

// match copies one match to the destination.
func (c *copier) match(ctx context.Context, m *pick.Match) (sum checksum.Sum, ok bool, err error) {
	if c.a.AttemptUnpackDockerCompatibility {
		if sum, done, err := c.unpack(ctx, m); err != nil || done {
			return sum, done, err
		}
	}
	real, made, err := c.place(m)
	if err != nil {
		return sum, false, err
	}
	if m.IsDir() {
		sum, ok, err = c.tree(ctx, m, real, slices.Contains(made, real))
	} else {
		sum, ok, err = c.single(ctx, m, real)
	}
	if err != nil {
		return sum, false, err
	}
	return sum, ok, c.w.settle(made, c.time)
}

// place finds where a match goes, as cp and Docker do, and makes what is missing of the way there.
func (c *copier) place(m *pick.Match) (real string, made []string, err error) {
	dest := c.a.Dest
	way := path.Join("/", dest)
	if dest != "" && !strings.HasSuffix(dest, "/") && !strings.HasSuffix(dest, "/.") {
		way = path.Dir(way)
	}
	if way, err = c.w.inTree(way); err != nil {
		return "", nil, err
	}
	if made, err = c.w.mkdirAll(way, c.fresh()); err != nil {
		return "", made, err
	}
	if real, err = c.w.inTree(dest); err != nil {
		return "", made, err
	}
	st, err := c.w.look(real)
	there := err == nil
	if err != nil && err != unix.ENOENT {
		return "", made, &os.PathError{Op: "stat", Path: "/" + real, Err: err}
	}
	into := there && isDir(&st) && !m.IsDir() || there && m.IsDir() && !c.a.DirCopyContents
	if into && m.Name != "." {
		real = strings.TrimPrefix(path.Join("/", real, m.Name), "/")
	}
	target := strings.TrimPrefix(path.Dir("/"+real), "/")
	if c.a.DirCopyContents && m.IsDir() && !there {
		target = real
	}
	more, err := c.w.mkdirAll(target, c.fresh())
	return real, append(made, more...), err
}

// single copies what is no directory.
func (c *copier) single(ctx context.Context, m *pick.Match, real string) (sum checksum.Sum, ok bool, err error) {
	if !m.At.Included {
		return sum, false, nil
	}
	if real == "" {
		return sum, false, &os.PathError{Op: "copy", Path: "/", Err: unix.EISDIR}
	}
	dir, base, err := c.w.parent(real)
	if err != nil {
		return sum, false, &os.PathError{Op: "copy", Path: "/" + real, Err: err}
	}
	defer unix.Close(dir)
	return c.node(ctx, m.Parent, m.Base, &m.Stat, there(dir, strings.TrimPrefix(path.Dir("/"+real), "/")), base)
}

// tree copies a directory. made: the destination was made for it.
func (c *copier) tree(ctx context.Context, m *pick.Match, real string, made bool) (sum checksum.Sum, ok bool, err error) {
	fd, err := unix.Openat(m.Fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return sum, false, &os.PathError{Op: "open", Path: path.Join("/", m.Path), Err: err}
	}
	defer unix.Close(fd)
	d := &dest{c: c, real: real, top: true, created: made, way: made}
	if real != "" {
		dir, base := path.Split(real)
		up, err := pick.OpenReal(c.w.root, strings.TrimSuffix(dir, "/"), unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return sum, false, &os.PathError{Op: "copy", Path: "/" + real, Err: err}
		}
		defer unix.Close(up)
		d.up, d.name = there(up, strings.TrimSuffix(dir, "/")), base
	}
	if _, err := d.open(); err != nil {
		return sum, false, err
	}
	return c.dir(ctx, fd, d, m.At, true, 0)
}

// dir copies what is chosen of an open directory into d, and gives d its attributes.
func (c *copier) dir(ctx context.Context, src int, d *dest, at pick.Cursor, deeper bool, depth int) (sum checksum.Sum, ok bool, err error) {
	if err := ctx.Err(); err != nil {
		return sum, false, err
	}
	if depth > maxDepth {
		return sum, false, errs.New(errs.Invalid, "copy /%s: directories lie deeper than %d", d.real, maxDepth)
	}
	e, st, err := c.describe(src)
	if err != nil {
		return sum, false, err
	}
	d.set(st, e.Xattrs)
	defer func() { err = errors.Join(err, d.close(err == nil)) }()
	ok = at.Included
	if ok {
		if _, err := d.open(); err != nil {
			return sum, false, err
		}
	}
	self := checksum.Sum{}
	if c.digests && !(d.top && c.a.DirCopyContents) {
		self = e.Sum()
	}
	var names []string
	if deeper {
		if names, err = pick.Names(src); err != nil {
			return sum, false, err
		}
	}
	kids := make([]checksum.Kid, len(names))
	chosen := make([]bool, len(names))
	err = c.each(len(names), func(i int) (err error) {
		kids[i].Name = names[i]
		kids[i].Sum, chosen[i], err = c.kid(ctx, src, names[i], d, at, depth)
		return err
	})
	if err != nil {
		return sum, false, err
	}
	n := 0
	for i := range kids {
		if chosen[i] {
			kids[n] = kids[i]
			n++
		}
	}
	if c.digests {
		sum = checksum.Dir(self, kids[:n])
	}
	return sum, ok || n > 0, nil
}

// each calls fn for n things, side by side where there are free helpers.
func (c *copier) each(n int, fn func(i int) error) error {
	piece := max(1, min(32, n/4))
	g := c.helpers.Group()
	run := func(from, to int) (err error) {
		defer task.Contain(c.w.o.log, "copy files", &err)
		for i := from; i < to; i++ {
			if err := fn(i); err != nil {
				return err
			}
		}
		return nil
	}
	for from := 0; from < n && !g.Failed(); from += piece {
		to := min(from+piece, n)
		g.Do(func() error { return run(from, to) })
	}
	return g.Wait()
}

// kid copies one name of a directory, if it is chosen. What vanished since the directory was read is left out.
func (c *copier) kid(ctx context.Context, src int, name string, d *dest, at pick.Cursor, depth int) (sum checksum.Sum, ok bool, err error) {
	if err := ctx.Err(); err != nil {
		return sum, false, err
	}
	next, deeper := at.Step(name, true)
	if !next.Included && !deeper {
		return sum, false, nil
	}
	var st unix.Stat_t
	err = unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return sum, false, nil
	}
	if err != nil {
		return sum, false, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if !isDir(&st) {
		if !next.Included || st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return sum, false, nil // a socket without its process is nothing
		}
		sum, ok, err = c.node(ctx, src, name, &st, d, name)
		if errors.Is(err, errGone) {
			return sum, false, nil
		}
		return sum, ok, err
	}
	fd, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return sum, false, nil
	}
	if err != nil {
		return sum, false, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	return c.dir(ctx, fd, &dest{c: c, up: d, name: name, real: strings.TrimPrefix(d.real+"/"+name, "/")}, next, deeper, depth+1)
}
