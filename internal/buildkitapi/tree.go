package buildkitapi

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"corten.dev/corten/internal/errs"
)

// spooled is a tree that came as a tar, for fsutil's sender, which reads files in the order that the receiver wants. The content lies in an unlinked file.
type spooled struct {
	file    *os.File
	entries []*types.Stat
	at      map[string]span
}

type span struct{ from, size int64 }

// spool reads a whole tar.
func spool(r io.Reader) (_ *spooled, err error) {
	f, err := os.CreateTemp("", "corten-output-")
	if err != nil {
		return nil, err
	}
	s := &spooled{file: f, at: map[string]span{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	tr := tar.NewReader(r)
	for pos := int64(0); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		st, err := statOf(h)
		if err != nil {
			return nil, err
		}
		if st.Path == "" {
			continue // the root is the receiver's
		}
		s.entries = append(s.entries, st)
		if h.Typeflag != tar.TypeReg {
			continue
		}
		n, err := io.Copy(f, tr)
		if err != nil {
			return nil, err
		}
		s.at[st.Path] = span{pos, n}
		pos += n
	}
	slices.SortFunc(s.entries, func(a, b *types.Stat) int { return fsutil.ComparePath(a.Path, b.Path) })
	return s, s.firstLinks()
}

// statOf is a tar header in fsutil's words.
func statOf(h *tar.Header) (*types.Stat, error) {
	st := &types.Stat{
		Path: clean(h.Name), Uid: uint32(h.Uid), Gid: uint32(h.Gid), Size: h.Size, ModTime: h.ModTime.UnixNano(), Linkname: h.Linkname, Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	case tar.TypeLink:
		st.Linkname, st.Size = clean(h.Linkname), 0
		mode &^= fs.ModeType
	default:
		return nil, errs.New(errs.Invalid, "%s: a file of type %q cannot be handed over", h.Name, h.Typeflag)
	}
	st.Mode = uint32(mode)
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			if st.Xattrs == nil {
				st.Xattrs = map[string][]byte{}
			}
			st.Xattrs[name] = []byte(value)
		}
	}
	return st, nil
}

func clean(name string) string { return strings.Trim(strings.TrimPrefix(name, "./"), "/") }

// firstLinks has hard links lead to the first of their names: the receiver makes files in the order of their names, where the tar may have had another.
func (s *spooled) firstLinks() error {
	first := map[string]string{} // by the name that holds the content
	for _, st := range s.entries {
		holds := st.Path
		if fs.FileMode(st.Mode).IsRegular() && st.Linkname != "" {
			holds = st.Linkname
		}
		part, ok := s.at[holds]
		if !ok {
			if holds != st.Path {
				return errs.New(errs.Invalid, "%s is a link to %s, which is not there", st.Path, holds)
			}
			continue
		}
		if at, ok := first[holds]; ok {
			st.Linkname, st.Size = at, 0
			continue
		}
		first[holds] = st.Path
		st.Linkname, st.Size = "", part.size
		s.at[st.Path] = part
	}
	return nil
}

// Walk implements [fsutil.FS].
func (s *spooled) Walk(ctx context.Context, _ string, fn fs.WalkDirFunc) error {
	for _, st := range s.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(st.Path, &fsutil.DirEntryInfo{Stat: st}, nil); err != nil {
			return err
		}
	}
	return nil
}

// Open implements [fsutil.FS].
func (s *spooled) Open(path string) (io.ReadCloser, error) {
	part, ok := s.at[clean(path)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(s.file, part.from, part.size)), nil
}

func (s *spooled) close() error { return s.file.Close() }
