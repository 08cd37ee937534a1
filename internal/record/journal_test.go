package record

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"corten.dev/corten/internal/errs"
)

func openJournal(t testing.TB, path string) (*Journal[string], map[string]string) {
	t.Helper()
	j, all, err := OpenJournal[string](path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j, all
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "journal")
	j, all := openJournal(t, path)
	if len(all) > 0 {
		t.Fatal(all)
	}
	odd := "a \"name\"\nof two lines\x00"
	if err := errors.Join(j.Put("a", "1"), j.Put(odd, "2\n"), j.Put("gone", "3"), j.Put("a", "4"), j.Delete("gone"), j.Delete("never"), j.Flush()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "\xff"} {
		if err := j.Put(name, ""); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	want := map[string]string{"a": "4", odd: "2\n"}
	for range 2 {
		var got map[string]string
		if j, got = openJournal(t, path); !maps.Equal(got, want) {
			t.Errorf("%q", got)
		}
	}
	if data, err := os.ReadFile(path); err != nil || strings.Count(string(data), "\n") != 2 {
		t.Errorf("history stays: %q %v", data, err)
	}
	for i := range journalHistory + 10 {
		if err := j.Put("a", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	want["a"] = fmt.Sprint(journalHistory + 9)
	if !j.Long(2) {
		t.Error("a journal of history only is not long")
	}
	if err := errors.Join(j.Rewrite(want), j.Put("b", "5"), j.Close(), j.Put("c", "6")); err != nil || j.Long(4) {
		t.Fatal(err)
	}
	want["b"], want["c"] = "5", "6"
	if _, got := openJournal(t, path); !maps.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// A line that is cut off anywhere costs its own change, and no other one.
func TestJournalTorn(t *testing.T) {
	lines := make([][]byte, 3)
	for i, rec := range []string{"first", "second", "third"} {
		var err error
		if lines[i], err = makeLine(fmt.Sprint(i), &rec); err != nil {
			t.Fatal(err)
		}
	}
	for cut := range lines[1] {
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, append(lines[0][:len(lines[0]):len(lines[0])], lines[1][:cut]...), 0o600); err != nil {
			t.Fatal(err)
		}
		j, all := openJournal(t, path)
		want := 1
		if cut == len(lines[1])-1 {
			want = 2 // all but the end of the line
		}
		if len(all) != want || all["0"] != "first" {
			t.Errorf("cut at %d: %v", cut, all)
		}
		if err := j.Put("2", "third"); err != nil {
			t.Fatal(err)
		}
		if _, all := openJournal(t, path); len(all) != want+1 || all["2"] != "third" {
			t.Errorf("cut at %d, then more: %v", cut, all)
		}
		// The disk was full: the process goes on behind the torn line.
		j.torn = true
		if err := j.Put("3", "fourth"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestJournalTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := openJournal(t, path)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 100 {
				if err := j.Put(fmt.Sprint(i), fmt.Sprint(n)); err != nil {
					t.Error(err)
				}
				if n%20 == 0 {
					if err := j.Flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	_, all := openJournal(t, path)
	for i := range 8 {
		if all[fmt.Sprint(i)] != "99" {
			t.Error(all)
		}
	}
}

// Whatever a crash made of the file: what is read can be written and read again.
func FuzzJournal(f *testing.F) {
	rec := "x\n"
	line, err := makeLine("a b\n", &rec)
	if err != nil {
		f.Fatal(err)
	}
	gone, err := makeLine[string]("a b\n", nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(line, gone...))
	f.Add([]byte("00000000 {\"n\":\"a\"}\n\n{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, _ := parseJournal[string](data)
		var again []byte
		for name, rec := range all {
			line, err := makeLine(name, &rec)
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, line...)
		}
		if back, damaged := parseJournal[string](again); damaged > 0 || !maps.Equal(all, back) {
			t.Errorf("%v became %v, %d damaged", all, back, damaged)
		}
	})
}

func BenchmarkJournalPut(b *testing.B) {
	j, _ := openJournal(b, filepath.Join(b.TempDir(), "journal"))
	for b.Loop() {
		if err := j.Put("name", strings.Repeat("x", 300)); err != nil {
			b.Fatal(err)
		}
	}
}
