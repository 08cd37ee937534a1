package tarfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// Files below /proc say that they are empty: a folder of them was an archive of empty files, and ended at the first that cannot be opened.
func TestFilesOfTheKernel(t *testing.T) {
	read := func(dir string) (files map[string]string, note string, err, end error) {
		t.Helper()
		root, oerr := os.Open(dir)
		if oerr != nil {
			t.Fatal(oerr)
		}
		defer root.Close()
		var out bytes.Buffer
		err = Write(t.Context(), root, &out, WriteOptions{Root: true, Base: "x", NoMade: true, ReadMade: true})
		files = map[string]string{}
		for tr := tar.NewReader(io.MultiReader(&out, broken{})); ; {
			h, nerr := tr.Next()
			if nerr != nil {
				return files, note, err, nerr
			}
			if h.Typeflag == tar.TypeXGlobalHeader {
				note = h.PAXRecords[UnreadNote]
				continue
			}
			data, rerr := io.ReadAll(tr)
			if rerr != nil {
				t.Fatal(rerr)
			}
			files[h.Name] = string(data)
		}
	}

	files, note, err, end := read("/proc/self/fdinfo")
	if err != nil || note != "" || end != io.EOF {
		t.Errorf("all can be read: %v, %q, %v", err, note, end)
	}
	for name, text := range files {
		if !strings.HasSuffix(name, "/") && !strings.HasPrefix(text, "pos:") {
			t.Errorf("%s has %q", name, text)
		}
	}

	// mem has no page at 0.
	files, note, err, end = read("/proc/self/task/../../self")
	if err == nil || note != err.Error() || !strings.HasPrefix(note, "all but ") || !strings.Contains(note, "/x/") || end == io.EOF {
		t.Errorf("not all can be read: %v, %q, %v", err, note, end)
	}
	if _, ok := files["x/mem"]; ok || !strings.HasPrefix(files["x/status"], "Name:") {
		t.Errorf("mem: %v, status: %q", ok, files["x/status"])
	}
}

// broken is a connection that broke.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }
