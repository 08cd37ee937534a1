package copied

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
)

// unpacker writes a tar below a folder. Every path is resolved within the folder by the system (os.Root): neither names nor links in the archive lead out of it.
type unpacker struct {
	root *os.Root
	// skip: what we may not or cannot make (devices) is left out instead of being an error.
	skip bool
	dirs []dirState
}

// UnpackTree writes the result of a build to a folder, as the user who asked for it: files replace files that are there, owners are not kept.
func UnpackTree(dir string, r io.Reader) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return unpack(dir, r, false)
}

// UnpackContext writes an archive from standard input to an empty folder.
func UnpackContext(dir string, r io.Reader) error { return unpack(dir, r, true) }

func unpack(dir string, r io.Reader, skip bool) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	u := &unpacker{root: root, skip: skip}
	tr := tar.NewReader(bufio.NewReaderSize(r, 128<<10))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return errors.Join(finish(u.root, u.dirs), drained(r))
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// drained reads what follows an archive's end, so that who writes it is not cut off.
func drained(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	name := path.Clean(strings.TrimPrefix(path.Clean("/"+h.Name), "/"))
	mode := h.FileInfo().Mode()
	perm := mode.Perm() | mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)
	if name == "." {
		return nil
	}
	if dir := path.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(name, perm, h.ModTime)
	case tar.TypeReg:
		if err := u.clear(name); err != nil {
			return err
		}
		return u.file(name, perm, h.ModTime, r)
	case tar.TypeSymlink:
		if err := u.clear(name); err != nil {
			return err
		}
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return linkTime(u.root, name, h.ModTime)
	case tar.TypeLink:
		if err := u.clear(name); err != nil {
			return err
		}
		return u.root.Link(path.Clean(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")), name)
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	default:
		return errs.New(errs.Invalid, "an entry of type %q is not known", h.Typeflag)
	}
	if u.skip {
		return nil
	}
	if err := u.clear(name); err != nil {
		return err
	}
	return node(u.root, name, h, perm)
}

func (u *unpacker) dir(name string, mode fs.FileMode, at time.Time) error {
	if st, err := u.root.Lstat(name); err != nil || !st.IsDir() {
		if err := u.clear(name); err != nil {
			return err
		}
		if err := u.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	u.dirs = append(u.dirs, dirState{name, mode, at})
	return nil
}

// clear takes away what is in the way: a file or a link, never a folder with something in it.
func (u *unpacker) clear(name string) error {
	err := u.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (u *unpacker) file(name string, mode fs.FileMode, at time.Time, r io.Reader) error {
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return u.root.Chtimes(name, at, at)
}
