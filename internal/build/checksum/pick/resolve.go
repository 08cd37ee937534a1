package pick

import (
	"path"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the links of one path, as the kernel does; maxPath bounds what they may grow to.
const (
	maxLinks = 40
	maxPath  = 1 << 16
)

// Resolve gives the path of name below the directory root without links in it, as a process whose root it is would see it: relative, "" is the root. last: a link at the end is
// followed, too. unix.ENOENT when there is no such thing.
func Resolve(root int, name string, last bool) (string, error) {
	real, rest, err := walk(root, name, last)
	if err == nil && len(rest) > 0 {
		err = unix.ENOENT
	}
	return real, err
}

// ResolveNew is Resolve for what is to be made: parts that are missing stand at the end of the path as they are.
func ResolveNew(root int, name string, last bool) (string, error) {
	real, rest, err := walk(root, name, last)
	for _, part := range rest {
		if part == ".." {
			real = strings.TrimPrefix(path.Dir("/"+real), "/")
		} else {
			real = join(real, part)
		}
	}
	return real, err
}

// walk goes as far as there is something. A name behind something that is no directory is ENOTDIR.
func walk(root int, name string, last bool) (real string, rest []string, err error) {
	if len(name) > maxPath {
		return "", nil, unix.ENAMETOOLONG
	}
	w := walker{root: root, dir: root}
	defer w.close()
	todo := split(name)
	for links := 0; len(todo) > 0; {
		part := todo[0]
		if part == ".." {
			if err := w.up(); err != nil {
				return "", nil, err
			}
			todo = todo[1:]
			continue
		}
		target, err := w.down(part, len(todo) > 1, last)
		if err == unix.ENOENT {
			return w.real, todo, nil
		}
		if err != nil {
			return "", nil, err
		}
		todo = todo[1:]
		if target == "" {
			continue
		}
		if links++; links > maxLinks {
			return "", nil, unix.ELOOP
		}
		if path.IsAbs(target) {
			w.reset()
		}
		if todo = append(split(target), todo...); len(todo) > maxPath {
			return "", nil, unix.ENAMETOOLONG
		}
	}
	return w.real, nil, nil
}

// walker stands in a directory.
type walker struct {
	root, dir int
	real      string
}

func (w *walker) close() {
	if w.dir != w.root {
		unix.Close(w.dir)
	}
}

func (w *walker) reset() {
	w.close()
	w.dir, w.real = w.root, ""
}

// up goes to the directory above, found from the root again: where ".." of a directory leads that somebody moves at the same time is not to be known.
func (w *walker) up() error {
	above := strings.TrimPrefix(path.Dir("/"+w.real), "/")
	w.reset()
	if above == "" {
		return nil
	}
	fd, err := OpenReal(w.root, above, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	w.dir, w.real = fd, above
	return nil
}

// down goes into part, or gives the target of the link that it is. more: further parts follow. last: a link at the end is followed.
func (w *walker) down(part string, more, last bool) (target string, err error) {
	fd, err := unix.Openat(w.dir, part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return "", err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK && (more || last) {
		defer unix.Close(fd)
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err == nil && n == 0 {
			err = unix.ENOENT
		}
		return string(buf[:n]), err
	}
	if more && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		unix.Close(fd)
		return "", unix.ENOTDIR
	}
	w.close()
	w.dir, w.real = fd, join(w.real, part)
	return "", nil
}

// OpenReal opens a path without links below root; whoever puts a link into its way meanwhile gets ELOOP.
func OpenReal(root int, real string, flags int) (int, error) {
	if real == "" {
		return unix.Openat(root, ".", flags|unix.O_CLOEXEC, 0)
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	for range 1000 {
		fd, err := unix.Openat2(root, real, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// followed resolves the paths to follow of a view into the names that it must show: each path, and every link on the way to what it names. nil: it is the root, which hides nothing.
func (t *Tree) followed(paths []string) ([]string, error) {
	f := follower{tree: t, seen: map[string]bool{}}
	for _, p := range paths {
		if err := f.add(strings.TrimPrefix(path.Join("/", p), "/"), 0); err != nil {
			return nil, err
		}
	}
	names := make([]string, 0, len(f.seen))
	for name := range f.seen {
		names = append(names, name)
	}
	sort.Strings(names)
	return withoutInner(names), nil
}

type follower struct {
	tree *Tree
	seen map[string]bool
}

// maxFollow bounds what following links may turn up.
const maxFollow = 10000

func (f *follower) add(p string, depth int) error {
	if depth > maxLinks || len(f.seen) > maxFollow || len(p) > maxPath {
		return unix.ELOOP
	}
	parts := split(p)
	if len(parts) == 0 {
		f.seen["."] = true
		return nil
	}
	at := ""
	for i, part := range parts {
		at = join(at, part)
		targets, err := f.links(at)
		if err != nil {
			return err
		}
		end := i == len(parts)-1
		if (end || targets != nil) && f.seen[at] {
			return nil
		}
		if end || targets != nil {
			f.seen[at] = true
		}
		for _, target := range targets {
			if err := f.add(path.Join(target, strings.Join(parts[i+1:], "/")), depth+1); err != nil {
				return err
			}
		}
		if targets != nil {
			return nil
		}
	}
	return nil
}

// links gives where the path leads if it is a link, or where the links lead that its last part matches as a pattern; relative to the root.
func (f *follower) links(p string) ([]string, error) {
	dir, base := path.Split(p)
	dir = strings.TrimSuffix(dir, "/")
	if !HasWildcards(base) {
		target, err := f.link(dir, base)
		if target == "" {
			return nil, err
		}
		return []string{target}, err
	}
	fd, err := OpenReal(f.tree.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, nil // nothing there, so nothing to follow
	}
	defer unix.Close(fd)
	names, err := Names(fd)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		if ok, _ := filepath.Match(base, name); !ok {
			continue
		}
		target, err := f.link(dir, name)
		if err != nil {
			return nil, err
		}
		if target != "" {
			out = append(out, target)
		}
	}
	return out, nil
}

func (f *follower) link(dir, name string) (string, error) {
	fd, err := OpenReal(f.tree.root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return "", nil // nothing there, so nothing to follow
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil || n == 0 {
		return "", nil // no link
	}
	target := string(buf[:n])
	if !path.IsAbs(target) {
		target = path.Join("/", dir, target)
	}
	return strings.TrimPrefix(path.Clean(target), "/") + "", nil
}

// withoutInner takes those names out that lie in the one before them. nil when the root is among them.
func withoutInner(names []string) []string {
	out := make([]string, 0, len(names))
	for _, name := range names {
		if name == "." || name == "" {
			return nil
		}
		if len(out) > 0 && (name == out[len(out)-1] || strings.HasPrefix(name, out[len(out)-1]+"/")) {
			continue
		}
		out = append(out, name)
	}
	return out
}
