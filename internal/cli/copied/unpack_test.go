package copied

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func tarOf(t testing.TB, list ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range list {
		if h.Typeflag == tar.TypeReg || h.Typeflag == 0 {
			h.Size = 4
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := tw.Write([]byte("evil")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// What an engine sends as a tree stays in the folder that was named, whatever names and links it has.
func TestUnpackStaysBelow(t *testing.T) {
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]tar.Header{
		"names":      {{Name: "../../outside/a"}, {Name: "/outside/b"}, {Name: "x/../../../outside/c"}},
		"link":       {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/a"}},
		"up":         {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l/a"}},
		"directory":  {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/d/", Typeflag: tar.TypeDir, Mode: 0o777}},
		"hard":       {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../outside/kept"}, {Name: "h"}},
		"through":    {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/kept"}},
		"over a dir": {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/f"}, {Name: "d", Typeflag: tar.TypeSymlink, Linkname: outside}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(outside, "kept"), []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(top, "out")
			defer os.RemoveAll(dir)
			err := UnpackTree(dir, tarOf(t, list...))
			left, gerr := filepath.Glob(outside + "/*")
			data, rerr := os.ReadFile(filepath.Join(outside, "kept"))
			if len(left) != 1 || gerr != nil || rerr != nil || string(data) != "kept" {
				t.Errorf("outside are %q (%q): %v", left, data, err)
			}
			if st, err := os.Stat(filepath.Join(outside, "kept")); err != nil || st.Mode().Perm() != 0o600 {
				t.Error(st, err)
			}
		})
	}
}

// Of a tree with times of its own (SOURCE_DATE_EPOCH), symbolic links had that of the moment; and so had those that were copied from a container.
func TestUnpackLinkTime(t *testing.T) {
	dir, at := filepath.Join(t.TempDir(), "out"), time.Unix(1_100_000_000, 0)
	link := tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "nowhere", ModTime: at}
	if err := UnpackTree(dir, tarOf(t, link)); err != nil {
		t.Fatal(err)
	}
	if err := Extract(tarOf(t, link), Target{Dir: dir, From: "l", To: "copy"}, false); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"l", "copy"} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err != nil || !st.ModTime().Equal(at) {
			t.Error(name, st.ModTime(), err)
		}
	}
}

// A tree with a named pipe or a device (any made by debootstrap) could not be written to a folder; buildx writes them.
func TestUnpackNodes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	pipe := tar.Header{Name: "run/pipe", Typeflag: tar.TypeFifo, Mode: 0o622}
	for range 2 { // over one that is there, too
		if err := UnpackTree(dir, tarOf(t, pipe)); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "run/pipe")); err != nil || st.Mode() != os.ModeNamedPipe|0o622 {
		t.Error(st, err)
	}
	err := UnpackTree(dir, tarOf(t, tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}))
	if errors.Is(err, os.ErrPermission) {
		t.Skip("no right to make devices")
	}
	if st, err := os.Stat(filepath.Join(dir, "null")); err != nil || st.Mode() != os.ModeDevice|os.ModeCharDevice|0o666 {
		t.Error(st, err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, tar.Header{Name: "a/b"}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "l/x"}).Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		top := t.TempDir()
		_ = UnpackTree(filepath.Join(top, "out"), bytes.NewReader(in)) // only where it writes is looked at
		if left, err := os.ReadDir(top); err != nil || len(left) > 1 {
			t.Errorf("%v %v", left, err)
		}
	})
}
