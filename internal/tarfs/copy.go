package tarfs

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// PathStat tells about one path of a tree, as the header of Docker's archive calls does.
type PathStat struct {
	Name       string      `json:"name"`
	Size       int64       `json:"size"`
	Mode       fs.FileMode `json:"mode"`
	Mtime      time.Time   `json:"mtime"`
	LinkTarget string      `json:"linkTarget"` // a path of the same tree
}

// place is a path of a tree, resolved: its directory is open, its last part is not followed.
type place struct {
	dir  *os.File
	real string // the directory's path below the root, without links
	name string // "" is the root itself
	stat PathStat
}

// resolve finds a path as somebody whose root is root would. A trailing "/" or "/." follows a link at the end.
func resolve(root *os.File, name string) (*place, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	at, base := split(clean)
	if base == "" || strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") {
		fd, real, err := openDir(int(root.Fd()), clean)
		if err != nil {
			return nil, missing(name, err)
		}
		if real != clean || base == "" {
			pl := &place{dir: os.NewFile(uintptr(fd), real), real: real}
			if base == "" {
				base = "/"
			}
			return pl, pl.look(base, name)
		}
		unix.Close(fd)
	}
	fd, real, err := openDir(int(root.Fd()), at)
	if err != nil {
		return nil, missing(name, err)
	}
	pl := &place{dir: os.NewFile(uintptr(fd), real), real: real, name: base}
	return pl, pl.look(base, name)
}

func missing(name string, err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return errs.New(errs.NotFound, "%s: %w", name, err)
	}
	return &os.PathError{Op: "open", Path: name, Err: err}
}

// look fills the stat; when it fails the place is closed.
func (pl *place) look(as, asked string) (err error) {
	defer func() {
		if err != nil {
			pl.dir.Close()
		}
	}()
	fd := int(pl.dir.Fd())
	if pl.name != "" {
		fd, err = unix.Openat(fd, pl.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return missing(asked, err)
		}
	} else if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), asked)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	pl.stat = PathStat{Name: as, Size: info.Size(), Mode: info.Mode(), Mtime: info.ModTime()}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := readlinkat(fd, "")
		if err != nil {
			return err
		}
		if !path.IsAbs(target) {
			target = path.Join("/", pl.real, target)
		}
		pl.stat.LinkTarget = path.Clean(target)
	}
	return nil
}

// StatPath tells about a path; links on the way resolve inside of root, one at the end is described itself. errs.NotFound.
func StatPath(root *os.File, name string) (PathStat, error) {
	pl, err := resolve(root, name)
	if err != nil {
		return PathStat{}, err
	}
	return pl.stat, pl.dir.Close()
}

// ArchivePath writes a path and all below it as an archive whose names begin with the path's last part. begin is called when the path was
// found, and gives the place to write to.
func ArchivePath(ctx context.Context, root *os.File, name string, begin func(PathStat) (io.Writer, error)) error {
	pl, err := resolve(root, name)
	if err != nil {
		return err
	}
	defer pl.dir.Close()
	out, err := begin(pl.stat)
	if err != nil {
		return err
	}
	base := pl.stat.Name
	if base == "/" || strings.HasSuffix(name, "/.") {
		base = ""
	}
	if pl.name == "" {
		return Write(ctx, pl.dir, out, WriteOptions{Root: true, Base: base})
	}
	w := newWriter(ctx, out, WriteOptions{})
	if base == "" {
		fd, err := w.openDir(int(pl.dir.Fd()), pl.name, name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := w.dirEntry(fd, "."); err != nil {
			return err
		}
		if err := w.children(fd, ""); err != nil {
			return err
		}
		return w.close()
	}
	f := w.find(int(pl.dir.Fd()), pl.name, base)
	defer f.close()
	if f.err != nil {
		return f.err
	}
	if err := w.entry(int(pl.dir.Fd()), pl.name, base, f); err != nil {
		return err
	}
	return w.close()
}

// ExtractTo extracts an archive into the directory name of root. Links, in name and in the way of the archive's names, resolve
// inside of root.
func ExtractTo(ctx context.Context, root *os.File, name string, r io.Reader, opts Options) error {
	fd, real, err := openDir(int(root.Fd()), strings.TrimPrefix(path.Clean("/"+name), "/"))
	if err == unix.ENOTDIR {
		return errs.New(errs.Invalid, "extraction point is not a directory")
	}
	if err != nil {
		return missing(name, err)
	}
	unix.Close(fd)
	opts.At = real
	_, err = Extract(ctx, root, r, opts)
	return err
}
