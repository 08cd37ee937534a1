// Package copied turns local files into a tar stream and back, for copies to and from containers and for what builds read and write here.
//
// It owns the rules of where a copy lands (docker's, which are cp's), what tells an archive from other input, and the
// care that an archive, which may be hostile, never writes outside the destination: all writing goes through [os.Root].
// It promises links, modes, times and file capabilities as they are; owners only when asked for.
package copied

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
)

// Source is a local file or folder to copy.
type Source struct {
	path    string
	Base    string // its own name
	IsDir   bool
	Content bool // written as dir/.: its content is meant
}

// Open looks at a local path. follow resolves the path itself if it is a link.
func Open(name string, follow bool) (*Source, error) {
	content := strings.HasSuffix(name, string(filepath.Separator)+".") || name == "."
	slash := os.IsPathSeparator(name[len(name)-1])
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	st, err := os.Lstat(abs)
	if err == nil && st.Mode()&fs.ModeSymlink != 0 && (follow || slash || content) {
		if abs, err = filepath.EvalSymlinks(abs); err == nil {
			st, err = os.Lstat(abs)
		}
	}
	if err != nil {
		return nil, err
	}
	if (slash || content) && !st.IsDir() {
		return nil, errs.New(errs.Invalid, "%s: not a directory", name)
	}
	base := filepath.Base(abs)
	if follow {
		base = filepath.Base(strings.TrimRight(name, string(filepath.Separator)))
	}
	return &Source{path: abs, Base: base, IsDir: st.IsDir(), Content: content}, nil
}

// Write writes the tar stream; the source itself is called rename in it. A file with several names in it stays one file.
func (s *Source) Write(w io.Writer, rename string) error {
	tw := tar.NewWriter(w)
	names := map[[2]uint64]string{} // the first of each such file
	err := filepath.WalkDir(s.path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(s.path, p)
		if err != nil {
			return err
		}
		return writeEntry(tw, p, path.Join(rename, filepath.ToSlash(rel)), names)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, name, as string, names map[[2]uint64]string) error {
	st, err := os.Lstat(name)
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return nil // a socket has no content, and tar no word for it
	}
	link := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = as, "", ""
	if st.IsDir() {
		h.Name += "/"
	}
	if !st.Mode().IsRegular() {
		return tw.WriteHeader(h)
	}
	if id, several := inode(st); several {
		if first := names[id]; first != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return tw.WriteHeader(h)
		}
		names[id] = as
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if caps := capabilities(f); caps != "" {
		h.PAXRecords = map[string]string{paxCapabilities: caps}
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	// A file may grow meanwhile: its announced length counts.
	if _, err := io.CopyN(tw, f, h.Size); err == io.EOF {
		return fmt.Errorf("%s became shorter while it was read", name)
	} else if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// paxCapabilities is the record of what a program may do without its user being root (security.capability), the one extended attribute that docker's cp takes along.
const paxCapabilities = "SCHILY.xattr.security.capability"

// Target is where an archive lands: its first name From becomes To inside Dir.
type Target struct {
	Dir      string
	From, To string
}

// Destination applies cp's rules to a copy of src (a path in a container, a folder or not) to a local path.
func Destination(src string, srcIsDir bool, dst string) (Target, error) {
	base := path.Base(path.Clean("/" + src)) // "/a/.." is the root as well
	if strings.HasSuffix(src, "/.") || base == "/" {
		base = "." // its content is meant, and the names in the archive have no first part in common
	}
	slash := os.IsPathSeparator(dst[len(dst)-1]) || strings.HasSuffix(dst, string(filepath.Separator)+".")
	abs, err := filepath.Abs(dst)
	if err != nil {
		return Target{}, err
	}
	st, err := os.Stat(abs)
	switch {
	case err == nil && st.IsDir():
		return Target{Dir: abs, From: base, To: base}, nil
	case err == nil && srcIsDir:
		return Target{}, errs.New(errs.Invalid, "cannot copy directory")
	case err == nil && slash:
		return Target{}, errs.New(errs.Invalid, "not a directory")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Target{}, err
	case err != nil && !srcIsDir && slash:
		return Target{}, errs.New(errs.Invalid, "no such directory")
	}
	if up, err := os.Stat(filepath.Dir(abs)); err != nil || !up.IsDir() {
		return Target{}, errs.New(errs.NotFound, "invalid output path: directory %q does not exist", filepath.Dir(abs))
	}
	return Target{Dir: filepath.Dir(abs), From: base, To: filepath.Base(abs)}, nil
}

// unreadNote is what the engine says at the end about files that could not be read (tarfs.UnreadNote there): all else has come.
const unreadNote = "CORTEN.unread"

// Extract unpacks the stream at the target. It reads r to its end, where alone a connection tells that nothing was cut off; the last file gets its name after that.
func Extract(r io.Reader, t Target, owners bool) (err error) {
	root, err := os.OpenRoot(t.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	x := extractor{root: root, owners: owners}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.dropLast())
		}
	}()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			if _, err := io.Copy(io.Discard, r); err != nil {
				return fmt.Errorf("read archive: %w", err)
			}
			if err := x.placeLast(); err != nil {
				return err
			}
			return finish(x.root, x.dirs)
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := x.placeLast(); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			if text := h.PAXRecords[unreadNote]; text != "" {
				return errors.Join(finish(x.root, x.dirs), errs.New(errs.Unavailable, "%s", text))
			}
			continue
		}
		name, ok := t.rename(h.Name)
		if !ok {
			return errs.New(errs.Invalid, "archive has %q outside of what was asked for", h.Name)
		}
		if h.Typeflag == tar.TypeLink {
			if h.Linkname, ok = t.rename(h.Linkname); !ok {
				return errs.New(errs.Invalid, "archive links %q to %q outside of what was asked for", h.Name, h.Linkname)
			}
		}
		if err := x.entry(name, h, tr); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Join(t.Dir, name), err)
		}
	}
}

// rename maps a name in the archive to one in the destination folder.
func (t Target) rename(name string) (string, bool) {
	clean := path.Clean(name)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", false
	}
	if t.From == "." || t.From == "/" {
		return filepath.FromSlash(path.Join(filepath.ToSlash(t.To), clean)), true
	}
	rest, ok := strings.CutPrefix(clean, t.From)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return filepath.FromSlash(path.Join(filepath.ToSlash(t.To), rest)), true
}

type extractor struct {
	root   *os.Root
	owners bool
	last   asideFile
	dirs   []dirState
}

// asideFile is one that is complete and not yet in its place; none when aside is empty.
type asideFile struct{ aside, name string }

// placeLast gives the last file its name.
func (x *extractor) placeLast() error {
	f := x.last
	if f.aside == "" {
		return nil
	}
	if err := x.root.Rename(f.aside, f.name); err != nil {
		return err
	}
	x.last = asideFile{}
	return nil
}

// dropLast removes it instead.
func (x *extractor) dropLast() error {
	if x.last.aside == "" {
		return nil
	}
	return x.root.Remove(x.last.aside)
}

// dirState is set at the end: writing into a folder changes its time, and its mode may forbid it.
type dirState struct {
	name string
	mode fs.FileMode
	time time.Time
}

func (x *extractor) entry(name string, h *tar.Header, r io.Reader) error {
	mode := h.FileInfo().Mode()
	perm := mode & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if h.Typeflag != tar.TypeDir && h.Typeflag != tar.TypeReg && name != "." {
		if err := x.clear(name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if st, err := x.root.Lstat(name); err == nil && !st.IsDir() {
			return errs.New(errs.Conflict, "cannot overwrite non-directory with a directory")
		} else if err != nil {
			if err := x.root.Mkdir(name, 0o700); err != nil {
				return err
			}
		}
		x.dirs = append(x.dirs, dirState{name, perm, h.ModTime})
		return x.own(name, h)
	case tar.TypeReg:
		return x.file(name, h, perm, r)
	case tar.TypeSymlink:
		if err := x.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return errors.Join(x.own(name, h), linkTime(x.root, name, h.ModTime))
	case tar.TypeLink:
		return x.root.Link(h.Linkname, name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		if err := node(x.root, name, h, perm); err != nil {
			return err
		}
		return x.own(name, h)
	}
	return errs.New(errs.Invalid, "archive has an entry of unknown type %q", h.Typeflag)
}

// clear makes room: what is there goes, unless it is a folder.
func (x *extractor) clear(name string) error {
	st, err := x.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		return errs.New(errs.Conflict, "cannot overwrite directory with a non-directory")
	}
	return x.root.Remove(name)
}

// file writes aside and renames: a copy that fails, or is killed, leaves what was there, and never half a file under the name that was asked for.
func (x *extractor) file(name string, h *tar.Header, perm fs.FileMode, r io.Reader) (err error) {
	if st, err := x.root.Lstat(name); err == nil && st.IsDir() {
		return errs.New(errs.Conflict, "cannot overwrite directory with a non-directory")
	}
	aside := filepath.Join(filepath.Dir(name), fmt.Sprintf(".corten-cp-%x", rand.Uint64()))
	f, err := x.root.OpenFile(aside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.root.Remove(aside))
		}
	}()
	_, err = io.Copy(f, r)
	err = errors.Join(err, x.own(aside, h), f.Chmod(perm))
	if caps := h.PAXRecords[paxCapabilities]; caps != "" { // after the owner, whose change takes them away
		err = errors.Join(err, setCapabilities(f, caps))
	}
	// A file must be closed before Windows lets it be renamed.
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := x.root.Chtimes(aside, h.ModTime, h.ModTime); err != nil {
		return err
	}
	x.last = asideFile{aside, name}
	return nil
}

func (x *extractor) own(name string, h *tar.Header) error {
	if !x.owners {
		return nil
	}
	return x.root.Lchown(name, h.Uid, h.Gid)
}

// finish sets what folders shall look like, the deepest first.
func finish(root *os.Root, dirs []dirState) error {
	for i := len(dirs) - 1; i >= 0; i-- {
		d := dirs[i]
		st, err := root.Lstat(d.name)
		if err != nil || !st.IsDir() { // a later entry replaced it
			continue
		}
		if err := errors.Join(root.Chmod(d.name, d.mode), root.Chtimes(d.name, d.time, d.time)); err != nil {
			return err
		}
	}
	return nil
}
