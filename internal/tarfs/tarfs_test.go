package tarfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

var ctx = context.Background()

// pack makes an archive of headers; a Linkname of a regular file is its content.
func pack(t testing.TB, list ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range list {
		body := ""
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			body, h.Linkname = h.Linkname, ""
			h.Size = int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// jail is a root with a secret beside it.
func jail(t testing.TB) (root *os.File, outside string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: archives carry owners")
	}
	dir := t.TempDir()
	outside = filepath.Join(dir, "outside")
	if err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600), os.Mkdir(filepath.Join(dir, "root"), 0o755)); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, outside
}

// untouched fails when anything beside the root changed.
func untouched(t testing.TB, outside string) {
	t.Helper()
	list, err := os.ReadDir(outside)
	if err != nil || len(list) != 1 {
		t.Fatalf("outside: %v %v", list, err)
	}
	st, err := os.Stat(filepath.Join(outside, "secret"))
	if err != nil || st.Size() != 1 || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Fatalf("secret: %v %v", st, err)
	}
	if up, _ := os.ReadDir(filepath.Dir(outside)); len(up) != 2 {
		t.Fatalf("beside the root: %v", up)
	}
}

func TestHostileArchives(t *testing.T) {
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Linkname: "x"} }
	for name, c := range map[string]struct {
		list []tar.Header
		bad  bool
	}{
		"up":                         {[]tar.Header{file("../x")}, true},
		"up from inside":             {[]tar.Header{file("a/../../outside/x")}, true},
		"absolute is inside":         {[]tar.Header{file("/x")}, false},
		"absolute link":              {[]tar.Header{link("l", "/"), file("l/x")}, false},
		"link out":                   {[]tar.Header{link("l", "../outside"), file("l/secret")}, true},
		"link out by many":           {[]tar.Header{link("l", "../../../../../../../../tmp"), file("l/x")}, true},
		"link over a link":           {[]tar.Header{link("a", "b"), link("b", "../outside"), file("a/secret")}, true},
		"file through a link":        {[]tar.Header{link("l", "../outside/secret"), file("l")}, false},
		"hard link out":              {[]tar.Header{hard("h", "../outside/secret")}, true},
		"hard link out by a link":    {[]tar.Header{link("l", "../outside"), hard("h", "l/secret")}, true},
		"hard link to a link":        {[]tar.Header{link("l", "../outside/secret"), hard("h", "l"), file("h")}, false},
		"hard link to itself":        {[]tar.Header{file("f"), hard("f", "f")}, false},
		"hard link to a directory":   {[]tar.Header{{Typeflag: tar.TypeDir, Name: "d/"}, hard("h", "d")}, true},
		"hard link to nothing":       {[]tar.Header{hard("h", "none")}, true},
		"directory over a link":      {[]tar.Header{link("l", "../outside"), {Typeflag: tar.TypeDir, Name: "l/", Mode: 0o777}, file("l/x")}, false},
		"loop":                       {[]tar.Header{link("a", "b"), link("b", "a"), file("a/x")}, true},
		"mode through a link":        {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../outside/secret", Mode: 0o777, Uid: 1, Gid: 1}}, false},
		"file below a file":          {[]tar.Header{file("f"), file("f/x")}, true},
		"root as a file":             {[]tar.Header{file(".")}, true},
		"root as a link":             {[]tar.Header{link("./", "../outside"), file("x")}, true},
		"long part":                  {[]tar.Header{file(strings.Repeat("n", 300))}, true},
		"long path":                  {[]tar.Header{file(strings.Repeat("n/", 4000) + "x")}, true},
		"very long path":             {[]tar.Header{file(strings.Repeat("n/", 20000) + "x")}, true},
		"long link":                  {[]tar.Header{link("l", strings.Repeat("n/", 4000))}, true},
		"device with a mad number":   {[]tar.Header{{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1 << 20}}, true},
		"big xattr":                  {[]tar.Header{{Name: "x", PAXRecords: map[string]string{paxXattr + "user.x": strings.Repeat("v", 70_000)}}}, true},
		"owner 2^32-1":               {[]tar.Header{{Name: "x", Uid: math.MaxUint32, Format: tar.FormatPAX}}, true},
		"owner 2^32":                 {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "y", Gid: 1 << 32, Format: tar.FormatPAX}}, true},
		"owner 2^32-2":               {[]tar.Header{{Typeflag: tar.TypeDir, Name: "x", Uid: math.MaxUint32 - 1, Format: tar.FormatPAX}}, false},
		"xattr without a name":       {[]tar.Header{{Name: "x", PAXRecords: map[string]string{paxXattr: "v"}}}, true},
		"xattr of the overlay":       {[]tar.Header{{Name: "x", PAXRecords: map[string]string{paxXattr + "trusted.overlay.redirect": "/outside"}}}, false},
		"the same again and again":   {[]tar.Header{file("a/x"), file("a"), file("a"), link("a", "../outside"), {Typeflag: tar.TypeDir, Name: "a/"}, file("a/secret")}, false},
		"unknown type":               {[]tar.Header{{Typeflag: 'Q', Name: "x"}}, true},
		"access through a parent":    {[]tar.Header{{Typeflag: tar.TypeDir, Name: "a/"}, link("a/l", ".."), link("a/l2", "l/../outside"), file("a/l2/secret")}, true},
		"times before the beginning": {[]tar.Header{{Name: "x", ModTime: time.Unix(-1<<40, 0)}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, mode := range []Whiteouts{Literal, Convert, ApplyTo} {
				root, outside := jail(t)
				_, err := Extract(ctx, root, bytes.NewReader(pack(t, c.list...)), Options{Whiteouts: mode})
				if c.bad && !errors.Is(err, errs.Invalid) || !c.bad && err != nil {
					t.Errorf("mode %d: %v", mode, err)
				}
				if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 600) {
					t.Errorf("the error is not one short line: %v", err)
				}
				untouched(t, outside)
			}
		})
	}
}

// An archive with a sparse file of 8 EiB, or of a size that is not there, must end soon and with one error.
func TestHostileSizes(t *testing.T) {
	root, _ := jail(t)
	for name, rec := range map[string]map[string]string{
		"huge": {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "9223372036854775807", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "9223372036854775806,1"},
		"low":  {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "-5", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,1"},
		"odd":  {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "10", "GNU.sparse.numblocks": "9999999999", "GNU.sparse.map": "0,1"},
	} {
		_, err := Extract(ctx, root, bytes.NewReader(rawPax(rec, "x")), Options{})
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := map[string]string{"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "good", "GNU.sparse.size": "3000001", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "3000000,1"}
	if _, err := Extract(ctx, root, bytes.NewReader(rawPax(good, "x")), Options{}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(root.Name() + "/good")
	if err != nil || st.Size() != 3000001 || st.Sys().(*syscall.Stat_t).Blocks > 1024 {
		t.Errorf("%+v %v", st, err)
	}
	cut := pack(t, tar.Header{Name: "f", Linkname: strings.Repeat("x", 10000)})[:3000]
	if _, err := Extract(ctx, root, bytes.NewReader(cut), Options{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("cut: %v", err)
	}
	negative := pack(t, tar.Header{Name: "f"})
	copy(negative[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe")
	if _, err := Extract(ctx, root, bytes.NewReader(negative), Options{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("negative: %v", err)
	}
}

// A header that claims more than the archive may have was believed until so much was written: 4 GiB of zeros on the disk, before they were refused.
func TestTooLargeByItsHeader(t *testing.T) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := tw.WriteHeader(&tar.Header{Name: "zeros", Size: 5 << 30, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	root, _ := jail(t)
	_, err := Extract(ctx, root, &buf, Options{MaxBytes: 4 << 30})
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `"zeros": unpacks to more than 4294967296 bytes`) {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(root.Name(), "zeros")); !os.IsNotExist(err) {
		t.Errorf("some of it was written: %v", err)
	}
}

// rawPax builds an entry with PAX records that the tar writer refuses to write.
func rawPax(rec map[string]string, body string) []byte {
	var recs strings.Builder
	for k, v := range rec {
		n := len(k) + len(v) + 3
		size := n + len(fmt.Sprint(n))
		if len(fmt.Sprint(size)) != len(fmt.Sprint(n)) {
			size++
		}
		fmt.Fprintf(&recs, "%d %s=%s\n", size, k, v)
	}
	block := func(kind byte, name, data string) []byte {
		b := make([]byte, 512)
		copy(b, name)
		copy(b[100:], "0000644\x000000000\x000000000\x00")
		copy(b[124:], fmt.Sprintf("%011o\x00", len(data)))
		copy(b[136:], "00000000000\x00        ")
		b[156] = kind
		copy(b[257:], "ustar\x0000")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		b = append(b, data...)
		return append(b, make([]byte, (512-len(b)%512)%512)...)
	}
	all := append(block('x', "pax", recs.String()), block('0', "s", body)...)
	return append(all, make([]byte, 1024)...)
}

func TestRoundTrip(t *testing.T) {
	root, _ := jail(t)
	when := time.Unix(1_700_000_000, 123456789)
	capable := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	data := pack(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o1777, Uid: 7, Gid: 8, ModTime: when, Format: tar.FormatPAX},
		tar.Header{Name: "d/f", Linkname: "body", Mode: 0o4711, Uid: 9, Gid: 10, ModTime: when, Format: tar.FormatPAX, PAXRecords: map[string]string{paxXattr + "user.k": "v\x00w", paxXattr + "security.capability": capable}},
		tar.Header{Typeflag: tar.TypeLink, Name: "d/g", Linkname: "d/f"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "d/l", Linkname: "/abs/../olute", Uid: 11, Gid: 12, Mode: 0o777, ModTime: when, Format: tar.FormatPAX},
		tar.Header{Typeflag: tar.TypeFifo, Name: "d/p", Mode: 0o622, ModTime: when, Format: tar.FormatPAX},
		tar.Header{Typeflag: tar.TypeChar, Name: "d/null", Devmajor: 1, Devminor: 3, Mode: 0o666, ModTime: when, Format: tar.FormatPAX},
		tar.Header{Typeflag: tar.TypeDir, Name: "d/sub/", Mode: 0o700, ModTime: when, Format: tar.FormatPAX},
	)
	if _, err := Extract(ctx, root, bytes.NewReader(data), Options{}); err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	if err := Write(ctx, root, &first, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	want, got := headers(t, data), headers(t, first.Bytes())
	for name, h := range want {
		g := got[name]
		if g == nil || g.Typeflag != h.Typeflag || g.Linkname != h.Linkname || g.Mode != h.Mode && h.Typeflag != tar.TypeLink || g.Uid != h.Uid && h.Typeflag != tar.TypeLink ||
			!g.ModTime.Equal(h.ModTime) && h.Typeflag != tar.TypeLink || g.Devmajor != h.Devmajor || g.Devminor != h.Devminor {
			t.Errorf("%s: %+v, want %+v", name, g, h)
			continue
		}
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, paxXattr) && g.PAXRecords[k] != v {
				t.Errorf("%s: %s is %q", name, k, g.PAXRecords[k])
			}
		}
	}
	copied, _ := jail(t)
	if err := CopyTree(ctx, root, copied); err != nil {
		t.Fatal(err)
	}
	if err := Write(ctx, copied, &second, WriteOptions{}); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("the copy gives another archive: %v", err)
	}
	differ := 0
	if err := Compare(ctx, root, copied, func(path string, how Change) { differ++; t.Log(path, how) }); err != nil || differ > 0 {
		t.Errorf("the copy differs: %v", err)
	}
}

func headers(t *testing.T, data []byte) map[string]*tar.Header {
	t.Helper()
	all := map[string]*tar.Header{}
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = h
	}
}

func TestPaths(t *testing.T) {
	root, outside := jail(t)
	data := pack(t, tar.Header{Typeflag: tar.TypeDir, Name: "usr/lib/"}, tar.Header{Name: "usr/lib/a", Linkname: "a"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "/usr/lib"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/rel", Linkname: "lib/a"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../outside"})
	if _, err := Extract(ctx, root, bytes.NewReader(data), Options{}); err != nil {
		t.Fatal(err)
	}
	// Into a directory behind a link, through a link in the archive's way: both mean the tree's own root.
	if err := ExtractTo(ctx, root, "/lib", bytes.NewReader(pack(t, tar.Header{Name: "new", Linkname: "n"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/usr"}, tar.Header{Name: "l/deep", Linkname: "d"})), Options{Owner: &Owner{3, 4}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/lib/new", "usr/deep"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root.Name(), name), &st); err != nil || st.Uid != 3 || st.Gid != 4 {
			t.Errorf("%s: %v %d:%d", name, err, st.Uid, st.Gid)
		}
	}
	for name, h := range map[string]tar.Header{
		`cannot overwrite directory "/usr/lib" with non-directory "lib"`: {Name: "lib", Linkname: "x"},
		`cannot overwrite non-directory "/usr/rel" with directory "rel"`: {Typeflag: tar.TypeDir, Name: "rel/"},
	} {
		err := ExtractTo(ctx, root, "usr", bytes.NewReader(pack(t, h)), Options{NoOverwriteDirNonDir: true})
		if err == nil || !strings.HasSuffix(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
	}
	if err := ExtractTo(ctx, root, "out", bytes.NewReader(pack(t, tar.Header{Name: "x"})), Options{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
	untouched(t, outside)
}

// One file is more than its bytes, and one that the kernel makes is longer or shorter than it says: the copy ended in the middle.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(at("file"), []byte("content"), 0o640), unix.Setxattr(at("file"), "trusted.kind", []byte("own"), 0), os.Symlink("no/where", at("link")),
		unix.Mkfifo(at("fifo"), 0o600), unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(at("sock"), unix.S_IFSOCK|0o600, 0)); err != nil {
		t.Skipf("needs root: %v", err)
	}
	kernel, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("/sys/kernel/fscaps") // smaller than the page that it says
	if err != nil {
		t.Skip(err)
	}
	for name, want := range map[string]string{
		at("file"): "0 as content map[SCHILY.xattr.trusted.kind:own]", at("link"): "2 as no/where map[]", at("fifo"): "6 as  map[]", at("null"): "3 as 1:3 map[]", at("sock"): "as: an archive holds no sockets",
		"/proc/version": "0 as " + string(kernel) + " map[]", "/sys/kernel/fscaps": "0 as " + string(page) + " map[]",
	} {
		if got := oneFile(t, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// oneFile is the entry that WriteFile writes of a file, or its error.
func oneFile(t *testing.T, name string) string {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	handle := os.NewFile(uintptr(fd), name)
	defer handle.Close()
	var buf bytes.Buffer
	if err := WriteFile(t.Context(), handle, "as", &buf); err != nil {
		return err.Error()
	}
	tr := tar.NewReader(&buf)
	h, err := tr.Next()
	if err != nil {
		t.Fatal(name, err)
	}
	body, err := io.ReadAll(tr)
	if err != nil {
		t.Fatal(name, err)
	}
	if h.Typeflag == tar.TypeChar {
		body = fmt.Appendf(nil, "%d:%d", h.Devmajor, h.Devminor)
	}
	for key := range h.PAXRecords {
		if !strings.HasPrefix(key, paxXattr) {
			delete(h.PAXRecords, key)
		}
	}
	return fmt.Sprintf("%c %s %s%s %v", h.Typeflag, h.Name, h.Linkname, body, h.PAXRecords)
}

// A root that is open for paths only, as that of a mount is: its own times could not be set, so that ADD rootfs.tar / ended with "bad file descriptor".
func TestExtractIntoAPathDescriptor(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	root := os.NewFile(uintptr(fd), dir)
	defer root.Close()
	if err := ExtractTo(t.Context(), root, "/", bytes.NewReader(pack(t, tar.Header{Name: "new", Linkname: "n"})), Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err != nil {
		t.Error(err)
	}
}

// Directories keep the times of the archive although their content comes after them.
func TestDirectoryTimes(t *testing.T) {
	root, _ := jail(t)
	when := time.Unix(1_500_000_000, 0)
	var list []tar.Header
	for i := range 40 {
		list = append(list, tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/", i), ModTime: when})
	}
	for i := range 40 {
		list = append(list, tar.Header{Name: fmt.Sprintf("d%d/f", i)}, tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/s/", i), ModTime: when})
	}
	if _, err := Extract(ctx, root, bytes.NewReader(pack(t, list...)), Options{}); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		for _, name := range []string{"d%d", "d%d/s"} {
			if st, err := os.Stat(filepath.Join(root.Name(), fmt.Sprintf(name, i))); err != nil || !st.ModTime().Equal(when) {
				t.Fatalf("%s: %v %v", fmt.Sprintf(name, i), st.ModTime(), err)
			}
		}
	}
}

// Whatever the bytes are: no panic, nothing outside, and what was extracted with Meta can be assembled again.
func FuzzExtract(f *testing.F) {
	f.Add(pack(f, tar.Header{Name: "a"}, tar.Header{Typeflag: tar.TypeDir, Name: "d/"}, tar.Header{Name: "d/x", Linkname: "body"}, tar.Header{Name: "a", Linkname: "b"}), byte(1))
	f.Add(pack(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../outside"}, tar.Header{Name: "l/x"}), byte(0))
	f.Add(pack(f, tar.Header{Name: "d/.wh.x"}, tar.Header{Name: "d/.wh..wh..opq"}, tar.Header{Typeflag: tar.TypeChar, Name: "c"}), byte(2))
	f.Add(rawPax(map[string]string{"GNU.sparse.map": "0,1", "GNU.sparse.size": "5", "GNU.sparse.numblocks": "1"}, "x"), byte(1))
	f.Fuzz(func(t *testing.T, data []byte, mode byte) {
		root, outside := jail(t)
		kept, _ := jail(t)
		var meta bytes.Buffer
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := Extract(ctx, root, bytes.NewReader(data), Options{Whiteouts: Whiteouts(mode % 3), Meta: &meta, Kept: kept})
		untouched(t, outside)
		if err != nil {
			return
		}
		var again bytes.Buffer
		frames := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(meta.Bytes())), nil }
		if err := Assemble(ctx, root, kept, frames, &again); err != nil || !bytes.Equal(again.Bytes(), data) {
			t.Errorf("assembled %d bytes of %d: %v", again.Len(), len(data), err)
		}
	})
}

func FuzzAssemble(f *testing.F) {
	const loot = "what nobody outside may see"
	f.Add([]byte("r\x03abcf\x01x\x00k\x01xe"))
	for _, name := range []string{"l", "a", "d/loot", "../outside/loot", "d/../../outside/loot"} {
		f.Add(fmt.Appendf(nil, "f%c%s%ce", len(name), name, len(loot)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		root, outside := jail(t)
		for _, err := range []error{os.WriteFile(outside+"/loot", []byte(loot), 0o600), os.Symlink("../outside/loot", root.Name()+"/l"), os.Symlink(outside+"/loot", root.Name()+"/a"), os.Symlink(outside, root.Name()+"/d")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		_ = Assemble(ctx, root, nil, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, &out) // most of it makes no sense
		if bytes.Contains(out.Bytes(), []byte(loot)) && !bytes.Contains(data, []byte(loot)) {
			t.Errorf("read outside the root: %q", out.Bytes())
		}
	})
}

func BenchmarkExtractSmallFiles(b *testing.B) {
	var list []tar.Header
	for i := range 100 {
		list = append(list, tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/", i)})
		for j := range 20 {
			list = append(list, tar.Header{Name: fmt.Sprintf("d%d/f%d", i, j), Linkname: strings.Repeat("x", 1000)})
		}
	}
	data := pack(b, list...)
	for b.Loop() {
		b.StopTimer()
		root, _ := jail(b)
		b.StartTimer()
		if _, err := Extract(ctx, root, bytes.NewReader(data), Options{Whiteouts: Convert, Meta: io.Discard, Kept: root}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(list)), "entries/op")
}
