// Package pick says which files of a tree a step reads: a path with wildcards and links, and patterns of what to take and what to leave.
//
// It owns nothing. A tree is given as an open directory; it may be one that somebody changes at the same time, or made to mislead. The package promises that no name leads out of it:
// every step of a path is one single name opened in a directory that is held open, links are read and resolved as if the directory were "/", at most [maxLinks] of them, and what is found
// is handed out as a descriptor. Nothing but directories and links is opened.
//
// Who takes a checksum and who copies ask the same [Tree] with the same [Selection], so that the one covers what the other takes.
package pick

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// Selection chooses files of a tree.
type Selection struct {
	// Path is what is read: a file, a link, or a directory with all in it. "" is "/".
	Path string
	// Wildcard: the parts of Path are patterns (path/filepath.Match).
	Wildcard bool
	// Follow: a link at the end of Path stands for what it leads to.
	Follow bool
	// Contents: of a directory only what is in it counts, not its own mode and owner.
	Contents bool
	// Include and Exclude choose by patterns as in .dockerignore, relative to what Path names. No Include is everything.
	Include, Exclude []string
	// Required are paths one of which each must begin what is chosen; errs.NotFound.
	Required []string
}

// View hides files of a tree, as fsutil.FilterOpt does: patterns relative to the tree's root.
type View struct {
	Include, Exclude, Follow []string
}

// Tree is a tree to pick from.
type Tree struct {
	root    int
	include *filter // of the view; nil takes everything
	exclude *filter
	// Resolved are the view's patterns once its links were followed, in words: equal ones hide the same of equal trees.
	Resolved string
}

// New looks at the tree below root, which stays the caller's.
func New(root *os.File, view View) (*Tree, error) {
	t := &Tree{root: int(root.Fd())}
	include := view.Include
	if len(view.Follow) > 0 {
		targets, err := t.followed(view.Follow)
		if err != nil {
			return nil, err
		}
		// A target that is the root itself (nil) takes nothing away from what is included anyway.
		if targets != nil {
			include = withoutInner(append(append([]string(nil), include...), targets...))
		}
	}
	var err error
	if t.include, err = newFilter("include", include); err != nil {
		return nil, err
	}
	if t.exclude, err = newFilter("exclude", view.Exclude); err != nil {
		return nil, err
	}
	t.Resolved = strings.Join(include, "\x00") + "\x01" + strings.Join(view.Exclude, "\x00")
	return t, nil
}

// Match is one thing that a selection's path names.
type Match struct {
	// Name is the last part of the path as it was asked for, which is the name of a copy in a directory; "." when the path has none ("/", "dir/.").
	Name string
	// Path is the path as it was asked for or matched, Real where it is without links; both relative to the root, "" is the root.
	Path, Real string
	// Fd is a handle (O_PATH) of it. Close it.
	Fd   int
	Stat unix.Stat_t
	// Parent holds the directory of Real, for the calls that take a directory and a name; -1 for the root.
	Parent int
	Base   string
	// At is what the patterns say about it.
	At Cursor
}

// Close lets go of the descriptors.
func (m *Match) Close() {
	unix.Close(m.Fd)
	if m.Parent >= 0 {
		unix.Close(m.Parent)
	}
}

// IsDir tells a directory.
func (m *Match) IsDir() bool { return m.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// HasWildcards tells whether a path has a part that is a pattern.
func HasWildcards(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// Matches finds what the selection's path names, sorted. Without wildcards there is one match or errs.NotFound. The view hides; the patterns of the selection do not count here.
func (t *Tree) Matches(sel Selection) (all []*Match, err error) {
	filters, err := newPair(sel)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			for _, m := range all {
				m.Close()
			}
			all = nil
		}
	}()
	paths := []string{trail(sel.Path)}
	wild := sel.Wildcard && HasWildcards(sel.Path)
	if wild {
		if paths, err = t.expand(sel.Path); err != nil {
			return nil, err
		}
	}
	for _, p := range paths {
		m, err := t.match(p, sel.Follow)
		if err == nil && !t.reach(m, filters) {
			m.Close()
			err = unix.ENOENT
		}
		if wild && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP)) {
			continue // a link that leads nowhere, or gone meanwhile
		}
		if err != nil {
			return all, missing(p, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// missing gives the words that people know.
func missing(name string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return errs.New(errs.NotFound, "%q: not found", path.Join("/", name))
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) {
		return errs.New(errs.Invalid, "%q: %w", path.Join("/", name), err)
	}
	return &os.PathError{Op: "open", Path: path.Join("/", name), Err: err}
}

// trail cleans a path and keeps what its end says: "/." for the thing's inside.
func trail(name string) string {
	clean := strings.TrimPrefix(path.Join("/", name), "/")
	if strings.HasSuffix(name, "/.") && clean != "" {
		clean += "/."
	}
	return clean
}

// Paths gives what a pattern matches, without regard to a view.
func (t *Tree) Paths(pattern string) ([]string, error) { return t.expand(pattern) }

func (t *Tree) match(name string, follow bool) (*Match, error) {
	clean, inside := strings.CutSuffix(name, "/.")
	real, err := Resolve(t.root, clean, follow || inside)
	if err != nil {
		return nil, err
	}
	m := &Match{Name: path.Base(clean), Path: clean, Real: real, Parent: -1}
	if clean == "" || inside {
		m.Name = "."
	}
	if real == "" {
		if m.Fd, err = unix.Openat(t.root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, err
		}
	} else {
		dir, base := path.Split(real)
		m.Base = base
		if m.Parent, err = OpenReal(t.root, strings.TrimSuffix(dir, "/"), unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return nil, err
		}
		if m.Fd, err = unix.Openat(m.Parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			unix.Close(m.Parent)
			return nil, err
		}
	}
	if err := unix.Fstat(m.Fd, &m.Stat); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// reach walks the view's patterns down to the match. It answers whether the match is in the view, or something below it may be.
func (t *Tree) reach(m *Match, sel *pair) bool {
	at := Cursor{view: state{include: t.include, exclude: t.exclude}, sel: state{include: sel.include, exclude: sel.exclude}, Included: true}
	done := ""
	for _, part := range split(m.Real) {
		done = join(done, part)
		in, deeper, next := at.view.step(done, true)
		at.view, at.Included = next, in
		if !in && (!deeper || !m.IsDir() && done == m.Real) {
			return false
		}
	}
	at.viewPath, at.selPath = m.Real, ""
	if m.Stat.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return false // a socket without its process is nothing, and no layer has any
	}
	m.At = at
	return true
}

// expand gives the paths that match a pattern, sorted. Links in the part before the first wildcard are followed, those behind it are not. What matches is not looked into.
func (t *Tree) expand(pattern string) ([]string, error) {
	parts := split(path.Join("/", pattern))
	n := 0
	for n < len(parts) && !HasWildcards(parts[n]) {
		n++
	}
	prefix := parts[:n] // as it is, backslashes too, like a path without wildcards
	if n == len(parts) {
		return []string{strings.Join(prefix, "/")}, nil // dots took the wildcards out
	}
	real, err := Resolve(t.root, strings.Join(prefix, "/"), true)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, missing(pattern, err)
	}
	fd, err := OpenReal(t.root, real, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, missing(pattern, err)
	}
	var found []string
	err = glob(os.NewFile(uintptr(fd), real), strings.Join(prefix, "/"), parts[n:], &found)
	return found, err
}

// glob adds the paths below dir that match the parts. It closes dir.
func glob(dir *os.File, at string, parts []string, found *[]string) error {
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	sort.Strings(names)
	for _, name := range names {
		ok, err := filepath.Match(parts[0], name)
		if err != nil {
			return errs.New(errs.Invalid, "pattern %q: %w", strings.Join(parts, "/"), err)
		}
		if !ok {
			continue
		}
		if len(parts) == 1 {
			*found = append(*found, join(at, name))
			continue
		}
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOTDIR || err == unix.ELOOP || err == unix.ENOENT {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: join(at, name), Err: err}
		}
		if err := glob(os.NewFile(uintptr(fd), name), join(at, name), parts[1:], found); err != nil {
			return err
		}
	}
	return nil
}

func split(p string) (parts []string) {
	for _, part := range strings.Split(p, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return parts
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}
