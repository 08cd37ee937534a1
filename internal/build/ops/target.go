package ops

import (
	"crypto/rand"
	"errors"
	"os"
	"path"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
)

// defaultDir is the mode of directories that nobody described.
const defaultDir = 0o755

// look says what is there; path has no links.
func (w *work) look(real string) (st unix.Stat_t, err error) {
	fd, err := pick.OpenReal(w.root, real, unix.O_PATH)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

func isDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// parent opens the directory that a path without links is in.
func (w *work) parent(real string) (fd int, base string, err error) { return parentIn(w.root, real) }

func parentIn(root int, real string) (fd int, base string, err error) {
	dir, base := path.Split(real)
	fd, err = pick.OpenReal(root, strings.TrimSuffix(dir, "/"), unix.O_RDONLY|unix.O_DIRECTORY)
	return fd, base, err
}

// fresh is how new directories are made.
type fresh struct {
	mode uint32
	own  *owner
	time *time.Time
}

// mkdirAll makes what is missing of a path without links. It tells the directories that it made, for their times.
func (w *work) mkdirAll(real string, how fresh) (made []string, err error) {
	if real == "" {
		return nil, nil
	}
	if st, err := w.look(real); err == nil {
		if !isDir(&st) {
			return nil, &os.PathError{Op: "mkdir", Path: "/" + real, Err: unix.ENOTDIR}
		}
		return nil, nil
	}
	dir, err := unix.Openat(w.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { unix.Close(dir) }()
	at := ""
	for _, part := range strings.Split(real, "/") {
		at = strings.TrimPrefix(at+"/"+part, "/")
		err := unix.Mkdirat(dir, part, how.mode)
		if err != nil && err != unix.EEXIST {
			return made, &os.PathError{Op: "mkdir", Path: "/" + at, Err: err}
		}
		next, oerr := unix.Openat(dir, part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if oerr != nil {
			return made, &os.PathError{Op: "mkdir", Path: "/" + at, Err: oerr}
		}
		unix.Close(dir)
		dir = next
		if err == nil {
			made = append(made, at)
			if err := how.describe(dir); err != nil {
				return made, &os.PathError{Op: "mkdir", Path: "/" + at, Err: err}
			}
		}
	}
	return made, nil
}

// describe gives an open directory what it should have, whatever the umask is.
func (how fresh) describe(fd int) error {
	if how.own != nil {
		if err := unix.Fchown(fd, how.own.uid, how.own.gid); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, how.mode); err != nil {
		return err
	}
	return setTime(fd, "", how.time)
}

// setTime sets both times of what name is in a directory held open, or of the open file itself when name is "". nil leaves them.
func setTime(fd int, name string, t *time.Time) error {
	if t == nil {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return setTimes(fd, name, ts, ts)
}

func setTimes(fd int, name string, atime, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{atime, mtime}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		return futimens(fd, &ts)
	}
	return unix.UtimesNanoAt(fd, name, ts[:], flags)
}

// settle gives directories that were made their time again: what was put into them since has moved it.
func (w *work) settle(made []string, t *time.Time) error {
	if t == nil {
		return nil
	}
	for i := len(made) - 1; i >= 0; i-- {
		fd, err := pick.OpenReal(w.root, made[i], unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return &os.PathError{Op: "open", Path: "/" + made[i], Err: err}
		}
		err = setTime(fd, "", t)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// inTree gives the place of an action's path: links on the way and at its end resolved within the tree.
func (w *work) inTree(name string) (string, error) {
	real, err := pick.ResolveNew(w.root, path.Join("/", name), true)
	if err != nil {
		return "", &os.PathError{Op: "find", Path: name, Err: err}
	}
	return real, nil
}

func (w *work) mkdir(a *pb.FileActionMkDir, own *owner) error {
	real, err := w.inTree(a.Path)
	if err != nil {
		return err
	}
	how := fresh{uint32(a.Mode) & 0o777, own, when(a.Timestamp)}
	if !a.MakeParents {
		dir, _, err := w.parent(real)
		if err != nil {
			return &os.PathError{Op: "mkdir", Path: path.Join("/", a.Path), Err: err}
		}
		unix.Close(dir)
	}
	made, err := w.mkdirAll(real, how)
	if err != nil {
		return err
	}
	return w.settle(made, how.time)
}

// mkfile writes a new file aside and renames it: what stands there is replaced, and never written through, be it a device.
func (w *work) mkfile(a *pb.FileActionMkFile, own *owner) error {
	fail := func(err error) error { return &os.PathError{Op: "mkfile", Path: path.Join("/", a.Path), Err: err} }
	real, err := w.inTree(a.Path)
	if err != nil {
		return err
	}
	if real == "" {
		return fail(unix.EISDIR)
	}
	dir, base, err := w.parent(real)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	aside := ".corten-" + rand.Text()
	fd, err := unix.Openat(dir, aside, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), a.Path)
	_, err = f.Write(a.Data)
	if err == nil && own != nil {
		err = unix.Fchown(fd, own.uid, own.gid)
	}
	if err == nil {
		err = unix.Fchmod(fd, uint32(a.Mode)&0o777)
	}
	if err == nil {
		err = setTime(fd, "", when(a.Timestamp))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = unix.Renameat(dir, aside, dir, base)
	}
	if err != nil {
		return fail(errors.Join(err, unix.Unlinkat(dir, aside, 0)))
	}
	return nil
}

func (w *work) symlink(a *pb.FileActionSymlink, own *owner) error {
	fail := func(err error) error { return &os.PathError{Op: "symlink", Path: path.Join("/", a.Newpath), Err: err} }
	real, err := w.inTree(a.Newpath)
	if err != nil {
		return err
	}
	if real == "" {
		return fail(unix.EEXIST)
	}
	dir, base, err := w.parent(real)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	if err := unix.Symlinkat(a.Oldpath, dir, base); err != nil {
		return fail(err)
	}
	if own != nil {
		if err := unix.Fchownat(dir, base, own.uid, own.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail(err)
		}
	}
	if err := setTime(dir, base, when(a.Timestamp)); err != nil {
		return fail(err)
	}
	return nil
}

func (w *work) rm(a *pb.FileActionRm) error {
	names := []string{path.Join("/", a.Path)}
	if a.AllowWildcard && pick.HasWildcards(a.Path) {
		tree, err := pick.New(w.m.Root, pick.View{})
		if err != nil {
			return err
		}
		found, err := tree.Paths(a.Path)
		if err != nil {
			return err
		}
		names = found
	}
	for _, name := range names {
		if err := w.remove(name, a.AllowNotFound); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) remove(name string, missing bool) error {
	fail := func(err error) error { return &os.PathError{Op: "rm", Path: path.Join("/", name), Err: err} }
	if path.Join("/", name) == "/" {
		return errs.New(errs.Invalid, "rm /: the root cannot be removed")
	}
	real, err := pick.Resolve(w.root, name, false)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		if missing {
			return nil
		}
		return errs.As(errs.NotFound, fail(unix.ENOENT))
	}
	if err != nil {
		return fail(err)
	}
	if real == "" {
		return errs.New(errs.Invalid, "rm %s: the root cannot be removed", name)
	}
	dir, base, err := w.parent(real)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	if err := removeAt(dir, base); err != nil {
		return fail(err)
	}
	return nil
}

// removeAt removes a name and all below it; links are removed, not followed.
func removeAt(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		names, err := f.Readdirnames(1000)
		for _, n := range names {
			if err := removeAt(fd, n); err != nil && err != unix.ENOENT {
				return err
			}
		}
		if len(names) == 0 || err != nil {
			break
		}
		// What was removed may have moved what was not listed yet: from the beginning again.
		if _, err := f.Seek(0, 0); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
