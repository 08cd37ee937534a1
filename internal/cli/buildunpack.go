package cli

import (
	"archive/tar"
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"corten.dev/corten/internal/cli/copied"
	"corten.dev/corten/internal/errs"
)

// unpacker writes a tar below a folder. Every path is resolved within the folder by the system (os.Root): neither names nor links in the archive lead out of it.
type unpacker struct {
	root *os.Root
	// skip: what we may not or cannot make (devices) is left out instead of being an error.
	skip bool
	dirs []dirTime
}

// dirTime is set at the end: writing into a folder changes its time, and its mode may forbid it.
type dirTime struct {
	name string
	mode fs.FileMode
	time time.Time
}

// unpackTree writes the result of a build to a folder, as the user who asked for it: files replace files that are there, owners are not kept.
func unpackTree(dir string, r io.Reader) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return unpack(dir, r, false)
}

// unpackContext writes an archive from standard input to an empty folder.
func unpackContext(dir string, r io.Reader) error { return unpack(dir, r, true) }

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
			return errors.Join(u.finish(), drained(r))
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
		return copied.LinkTime(u.root, name, h.ModTime)
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
	return copied.Node(u.root, name, h, perm)
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
	u.dirs = append(u.dirs, dirTime{name, mode, at})
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

// finish gives folders their mode and time, the innermost first.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if err := u.root.Chtimes(d.name, d.time, d.time); err != nil {
			return err
		}
		if err := u.root.Chmod(d.name, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// decompress undoes the compression that the first bytes tell. The client carries no library for what the standard one lacks, as the engine does (internal/compressed): every command would start slower.
func decompress(in io.Reader, head []byte) (io.ReadCloser, error) {
	switch name := compression(head); name {
	case "":
		return io.NopCloser(in), nil
	case "gzip":
		return gzip.NewReader(in)
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(in)), nil
	default:
		return through(name, in)
	}
}

// through runs a program that unpacks its standard input.
func through(name string, in io.Reader) (io.ReadCloser, error) {
	program, err := exec.LookPath(name)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "the context is compressed by %s, and that program is not installed", name)
	}
	cmd := exec.Command(program, "-d", "-c")
	cmd.Stdin = in
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &unpacking{ReadCloser: out, cmd: cmd}, nil
}

type unpacking struct {
	io.ReadCloser
	cmd *exec.Cmd
}

// Close waits for the program: an archive that it found broken is an error.
func (u *unpacking) Close() error {
	_, err := io.Copy(io.Discard, u.ReadCloser)
	return errors.Join(err, u.cmd.Wait())
}
