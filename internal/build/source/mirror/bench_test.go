package mirror

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A tree of 50,000 files of which nothing changed: what a rebuild waits for when its context lies on another host.
func BenchmarkUnchanged(b *testing.B) {
	m, err := New(Options{Root: filepath.Join(b.TempDir(), "mirrors")})
	if err != nil {
		b.Fatal(err)
	}
	src := b.TempDir()
	w := &walked{dir: src}
	for d := range 500 {
		dir := fmt.Sprintf("d%04d", d)
		if err := os.Mkdir(filepath.Join(src, dir), 0o755); err != nil {
			b.Fatal(err)
		}
		w.entries = append(w.entries, Entry{Path: dir, Mode: fs.ModeDir | 0o755, ModTime: 5})
		for f := range 100 {
			name := fmt.Sprintf("%s/f%04d", dir, f)
			if err := os.WriteFile(filepath.Join(src, name), []byte("x"), 0o644); err != nil {
				b.Fatal(err)
			}
			w.entries = append(w.entries, Entry{Path: name, Mode: 0o644, Size: 1, ModTime: 7})
		}
	}
	req := Request{SharedKey: "k", Name: "context"}
	up := func() {
		w.next, w.wanted = 0, nil
		_, release, err := m.Update(b.Context(), w, req)
		if err != nil {
			b.Fatal(err)
		}
		release()
	}
	up()
	for b.Loop() {
		if up(); len(w.wanted) > 0 {
			b.Fatal(len(w.wanted), "files travelled")
		}
	}
}
