package tarfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sort"

	"golang.org/x/sys/unix"
)

// Change is how a path differs; the numbers are those of Docker's API.
type Change int

const (
	Modified Change = iota
	Added
	Deleted
)

// comparer walks two trees and tells the differences, each directory before its content and names sorted. A directory whose content
// differs counts as modified itself, as `docker diff` shows it.
type comparer struct {
	ctx    context.Context
	tell   func(path string, how Change)
	opaque string
	upper  bool // the second tree is an overlay's upper directory: what is not in it is unchanged, unless marked
}

// CompareUpper tells how an overlay's upper directory differs from the merged tree below it. What was only copied up is no change.
func CompareUpper(ctx context.Context, below, upper *os.File, opaque string, tell func(path string, how Change)) error {
	return compare(ctx, below, upper, &comparer{ctx: ctx, opaque: opaque, upper: true, tell: tell})
}

// Compare tells how the tree after differs from the tree before.
func Compare(ctx context.Context, before, after *os.File, tell func(path string, how Change)) error {
	return compare(ctx, before, after, &comparer{ctx: ctx, tell: tell})
}

type found struct {
	path string
	how  Change
}

func compare(_ context.Context, before, after *os.File, c *comparer) error {
	var all []found
	tell := c.tell
	c.tell = func(path string, how Change) { all = append(all, found{path, how}) }
	if _, err := c.dir(int(before.Fd()), int(after.Fd()), ""); err != nil {
		return err
	}
	sort.Slice(all, func(i, j int) bool { return all[i].path < all[j].path })
	for _, f := range all {
		tell(f.path, f.how)
	}
	return nil
}

// dir compares two directories; before is -1 when there is none. It answers whether anything in it differs.
func (c *comparer) dir(before, after int, path string) (bool, error) {
	if err := c.ctx.Err(); err != nil {
		return false, err
	}
	names, err := readNames(after)
	if err != nil {
		return false, err
	}
	any := false
	for _, name := range names {
		differs, err := c.entry(before, after, name, path+"/"+name)
		if errors.Is(err, unix.ENOENT) {
			continue // gone meanwhile
		}
		if err != nil {
			return false, err
		}
		any = any || differs
	}
	gone, err := c.gone(before, after, names, path)
	return any || gone, err
}

// gone tells the names of before that are missing in after.
func (c *comparer) gone(before, after int, names []string, path string) (bool, error) {
	if before < 0 || c.upper && !c.isOpaque(after) {
		return false, nil
	}
	old, err := readNames(before)
	if err != nil {
		return false, err
	}
	any := false
	for _, name := range old {
		i := sort.SearchStrings(names, name)
		if i == len(names) || names[i] != name {
			c.tell(path+"/"+name, Deleted)
			any = true
		}
	}
	return any, nil
}

func (c *comparer) isOpaque(fd int) bool {
	var val [4]byte
	n, err := unix.Fgetxattr(fd, c.opaque, val[:])
	return err == nil && n == 1 && val[0] == 'y'
}

func (c *comparer) entry(before, after int, name, path string) (bool, error) {
	var was, now unix.Stat_t
	if err := unix.Fstatat(after, name, &now, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	known := before >= 0
	if known {
		err := unix.Fstatat(before, name, &was, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && err != unix.ENOENT {
			return false, err
		}
		known = err == nil
	}
	if c.upper && isWhiteout(&now) {
		if known {
			c.tell(path, Deleted)
		}
		return known, nil
	}
	how, differs := Modified, false
	switch {
	case !known:
		how, differs = Added, true
	default:
		same, err := sameEntry(before, after, name, &was, &now)
		if err != nil {
			return false, err
		}
		differs = !same
	}
	if now.Mode&unix.S_IFMT == unix.S_IFDIR {
		inside, err := c.inside(before, after, name, path, known && was.Mode&unix.S_IFMT == unix.S_IFDIR)
		if err != nil {
			return false, err
		}
		differs = differs || inside
	}
	if differs {
		c.tell(path, how)
	}
	return differs, nil
}

func (c *comparer) inside(before, after int, name, path string, both bool) (bool, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	to, err := unix.Openat(after, name, flags, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(to)
	from := -1
	if both {
		if from, err = unix.Openat(before, name, flags, 0); err != nil {
			return false, err
		}
		defer unix.Close(from)
	}
	return c.dir(from, to, path)
}

// sameEntry compares what an archive would carry, but for the content of files: size and time stand for it. A directory's own
// time is no difference, it moves with its content.
func sameEntry(before, after int, name string, was, now *unix.Stat_t) (bool, error) {
	if was.Mode != now.Mode || was.Uid != now.Uid || was.Gid != now.Gid || was.Rdev != now.Rdev {
		return false, nil
	}
	kind := now.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && (was.Size != now.Size || was.Mtim != now.Mtim) {
		return false, nil
	}
	if kind == unix.S_IFLNK {
		a, err := readlinkat(before, name)
		if err != nil {
			return false, err
		}
		b, err := readlinkat(after, name)
		return a == b, err
	}
	if kind != unix.S_IFREG {
		return true, nil
	}
	var a, b [64]byte
	n, aerr := byName(before, name).get("security.capability", a[:])
	m, berr := byName(after, name).get("security.capability", b[:])
	return (aerr == nil) == (berr == nil) && (aerr != nil || bytes.Equal(a[:n], b[:m])), nil
}

// Usage is the size of all regular files below root, each inode once.
func Usage(ctx context.Context, root *os.File) (int64, error) {
	return usage(ctx, int(root.Fd()), map[inode]struct{}{})
}

func usage(ctx context.Context, fd int, seen map[inode]struct{}) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	names, err := readNames(fd)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue // gone meanwhile
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			id := inode{uint64(st.Dev), st.Ino}
			if _, again := seen[id]; st.Nlink > 1 && again {
				continue
			}
			if st.Nlink > 1 {
				seen[id] = struct{}{}
			}
			sum += st.Size
		case unix.S_IFDIR:
			sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			n, err := usage(ctx, sub, seen)
			unix.Close(sub)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}
