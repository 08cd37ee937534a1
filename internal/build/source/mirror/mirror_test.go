package mirror

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sync/errgroup"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

func newMirrors(t *testing.T, edit func(*Options)) *Mirrors {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("owners are set: needs root")
	}
	opts := Options{Root: filepath.Join(t.TempDir(), "mirrors")}
	if edit != nil {
		edit(&opts)
	}
	m, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// write makes files: "-> x" is a link, "dir" ends in a slash.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, isLink := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case isLink:
			err = os.Symlink(target, p)
		default:
			err = os.WriteFile(p, []byte(content), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// list describes a tree for comparison.
func list(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case info.Mode().IsRegular():
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			content = string(raw)
		case info.Mode().Type() == fs.ModeSymlink:
			if content, err = os.Readlink(p); err != nil {
				return err
			}
		}
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&out, "%s %s %d %q\n", rel, info.Mode(), info.ModTime().UnixNano(), content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func where(f *build.Files) string { return fmt.Sprintf("/proc/self/fd/%d/.", f.Root.Fd()) }

// walked is a directory as a source.
type walked struct {
	dir     string
	entries []Entry
	next    int
	wanted  []string
	edit    func(h *tar.Header) // lies
}

func walk(t *testing.T, dir string) *walked {
	t.Helper()
	w := &walked{dir: dir}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		e := Entry{Path: rel, Mode: info.Mode(), ModTime: info.ModTime().UnixNano()}
		if info.Mode().IsRegular() {
			e.Size = info.Size()
		}
		if info.Mode().Type() == fs.ModeSymlink {
			e.Link, err = os.Readlink(p)
		}
		w.entries = append(w.entries, e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *walked) Next() (Entry, error) {
	if w.next == len(w.entries) {
		return Entry{}, io.EOF
	}
	w.next++
	return w.entries[w.next-1], nil
}

func (w *walked) Want(_ context.Context, files []uint32) (io.ReadCloser, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, n := range files {
		e := w.entries[n]
		w.wanted = append(w.wanted, e.Path)
		raw, err := os.ReadFile(filepath.Join(w.dir, e.Path))
		if err != nil {
			return nil, err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.Path, Size: int64(len(raw)), Mode: int64(e.Mode.Perm()), ModTime: time.Unix(0, e.ModTime), Format: tar.FormatPAX}
		if w.edit != nil {
			w.edit(h)
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(raw[:h.Size]); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(&buf), tw.Close()
}

func TestUpdate(t *testing.T) {
	m := newMirrors(t, nil)
	src := t.TempDir()
	write(t, src, map[string]string{"a": "1", "a.b": "x", "a-dir/f": "2", "a-dir/deep/g": "3", "link": "-> a", "out": "-> /etc/passwd", "empty/": "", "big": strings.Repeat("z", 1<<20)})
	req := Request{SharedKey: "k", Name: "context"}
	up := func(want ...string) {
		t.Helper()
		w := walk(t, src)
		f, release, err := m.Update(t.Context(), w, req)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if got := list(t, where(f)); got != list(t, src) {
			t.Errorf("got\n%s\nwant\n%s", got, list(t, src))
		}
		if fmt.Sprint(w.wanted) != fmt.Sprint(want) {
			t.Errorf("travelled: %v, expected %v", w.wanted, want)
		}
		if *f.Owner != [2]uint32{} || f.Key == "" {
			t.Errorf("%+v", f)
		}
	}
	up("a", "a-dir/deep/g", "a-dir/f", "a.b", "big")
	up()
	write(t, src, map[string]string{"a": "22", "new": "n"})
	up("a", "new")
	// Kinds change: a file becomes a directory, a directory a link, a link a file; a mode alone costs no content.
	for _, gone := range []string{"a", "a-dir", "link"} {
		if err := os.RemoveAll(filepath.Join(src, gone)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, src, map[string]string{"a/inside": "i", "a-dir": "-> empty", "link": "now a file"})
	if err := os.Chmod(filepath.Join(src, "big"), 0o755); err != nil {
		t.Fatal(err)
	}
	up("a/inside", "link")
	// An engine that starts again finds it; after another boot of the host it does not trust it.
	for _, boot := range []string{m.boot, "another"} {
		if err := os.WriteFile(filepath.Join(m.opts.Root, only(t, m), "boot"), []byte(boot), 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := New(m.opts)
		if err != nil {
			t.Fatal(err)
		}
		m = again
		if boot == m.boot {
			up()
		} else {
			up("a/inside", "a.b", "big", "link", "new")
		}
	}
	req.Context.Differ = "none"
	up("a/inside", "a.b", "big", "link", "new")
}

func only(t *testing.T, m *Mirrors) string {
	t.Helper()
	all, err := m.Usage(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	return all[0].ID
}

// Two builds of one context at a time have a copy each; one that is let go is used again; without a shared key nothing stays.
func TestSlots(t *testing.T) {
	m := newMirrors(t, func(o *Options) { o.MaxKept = 2 })
	src := t.TempDir()
	write(t, src, map[string]string{"a": "1"})
	req := Request{SharedKey: "k", Name: "context"}
	one, first, err := m.Update(t.Context(), walk(t, src), req)
	if err != nil {
		t.Fatal(err)
	}
	write(t, src, map[string]string{"a": "22"})
	two, second, err := m.Update(t.Context(), walk(t, src), req)
	if err != nil {
		t.Fatal(err)
	}
	if one.Key == two.Key || !strings.Contains(list(t, where(one)), `"1"`) || !strings.Contains(list(t, where(two)), `"22"`) {
		t.Error("two builds share a copy")
	}
	if err := m.Remove(strings.TrimPrefix(one.Key, "mirror.")); !errors.Is(err, errs.Conflict) {
		t.Error(err)
	}
	first()
	second()
	second()
	_, third, err := m.Update(t.Context(), walk(t, src), Request{Name: "context"})
	if err != nil {
		t.Fatal(err)
	}
	third()
	if all, err := m.Usage(t.Context()); err != nil || len(all) != 2 || all[0].InUse {
		t.Error(all, err)
	}
	_, fourth, err := m.Update(t.Context(), walk(t, src), Request{SharedKey: "other", Name: "context"})
	if err != nil {
		t.Fatal(err)
	}
	fourth()
	all, err := m.Usage(t.Context())
	if err != nil || len(all) != 2 {
		t.Error("the oldest one stays", all, err)
	}
	for _, u := range all {
		if err := m.Remove(u.ID); err != nil {
			t.Error(err)
		}
	}
	if err := m.Remove("../x"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

// A client that lies: names that lead out, names below links, content of other files, a tree that never ends.
func TestUpdateHostile(t *testing.T) {
	m := newMirrors(t, func(o *Options) { o.MaxBytes, o.MaxEntries = 1<<20, 100 })
	outside := t.TempDir()
	dir := Entry{Path: "d", Mode: fs.ModeDir | 0o755}
	for _, c := range []struct {
		name    string
		entries []Entry
	}{
		{"up", []Entry{{Path: "../x"}}},
		{"absolute", []Entry{{Path: "/x"}}},
		{"dots", []Entry{{Path: "d/../x"}}},
		{"dot", []Entry{{Path: "."}}},
		{"empty", []Entry{{Path: ""}}},
		{"zero", []Entry{{Path: "a\x00b"}}},
		{"below a link", []Entry{{Path: "l", Mode: fs.ModeSymlink, Link: outside}, {Path: "l/x"}}},
		{"without parent", []Entry{{Path: "a/x"}}},
		{"twice", []Entry{dir, dir}},
		{"link again as directory", []Entry{{Path: "d", Mode: fs.ModeSymlink, Link: outside}, dir}},
		{"order", []Entry{{Path: "b", Mode: fs.ModeDir}, {Path: "a", Mode: fs.ModeDir}}},
		{"device", []Entry{{Path: "dev", Mode: fs.ModeDevice | 0o600}}},
		{"negative", []Entry{{Path: "n", Size: -1}}},
		{"large", []Entry{{Path: "n", Size: 1 << 40}}},
		{"no target", []Entry{{Path: "n", Mode: fs.ModeSymlink}}},
	} {
		if _, _, err := m.Update(t.Context(), &walked{entries: c.entries}, Request{Name: "x"}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	many := &walked{}
	for i := range 101 {
		many.entries = append(many.entries, Entry{Path: fmt.Sprintf("%04d", i), Mode: fs.ModeDir})
	}
	if _, _, err := m.Update(t.Context(), many, Request{Name: "x"}); err == nil || !strings.Contains(err.Error(), "more than 100 files") {
		t.Error(err)
	}
	src := t.TempDir()
	write(t, src, map[string]string{"a": "1"})
	for name, edit := range map[string]func(*tar.Header){
		"another name": func(h *tar.Header) { h.Name = "../../b" },
		"a link":       func(h *tar.Header) { h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, "/etc/passwd" },
	} {
		w := walk(t, src)
		w.edit = edit
		if _, _, err := m.Update(t.Context(), w, Request{Name: "x"}); err == nil {
			t.Error(name)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// pipe is one side of an fsutil stream.
type pipe struct {
	ctx     context.Context
	in, out chan []byte
}

func pipes(ctx context.Context) (*pipe, *pipe) {
	a, b := make(chan []byte, 32), make(chan []byte, 32)
	return &pipe{ctx, a, b}, &pipe{ctx, b, a}
}

func (p *pipe) Context() context.Context { return p.ctx }

func (p *pipe) SendMsg(m any) error {
	sent, err := m.(*types.Packet).MarshalVT()
	if err != nil {
		return err
	}
	select {
	case p.out <- sent:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe) RecvMsg(m any) error {
	select {
	case got, ok := <-p.in:
		if !ok {
			return io.EOF
		}
		return m.(*types.Packet).UnmarshalVT(got)
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func TestReceive(t *testing.T) {
	m := newMirrors(t, nil)
	src := t.TempDir()
	write(t, src, map[string]string{"a": "1", "a-dir/f": "2", "out": "-> /etc/passwd", "skipped.o": "x"})
	if err := os.Chown(filepath.Join(src, "a"), 1234, 1234); err != nil {
		t.Fatal(err)
	}
	receive := func(req Request) (*build.Files, func(), int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		plain, err := fsutil.NewFS(src)
		if err != nil {
			t.Fatal(err)
		}
		chosen, err := fsutil.NewFilterFS(plain, &fsutil.FilterOpt{ExcludePatterns: req.Context.Exclude})
		if err != nil {
			t.Fatal(err)
		}
		there, here := pipes(ctx)
		counted := &countedPipe{pipe: here}
		var g errgroup.Group
		g.Go(func() error { defer close(there.out); return fsutil.Send(ctx, there, chosen, nil) })
		f, release, err := m.Receive(ctx, counted, req)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		return f, release, counted.data
	}
	req := Request{SharedKey: "k", Name: "context", Context: build.ContextOptions{Exclude: []string{"*.o"}}}
	f, release, data := receive(req)
	got := list(t, where(f))
	if strings.Contains(got, "skipped") || !strings.Contains(got, `"/etc/passwd"`) || data == 0 {
		t.Error(got)
	}
	info, err := os.Stat(where(f) + "/a")
	if err != nil || owner(info) != 0 {
		t.Error("owned by", owner(info), err)
	}
	release()
	if _, release, data := receive(req); data != 0 {
		t.Errorf("%d bytes travelled again", data)
	} else {
		release()
	}
	write(t, src, map[string]string{"a": "22"})
	if f, release, _ := receive(req); !strings.Contains(list(t, where(f)), `"22"`) {
		t.Error("the change is not here")
	} else {
		release()
	}
	req.Context.MetadataOnly, req.Context.MetadataExceptions = true, []string{"a"}
	f, release, _ = receive(req)
	if got := list(t, where(f)); strings.Contains(got, "\na-dir") || !strings.Contains(got, `"22"`) {
		t.Error(got)
	}
	release()
	if f.Include != nil || f.Exclude[0] != "*.o" {
		t.Errorf("%+v", f)
	}
}

type countedPipe struct {
	*pipe
	data int64
}

func (c *countedPipe) RecvMsg(m any) error {
	err := c.pipe.RecvMsg(m)
	if err == nil {
		c.data += int64(len(m.(*types.Packet).Data))
	}
	return err
}

// A sender of the file synchronization protocol that leaves its tree.
func TestReceiveHostile(t *testing.T) {
	m := newMirrors(t, func(o *Options) { o.MaxEntries = 50 })
	outside := t.TempDir()
	for name, stats := range map[string][]*types.Stat{
		"up":           {{Path: "../x", Mode: 0o644}},
		"absolute":     {{Path: "/x", Mode: 0o644}},
		"below a link": {{Path: "l", Mode: uint32(fs.ModeSymlink | 0o777), Linkname: outside}, {Path: "l/x", Mode: 0o644}},
		"hard link":    {{Path: "h", Mode: 0o644, Linkname: "../../../../../../etc/passwd"}},
		"endless":      nil,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		there, here := pipes(ctx)
		go func() {
			if stats == nil {
				for i := 0; ; i++ {
					if there.SendMsg(&types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: fmt.Sprintf("%09d", i), Mode: uint32(fs.ModeDir | 0o755)}}) != nil {
						return
					}
				}
			}
			for _, st := range stats {
				there.SendMsg(&types.Packet{Type: types.PACKET_STAT, Stat: st})
			}
			there.SendMsg(&types.Packet{Type: types.PACKET_STAT})
			for {
				var p types.Packet
				if there.RecvMsg(&p) != nil {
					return
				}
				switch p.Type {
				case types.PACKET_REQ:
					there.SendMsg(&types.Packet{Type: types.PACKET_DATA, ID: p.ID, Data: []byte("evil")})
					there.SendMsg(&types.Packet{Type: types.PACKET_DATA, ID: p.ID})
				case types.PACKET_FIN, types.PACKET_ERR:
					there.SendMsg(&types.Packet{Type: types.PACKET_FIN})
					close(there.out)
					return
				}
			}
		}()
		start := time.Now()
		f, release, err := m.Receive(ctx, here, Request{Name: "x"})
		if err == nil {
			t.Errorf("%s is taken:\n%s", name, list(t, where(f)))
			release()
		}
		if time.Since(start) > 50*time.Second {
			t.Errorf("%s hung: %v", name, err)
		}
		cancel()
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// tarOf makes an archive of name, content pairs.
func tarOf(t testing.TB, files ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		f.header.Size, f.header.Mode = int64(len(f.body)), 0o644
		if err := tw.WriteHeader(&f.header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// member is one file of an archive.
type member struct {
	header tar.Header
	body   string
}

func file(name, body string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Uid: 77}, body}
}

func linkTo(name, target string) member {
	return member{header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}}
}

func TestUnpack(t *testing.T) {
	m := newMirrors(t, func(o *Options) { o.MaxBytes = 1 << 20 })
	raw := tarOf(t, file("Dockerfile", "FROM scratch"), file("dir/.wh.x", "1"), linkTo("l", "/etc"))
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	zw.Write(raw)
	zw.Close()
	for _, body := range [][]byte{raw, z.Bytes()} {
		f, release, err := m.Unpack(t.Context(), bytes.NewReader(body), Request{Name: "context"})
		if err != nil {
			t.Fatal(err)
		}
		if got := list(t, where(f)); !strings.Contains(got, `"FROM scratch"`) || !strings.Contains(got, "dir/.wh.x") {
			t.Error(got)
		}
		if info, err := os.Stat(where(f) + "/Dockerfile"); err != nil || owner(info) != 0 || *f.Owner != [2]uint32{} {
			t.Error(info, err)
		}
		release()
	}
	var bomb bytes.Buffer
	zw = gzip.NewWriter(&bomb)
	zw.Write(tarOf(t, file("zeros", strings.Repeat("\x00", 8<<20))))
	zw.Close()
	for name, body := range map[string][]byte{
		"up": tarOf(t, file("../x", "1")), "through a link": tarOf(t, linkTo("l", "/proc/self"), file("l/comm", "1")),
		"bomb": bomb.Bytes(), "cut gzip": z.Bytes()[:z.Len()/2], "bad gzip": append([]byte{0x1f, 0x8b}, raw...), "xz": []byte("\xfd7zXZ\x00abc"), "cut": raw[:515],
	} {
		f, release, err := m.Unpack(t.Context(), bytes.NewReader(body), Request{Name: "context"})
		if err == nil {
			if got := list(t, where(f)); name != "through a link" || strings.Contains(got, "comm") && !strings.Contains(got, "proc/self/comm") {
				t.Errorf("%s is taken: %s", name, got)
			}
			release()
		}
	}
	if names, err := m.list(); err != nil || len(names) > 0 {
		t.Error(names, err)
	}
}

func FuzzUpdate(f *testing.F) {
	f.Add("d/", "d/x", "link", uint32(fs.ModeSymlink), []byte("tar"))
	f.Add("../x", "a/b/c", "a", uint32(0o644), tarOf(f, file("a", "1")))
	m, err := New(Options{Root: f.TempDir(), MaxBytes: 1 << 16, MaxEntries: 100})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b, c string, mode uint32, content []byte) {
		src := &raw{content: content, entries: []Entry{{Path: strings.TrimSuffix(a, "/"), Mode: fs.ModeDir | 0o755}, {Path: b, Size: 3, ModTime: 5}, {Path: c, Mode: fs.FileMode(mode), Link: a}}}
		files, release, err := m.Update(t.Context(), src, Request{SharedKey: "k", Name: "n"})
		if err == nil {
			list(t, where(files))
			release()
		}
		names, err := m.list()
		if err != nil || len(names) > 1 {
			t.Error(names, err)
		}
	})
}

// raw is a source of arbitrary bytes.
type raw struct {
	entries []Entry
	content []byte
}

func (r *raw) Next() (Entry, error) {
	if len(r.entries) == 0 {
		return Entry{}, io.EOF
	}
	e := r.entries[0]
	r.entries = r.entries[1:]
	return e, nil
}

func (r *raw) Want(context.Context, []uint32) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(r.content)), nil
}

func owner(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
