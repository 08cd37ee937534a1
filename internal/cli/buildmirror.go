package cli

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"

	"corten.dev/corten/internal/buildwire"
)

// mirror gives a directory to an engine on another host: names first, then what it lacks. The exchange is drawn at buildwire.Entry.
func (s *buildSession) mirror(ctx context.Context, q *buildwire.Stream, dir string, ask buildwire.Ask) error {
	key, err := s.mirrorKey(dir)
	if err != nil {
		return err
	}
	if err := q.Answer(buildwire.Tree{Key: key}); err != nil {
		return err
	}
	opts := ask.Options
	if opts == nil {
		opts = &buildwire.ContextOptions{}
	}
	m := &mirroring{root: dir, out: bufio.NewWriterSize(q, 64<<10)}
	if m.choose, err = newChooser(dir, opts); err != nil {
		return err
	}
	if err := m.folder(ctx, "", seen{}); err != nil {
		return err
	}
	m.buf = buildwire.AppendEntry(m.buf[:0], buildwire.Entry{})
	if _, err := m.out.Write(m.buf); err != nil {
		return err
	}
	if err := m.out.Flush(); err != nil {
		return err
	}
	return m.send(q)
}

// mirrorKey names the directory to engines, by a secret of this client: who does not know it cannot have another's copy compared with theirs. Without a place to keep the secret,
// everything travels each time.
func (s *buildSession) mirrorKey(dir string) (string, error) {
	cfg := s.app.config()
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	name := filepath.Join(cfg.Dir, ".corten-context-key")
	secret, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		secret = make([]byte, 32)
		_, _ = rand.Read(secret) // never fails
		if err = os.MkdirAll(cfg.Dir, 0o700); err == nil {
			err = os.WriteFile(name, secret, 0o600)
		}
	}
	if err != nil || len(secret) < 32 {
		s.app.debugf("no key for contexts: %v", err)
		return "", nil
	}
	sum := hmac.New(sha256.New, secret)
	sum.Write([]byte(abs))
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// mirroring is one directory on its way.
type mirroring struct {
	root    string
	choose  *chooser
	out     *bufio.Writer
	buf     []byte
	files   []buildwire.Entry // by their numbers in the list; those that are no regular files are empty
	pending []buildwire.Entry // folders that are told once something in them is
}

// seen is what patterns say of a folder, for what is in it.
type seen struct{ include, exclude patternmatcher.MatchInfo }

// folder lists what is in a folder. Its name within the root is "" or ends with a slash.
func (m *mirroring) folder(ctx context.Context, dir string, info seen) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	list, err := os.ReadDir(filepath.Join(m.root, filepath.FromSlash(dir)))
	if err != nil {
		return err
	}
	for _, d := range list {
		name := dir + d.Name()
		take, enter, below, err := m.choose.of(name, d.IsDir(), info)
		if err != nil {
			return err
		}
		if !take && !enter {
			continue
		}
		e, ok, err := m.entry(name, d)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		m.pending = append(m.pending, e)
		depth := len(m.pending)
		if take {
			if err := m.tell(); err != nil {
				return err
			}
		}
		if enter {
			if err := m.folder(ctx, name+"/", below); err != nil {
				return err
			}
		}
		m.pending = m.pending[:min(len(m.pending), depth-1)]
	}
	return nil
}

// entry looks at a file; false for what has vanished, and for sockets and devices, which a context does not have.
func (m *mirroring) entry(name string, d fs.DirEntry) (e buildwire.Entry, ok bool, err error) {
	st, err := d.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return e, false, nil
	}
	if err != nil {
		return e, false, err
	}
	e = buildwire.Entry{Path: name, Mode: st.Mode(), ModTime: st.ModTime().UnixNano()}
	switch st.Mode().Type() {
	case 0:
		e.Size = st.Size()
	case fs.ModeDir, fs.ModeNamedPipe:
	case fs.ModeSymlink:
		if e.Link, err = os.Readlink(filepath.Join(m.root, filepath.FromSlash(name))); err != nil {
			return e, false, err
		}
	default:
		return e, false, nil
	}
	return e, true, nil
}

// tell writes the entries that are pending.
func (m *mirroring) tell() error {
	for _, e := range m.pending {
		m.buf = buildwire.AppendEntry(m.buf[:0], e)
		if _, err := m.out.Write(m.buf); err != nil {
			return err
		}
		if !e.Mode.IsRegular() {
			e = buildwire.Entry{}
		}
		m.files = append(m.files, e)
	}
	m.pending = m.pending[:0]
	return nil
}

// send reads the numbers of the files that the engine lacks, and sends them.
func (m *mirroring) send(q *buildwire.Stream) error {
	in := bufio.NewReaderSize(q, 64<<10)
	var wanted []buildwire.Entry
	for {
		var four [4]byte
		if _, err := io.ReadFull(in, four[:]); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(four[:])
		if int64(n) >= int64(len(m.files)) || m.files[n].Path == "" {
			return fmt.Errorf("the engine wants file %d, which is not in the list", n)
		}
		wanted = append(wanted, m.files[n])
	}
	tw := tar.NewWriter(m.out)
	for _, e := range wanted {
		if err := m.file(tw, e); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return m.out.Flush()
}

// file sends one file as it is now. One that becomes shorter meanwhile cannot be sent.
func (m *mirroring) file(tw *tar.Writer, e buildwire.Entry) error {
	name := filepath.Join(m.root, filepath.FromSlash(e.Path))
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file any more", name)
	}
	h := &tar.Header{Name: e.Path, Typeflag: tar.TypeReg, Size: st.Size(), Mode: int64(st.Mode().Perm()), ModTime: st.ModTime(), Format: tar.FormatPAX}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(tw, f, st.Size()); err == io.EOF {
		return fmt.Errorf("%s became shorter while it was read", name)
	} else if err != nil {
		return err
	}
	return nil
}

// chooser tells what of a directory the engine wants. It may choose more than the frontend's patterns do, never less: the engine chooses again.
type chooser struct {
	include, exclude *patternmatcher.PatternMatcher
	prefixes         []string // of include, when none of its patterns has wildcards
}

func newChooser(root string, opts *buildwire.ContextOptions) (*chooser, error) {
	c := &chooser{}
	include := opts.Include
	for _, p := range opts.Follow {
		include = follow(include, root, path.Clean("/"+p), 0)
	}
	var err error
	all := len(include) == 0
	for _, p := range include {
		p = strings.Trim(path.Clean(p), "/")
		all = all || p == "." || p == "" || p == "**"
	}
	if !all {
		if c.include, err = patternmatcher.New(include); err != nil {
			return nil, fmt.Errorf("patterns of the context: %w", err)
		}
		c.prefixes = prefixesOf(include)
	}
	if len(opts.Exclude) > 0 {
		if c.exclude, err = patternmatcher.New(opts.Exclude); err != nil {
			return nil, fmt.Errorf("patterns of the context: %w", err)
		}
	}
	return c, nil
}

// prefixesOf are patterns as paths; nil when one is more than a path.
func prefixesOf(patterns []string) (out []string) {
	for _, p := range patterns {
		if strings.ContainsAny(p, "*?[\\!") {
			return nil
		}
		out = append(out, strings.Trim(path.Clean(p), "/"))
	}
	return out
}

// of tells whether a name is taken, whether a folder is entered, and what holds for what is in it.
func (c *chooser) of(name string, isDir bool, above seen) (take, enter bool, below seen, err error) {
	take, enter = true, isDir
	if c.include != nil {
		if take, below.include, err = c.include.MatchesUsingParentResults(name, above.include); err != nil {
			return false, false, below, err
		}
		enter = isDir && (take || c.leads(name))
	}
	if c.exclude != nil {
		var out bool
		if out, below.exclude, err = c.exclude.MatchesUsingParentResults(name, above.exclude); err != nil {
			return false, false, below, err
		}
		if out {
			take, enter = false, enter && c.exclude.Exclusions()
		}
	}
	return take, enter, below, nil
}

// leads tells whether something below a folder may be included.
func (c *chooser) leads(dir string) bool {
	if c.prefixes == nil {
		return true
	}
	for _, p := range c.prefixes {
		if strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}

// maxFollow bounds chains of links.
const maxFollow = 255

// follow adds a path, and what links on the way lead to, to patterns. Paths are absolute within root; a component may have wildcards.
func follow(patterns []string, root, p string, depth int) []string {
	if depth > maxFollow {
		return patterns
	}
	done := ""
	parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
	for i, part := range parts {
		rest := strings.Join(parts[i+1:], "/")
		if strings.ContainsAny(part, "*?[\\") {
			list, err := os.ReadDir(filepath.Join(root, filepath.FromSlash(done)))
			if err != nil {
				break
			}
			for _, d := range list {
				if ok, err := path.Match(part, d.Name()); err == nil && ok {
					patterns = follow(patterns, root, path.Join("/", done, d.Name(), rest), depth+1)
				}
			}
			return patterns
		}
		at := path.Join(done, part)
		if target, err := os.Readlink(filepath.Join(root, filepath.FromSlash(at))); err == nil {
			patterns = append(patterns, at)
			if !path.IsAbs(target) {
				target = path.Join("/", done, target)
			}
			return follow(patterns, root, path.Join("/", target, rest), depth+1)
		}
		done = at
	}
	if p = strings.TrimPrefix(p, "/"); p == "" {
		p = "."
	}
	return append(patterns, p)
}
