package ops

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// compare makes one layer of what differs between two trees that have no layers in common: lower is changed into upper, and the layer that this makes is laid on nothing. Size and time alone
// do not tell that a file is the same: builds may give all files one time.
func (o *Ops) compare(ctx context.Context, lower, upper snapshot.ChainID) (snapshot.ChainID, error) {
	before, err := o.trees.View(ctx, lower)
	if err != nil {
		return "", err
	}
	defer before.Close()
	after, err := o.trees.View(ctx, upper)
	if err != nil {
		return "", err
	}
	defer after.Close()
	w, err := o.begin(ctx, lower)
	if err != nil {
		return "", err
	}
	c, err := newCopier(w, &pb.FileActionCopy{Mode: -1, Timestamp: -1, AlwaysReplaceExistingDestPaths: true}, nil, source{})
	if err != nil {
		w.drop(ctx)
		return "", err
	}
	// Nobody has a root directory of another mode or owner in mind who asks for a difference; what is in it counts.
	d := &dest{c: c, top: true}
	x := &comparison{c: c, ctx: ctx}
	if err := x.roots(before.Root, after.Root, d); err != nil {
		w.drop(ctx)
		return "", err
	}
	if !x.differs {
		w.drop(ctx)
		return "", nil
	}
	chain, err := w.finish(ctx)
	if err != nil {
		return "", err
	}
	l, err := o.trees.Stat(ctx, chain)
	if err != nil {
		return "", err
	}
	return o.stack(ctx, "", []snapshot.Layer{l})
}

type comparison struct {
	c       *copier
	ctx     context.Context
	differs bool
}

// roots compares two mounts, whose descriptors are mere handles.
func (x *comparison) roots(before, after *os.File, d *dest) error {
	var fds [2]int
	for i, f := range [2]*os.File{before, after} {
		fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	return x.dir(fds[0], fds[1], d, 0)
}

// dir compares what is in two directories, and makes d, which is like before, like after.
func (x *comparison) dir(before, after int, d *dest, depth int) (err error) {
	if depth > maxDepth {
		return errs.New(errs.Invalid, "/%s: directories lie deeper than %d", d.real, maxDepth)
	}
	if err := x.ctx.Err(); err != nil {
		return err
	}
	was, wasStat, err := x.c.describe(before)
	if err != nil {
		return err
	}
	now, st, err := x.c.describe(after)
	if err != nil {
		return err
	}
	d.set(st, now.Xattrs)
	defer func() { err = errors.Join(err, d.close(err == nil)) }()
	if depth > 0 && (was.Sum() != now.Sum() || wasStat.Mode != st.Mode) {
		x.differs = true
		if _, err := d.open(); err != nil {
			return err
		}
	}
	old, err := pick.Names(before)
	if err != nil {
		return err
	}
	names, err := pick.Names(after)
	if err != nil {
		return err
	}
	for _, name := range old {
		if _, ok := slices.BinarySearch(names, name); ok {
			continue
		}
		x.differs = true
		fd, err := d.open()
		if err == nil {
			err = removeAt(fd, name)
		}
		if err != nil {
			return err
		}
	}
	for _, name := range names {
		_, both := slices.BinarySearch(old, name)
		if err := x.entry(pair{before, after}, name, both, d, depth); err != nil {
			return err
		}
	}
	return nil
}

// pair is the same directory of both trees.
type pair struct{ before, after int }

// entry compares one name; both: the two have it.
func (x *comparison) entry(dirs pair, name string, both bool, d *dest, depth int) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	var was, now unix.Stat_t
	if err := unix.Fstatat(dirs.after, name, &now, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if both {
		if err := unix.Fstatat(dirs.before, name, &was, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	below := &dest{c: x.c, up: d, name: name, real: strings.TrimPrefix(d.real+"/"+name, "/")}
	if isDir(&now) {
		to, err := unix.Openat(dirs.after, name, flags, 0)
		if err != nil {
			return err
		}
		defer unix.Close(to)
		if both && isDir(&was) {
			from, err := unix.Openat(dirs.before, name, flags, 0)
			if err != nil {
				return err
			}
			defer unix.Close(from)
			return x.dir(from, to, below, depth+1)
		}
		x.differs = true
		_, _, err = x.c.dir(x.ctx, to, below, pick.Cursor{Included: true}, true, depth+1)
		return err
	}
	if both {
		same, err := x.same(dirs, name, &was, &now)
		if same || err != nil {
			return err
		}
	}
	x.differs = true
	_, _, err := x.c.node(x.ctx, dirs.after, name, &now, d, name)
	return err
}

// same tells whether a name stands for the same thing in both, its time included.
func (x *comparison) same(dirs pair, name string, was, now *unix.Stat_t) (bool, error) {
	if was.Mode != now.Mode || was.Uid != now.Uid || was.Gid != now.Gid || was.Rdev != now.Rdev || was.Size != now.Size || was.Mtim != now.Mtim {
		return false, nil
	}
	a, err := checksum.XattrSource{Path: checksum.ProcPath(dirs.before, name)}.Read()
	if err != nil {
		return false, err
	}
	b, err := checksum.XattrSource{Path: checksum.ProcPath(dirs.after, name)}.Read()
	if err != nil || !slices.Equal(a, b) {
		return false, err
	}
	switch now.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		var a, b [unix.PathMax]byte
		n, err := unix.Readlinkat(dirs.before, name, a[:])
		if err != nil {
			return false, err
		}
		m, err := unix.Readlinkat(dirs.after, name, b[:])
		return err == nil && bytes.Equal(a[:n], b[:m]), err
	case unix.S_IFREG:
		return x.sameContent(dirs, name)
	}
	return true, nil
}

func (x *comparison) sameContent(dirs pair, name string) (bool, error) {
	var sums [2]checksum.Sum
	for i, dir := range [2]int{dirs.before, dirs.after} {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, &os.PathError{Op: "open", Path: name, Err: err}
		}
		_, sums[i], err = checksum.ReadSum(x.ctx, fd)
		unix.Close(fd)
		if err != nil {
			return false, err
		}
	}
	return sums[0] == sums[1], nil
}
