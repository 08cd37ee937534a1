package copied

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func archive(t testing.TB, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range entries {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = "data"
		}
		h.Size, h.Mode = int64(len(content)), 0o755
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(tw, content)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func TestThereAndBack(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, err := range []error{os.MkdirAll(filepath.Join(from, "d", "sub"), 0o755), os.WriteFile(filepath.Join(from, "d", "f"), []byte("x"), 0o640),
		os.Symlink("f", filepath.Join(from, "d", "l")), os.Chmod(filepath.Join(from, "d", "sub"), 0o500)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	src, err := Open(filepath.Join(from, "d"), false)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := src.Write(&buf, "new"); err != nil {
		t.Fatal(err)
	}
	target, err := Destination("/x/new", true, filepath.Join(to, "named"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Extract(&buf, target, false); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(to, "named", "l")); err != nil || string(data) != "x" {
		t.Error(string(data), err)
	}
	if st, err := os.Stat(filepath.Join(to, "named", "sub")); err != nil || st.Mode().Perm() != 0o500 {
		t.Error(st, err)
	}
	if st, err := os.Stat(filepath.Join(to, "named", "f")); err != nil || st.Mode().Perm() != 0o640 {
		t.Error(st, err)
	}
}

func TestWhereACopyLands(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		src   string
		isDir bool
		dst   string
		want  string
	}{
		{"/a/b", true, dir, "b b"}, {"/a/b/.", true, dir, ". ."}, {"/", true, dir, ". ."}, {"/a/..", true, dir + "/new", ". new"}, {".", true, dir, ". ."}, {"/a/b", true, dir + "/new", "b new"}, {"/a/b/.", true, dir + "/new", ". new"},
		{"/a/f", false, file, "f file"}, {"/a/f", false, dir + "/", "f f"}, {"/a/b", true, file, "cannot copy directory"},
		{"/a/f", false, dir + "/new/", "no such directory"}, {"/a/f", false, dir + "/no/new", "does not exist"}, {"/a/f", false, file + "/", "not a directory"},
	} {
		to, err := Destination(c.src, c.isDir, c.dst)
		got := to.From + " " + to.To
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// A container may send any archive. What it names outside of the copy, or behind a link, must not be touched.
func TestHostileArchives(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"parent":          {{Name: "../evil", Typeflag: tar.TypeReg}},
		"absolute":        {{Name: "/evil", Typeflag: tar.TypeReg}},
		"other name":      {{Name: "other", Typeflag: tar.TypeReg}},
		"link then write": {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../../out"}, {Name: "d/l/evil", Typeflag: tar.TypeReg}},
		"absolute link":   {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "OUT"}, {Name: "d/l/evil", Typeflag: tar.TypeReg}},
		"hard link out":   {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/h", Typeflag: tar.TypeLink, Linkname: "../out/secret"}},
		"folder as link":  {{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "OUT"}, {Name: "d/evil", Typeflag: tar.TypeReg}},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			in, out := filepath.Join(top, "in"), filepath.Join(top, "out")
			for _, d := range []string{in, out} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(out, "secret"), []byte("s"), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range entries {
				entries[i].Linkname = strings.ReplaceAll(entries[i].Linkname, "OUT", out)
			}
			if err := Extract(archive(t, entries...), Target{Dir: in, From: "d", To: "d"}, false); err == nil {
				t.Error("went through")
			}
			left, err := os.ReadDir(out)
			if err != nil || len(left) != 1 {
				t.Errorf("%v %v", left, err)
			}
			if _, err := os.Stat(filepath.Join(top, "evil")); err == nil {
				t.Error("written outside")
			}
		})
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/f", Typeflag: tar.TypeReg}).Bytes())
	f.Add(archive(f, tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "/"}, tar.Header{Name: "d/f", Typeflag: tar.TypeReg}).Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		in := filepath.Join(top, "in")
		if err := os.Mkdir(in, 0o755); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte("\x003")) || bytes.Contains(data, []byte("\x004")) {
			t.Skip("no devices on the machine that fuzzes")
		}
		_ = Extract(bytes.NewReader(data), Target{Dir: in, From: "d", To: "d"}, false)
		if left, err := os.ReadDir(top); err != nil || len(left) != 1 {
			t.Errorf("written outside: %v %v", left, err)
		}
	})
}

// A copy whose connection broke left the first half of a file, under the name of the whole one, in the place of what had been there.
// What could not be read is told at the end of an archive, which then has no end: all else is there, modes of folders too, and the text is the error's.
func TestCopyWithoutWhatCouldNotBeRead(t *testing.T) {
	to := t.TempDir()
	var from bytes.Buffer
	tw := tar.NewWriter(&from)
	for _, h := range []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o500},
		{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o600},
		{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{unreadNote: "all but one file are copied: open /d/g: permission denied"}},
	} {
		if err := errors.Join(tw.WriteHeader(&h), tw.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	r := io.MultiReader(&from, iotest.ErrReader(io.ErrUnexpectedEOF))
	err := Extract(r, Target{Dir: to, From: "d", To: "d"}, false)
	if err == nil || err.Error() != "all but one file are copied: open /d/g: permission denied" {
		t.Error(err)
	}
	st, err := os.Stat(filepath.Join(to, "d"))
	if err != nil || st.Mode().Perm() != 0o500 {
		t.Error(st, err)
	}
	if _, err := os.Stat(filepath.Join(to, "d", "f")); err != nil {
		t.Error(err)
	}
}

func TestBrokenCopyLeavesWhatWasThere(t *testing.T) {
	to := t.TempDir()
	if err := os.WriteFile(filepath.Join(to, "f"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	whole := archive(t, tar.Header{Name: "f", Typeflag: tar.TypeReg})
	for _, at := range []int{512, 513, 515, 1024, whole.Len()} { // a tar archive's head has 512 bytes; after the last it is the connection that says that it broke
		r := io.MultiReader(bytes.NewReader(whole.Bytes()[:at]), iotest.ErrReader(io.ErrUnexpectedEOF))
		if err := Extract(r, Target{Dir: to, From: "f", To: "f"}, false); err == nil {
			t.Errorf("%d bytes of an archive were taken for all", at)
		}
		entries, err := os.ReadDir(to)
		if err != nil || len(entries) != 1 {
			t.Errorf("after %d bytes: %v %v", at, entries, err)
		}
		if data, err := os.ReadFile(filepath.Join(to, "f")); err != nil || string(data) != "old" {
			t.Errorf("after %d bytes: %q %v", at, data, err)
		}
	}
}

// A file with two names was copied as two files; docker's cp, like cp -a, keeps it one.
func TestTwoNamesOfOneFile(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := errors.Join(os.MkdirAll(filepath.Join(from, "sub"), 0o755), os.Mkdir(to, 0o755), os.WriteFile(filepath.Join(from, "a"), []byte("data"), 0o644),
		os.Link(filepath.Join(from, "a"), filepath.Join(from, "sub", "b"))); err != nil {
		t.Fatal(err)
	}
	src, err := Open(from, false)
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if err := src.Write(&stream, "it"); err != nil {
		t.Fatal(err)
	}
	if err := Extract(&stream, Target{Dir: to, From: "it", To: "it"}, false); err != nil {
		t.Fatal(err)
	}
	a, err := os.Stat(filepath.Join(to, "it", "a"))
	b, err2 := os.Stat(filepath.Join(to, "it", "sub", "b"))
	if err := errors.Join(err, err2); err != nil || !os.SameFile(a, b) {
		t.Errorf("two files: %v", err)
	}
}
