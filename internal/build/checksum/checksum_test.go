package checksum

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum/pick"
)

func open(t testing.TB, dir string) *Sums {
	t.Helper()
	s, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func files(t testing.TB, dir string) *build.Files {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &build.Files{Root: f, Key: dir, Owner: &[2]uint32{}}
}

func sum(t testing.TB, s *Sums, f *build.Files, sel pick.Selection) digest.Digest {
	t.Helper()
	dgst, err := s.Files(context.Background(), f, sel)
	if err != nil {
		t.Fatalf("%+v: %v", sel, err)
	}
	return dgst
}

func write(t testing.TB, name, body string) {
	t.Helper()
	os.MkdirAll(filepath.Dir(name), 0o755)
	if err := os.WriteFile(name, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
}

// age makes everything below dir look as if it had been there for long: its change time cannot be set, so the clock of the test must pass.
func age() { time.Sleep(40 * time.Millisecond) }

func big(t testing.TB, n int) string {
	dir := t.TempDir()
	for i := range n {
		sub := fmt.Sprintf("%s/d%d/e%d", dir, i/1000, i/100%10)
		if i%100 == 0 {
			os.MkdirAll(sub, 0o755)
		}
		if err := os.WriteFile(fmt.Sprintf("%s/file%d.go", sub, i), []byte(fmt.Sprint("package p // ", i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	age()
	return dir
}

func BenchmarkFiles(b *testing.B) {
	dir := big(b, 50000)
	f := files(b, dir)
	all := pick.Selection{Path: "/", Contents: true}
	ignore := *f
	ignore.Exclude = []string{".git", "node_modules", "**/*.md", "Dockerfile*", "!keep.md"}
	state := b.TempDir()
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			s := open(b, b.TempDir())
			sum(b, s, f, all)
			s.Close()
		}
	})
	s := open(b, state)
	sum(b, s, f, all)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			sum(b, s, f, all)
		}
	})
	b.Run("unchanged-ignore", func(b *testing.B) {
		sum(b, s, &ignore, all)
		for b.Loop() {
			sum(b, s, &ignore, all)
		}
	})
	b.Run("after-start", func(b *testing.B) {
		s.Close()
		for b.Loop() {
			s := open(b, state)
			sum(b, s, f, all)
			s.Close()
		}
	})
	s = open(b, state)
	b.Run("one-changed", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			os.WriteFile(dir+"/d7/e3/file7300.go", []byte(fmt.Sprint("changed ", i)), 0o644)
			sum(b, s, f, all)
		}
	})
	b.Run("stat-only", func(b *testing.B) {
		for b.Loop() {
			for i := range 50000 {
				var st unix.Stat_t
				if err := unix.Lstat(fmt.Sprintf("%s/d%d/e%d/file%d.go", dir, i/1000, i/100%10, i), &st); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
