package frontend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/patternmatcher"
	fstypes "github.com/tonistiigi/fsutil/types"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
)

const (
	maxFile    = 16<<20 + 1 // bytes of one answer; BuildKit's own frontends ask for one more than they accept
	maxEntries = 100_000    // of one directory
)

// tree is an open result. Nothing outside of its root can be reached through it.
type tree struct {
	root    *os.File
	exclude *patternmatcher.PatternMatcher // of a build context; nil: everything is there
	include *patternmatcher.PatternMatcher
	owner   *[2]uint32 // of all files, if set
	close   func()
}

func openTree(ctx context.Context, trees Trees, out build.Output) (*tree, error) {
	if out.Files != nil {
		return openFiles(out.Files)
	}
	m, err := trees.View(ctx, out.Chain)
	if err != nil {
		return nil, fmt.Errorf("open result: %w", err)
	}
	return &tree{root: m.Root, close: func() { _ = m.Close() }}, nil // a view that is let go of: nothing was written
}

// openFiles takes a descriptor of its own: the session may end while the tree is read.
func openFiles(files *build.Files) (*tree, error) {
	fd, _, errno := syscall.Syscall(syscall.SYS_FCNTL, files.Root.Fd(), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return nil, fmt.Errorf("open build context: %w", errno)
	}
	root := os.NewFile(fd, "context")
	t := &tree{root: root, owner: files.Owner, close: func() { _ = root.Close() }}
	var err error
	if len(files.Exclude) > 0 {
		if t.exclude, err = patternmatcher.New(files.Exclude); err != nil {
			return nil, errors.Join(errs.New(errs.Invalid, "exclude patterns: %w", err), root.Close())
		}
	}
	if len(files.Include) > 0 {
		if t.include, err = patternmatcher.New(files.Include); err != nil {
			return nil, errors.Join(errs.New(errs.Invalid, "include patterns: %w", err), root.Close())
		}
	}
	return t, nil
}

// chosen tells whether a name belongs to the tree. Directories on the way to what is included do.
func (t *tree) chosen(name string, dir bool) (bool, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return true, nil
	}
	if t.exclude != nil {
		if out, err := t.exclude.MatchesOrParentMatches(name); err != nil || out && !(dir && t.exclude.Exclusions()) {
			return false, err
		}
	}
	if t.include != nil && !dir {
		return t.include.MatchesOrParentMatches(name)
	}
	return true, nil
}

// here refuses what the patterns leave out.
func (t *tree) here(name string, dir bool) error {
	ok, err := t.chosen(name, dir)
	if err != nil {
		return errs.New(errs.Invalid, "patterns of the build context: %w", err)
	}
	if !ok {
		return errs.As(errs.NotFound, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist})
	}
	return nil
}

// plain gives the kind that frontends ask for; the text names the file within the tree.
func plain(op, name string, err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		err = &fs.PathError{Op: op, Path: name, Err: no}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return errs.As(errs.NotFound, err)
	}
	return err
}

func (t *tree) readFile(req gateway.ReadRequest) ([]byte, error) {
	if err := t.here(req.Filename, false); err != nil {
		return nil, err
	}
	f, err := safefs.Open(t.root, req.Filename, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, plain("open", req.Filename, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errs.New(errs.Invalid, "read %s: not a regular file", req.Filename)
	}
	offset, length := int64(0), int64(maxFile)
	if r := req.Range; r != nil {
		if r.Offset < 0 || r.Length < 0 {
			return nil, errs.New(errs.Invalid, "read %s: negative range", req.Filename)
		}
		offset = int64(r.Offset)
		if r.Length > 0 {
			length = min(length, int64(r.Length))
		}
	}
	if req.Range == nil && st.Size() >= maxFile {
		return nil, errs.New(errs.Invalid, "read %s: %d bytes are too many for one answer: read it in ranges", req.Filename, st.Size())
	}
	data, err := io.ReadAll(io.NewSectionReader(f, offset, length))
	if err != nil {
		return nil, plain("read", req.Filename, err)
	}
	return data, nil
}

func (t *tree) stat(name string) (*fstypes.Stat, error) {
	f, err := safefs.Open(t.root, name, safefs.Handle, 0)
	if err != nil {
		return nil, plain("stat", name, err)
	}
	defer f.Close()
	st, err := t.describe(f, path.Base(path.Clean("/"+name)))
	if err != nil {
		return nil, err
	}
	return st, t.here(name, st.IsDir())
}

// describe gives an open handle's attributes as the file sync protocol has them.
func (t *tree) describe(f *os.File, name string) (*fstypes.Stat, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st := &fstypes.Stat{Path: name, Mode: uint32(info.Mode()), ModTime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.Uid, st.Gid = sys.Uid, sys.Gid
		if info.Mode()&os.ModeDevice != 0 {
			st.Devmajor, st.Devminor = device(sys.Rdev)
		}
	}
	if t.owner != nil {
		st.Uid, st.Gid = t.owner[0], t.owner[1]
	}
	switch {
	case info.Mode().IsRegular():
		st.Size = info.Size()
	case info.Mode()&os.ModeSymlink != 0:
		if st.Linkname, err = safefs.Readlink(f); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// device splits a device number as Linux packs it.
func device(rdev uint64) (major, minor int64) {
	return int64(rdev>>8&0xfff | rdev>>32&^0xfff), int64(rdev&0xff | rdev>>12&^0xff)
}

func (t *tree) readDir(req gateway.ReadDirRequest) ([]*fstypes.Stat, error) {
	if req.IncludePattern != "" {
		if _, err := path.Match(req.IncludePattern, ""); err != nil {
			return nil, errs.New(errs.Invalid, "pattern %q: %w", req.IncludePattern, err)
		}
	}
	dir, err := safefs.Open(t.root, req.Path, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, plain("open", req.Path, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, plain("read", req.Path, err)
	}
	if len(names) == maxEntries {
		return nil, errs.New(errs.Invalid, "directory %s has more than %d entries", req.Path, maxEntries-1)
	}
	slices.Sort(names)
	var list []*fstypes.Stat
	for _, name := range names {
		if req.IncludePattern != "" {
			if ok, _ := path.Match(req.IncludePattern, name); !ok { // the pattern was tried above
				continue
			}
		}
		st, err := t.entry(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, plain("stat", path.Join(req.Path, name), err)
		}
		if ok, err := t.chosen(path.Join(req.Path, name), st.IsDir()); err != nil {
			return nil, errs.New(errs.Invalid, "patterns of the build context: %w", err)
		} else if ok {
			list = append(list, st)
		}
	}
	return list, nil
}

func (t *tree) entry(dir *os.File, name string) (*fstypes.Stat, error) {
	f, err := safefs.Open(dir, name, safefs.Handle|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return t.describe(f, name)
}
