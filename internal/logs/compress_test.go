package logs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/logs/logfile"
)

// fill writes lines "line N" until there are so many.
func fill(t *testing.T, w *logfile.Writer, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		if err := w.Write(Stdout, int64(i)*int64(time.Second), fmt.Appendf(nil, "line %d %s\n", i, strings.Repeat("x", 100))); err != nil {
			t.Fatal(err)
		}
	}
}

func lineNumbers(t *testing.T, dir string, opts ReadOptions) (first, last, n int) {
	t.Helper()
	opts.Stdout = true
	l, err := Open(t.Context(), dir, opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for {
		line, err := l.Next(t.Context())
		if err == io.EOF {
			return first, last, n
		}
		if err != nil {
			t.Fatal(err)
		}
		var num int
		if _, err := fmt.Sscanf(string(line.Data), "line %d ", &num); err != nil {
			t.Fatalf("%q: %v", line.Data, err)
		}
		if n > 0 && num != last+1 {
			t.Fatalf("line %d follows line %d", num, last)
		}
		if n == 0 {
			first = num
		}
		last = num
		n++
	}
}

// Compressed files are read like others: from the beginning, by time, by the last lines; the writer drops them by its bound and goes on behind them; a follower's tape crosses them.
func TestCompressedFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	opts := logfile.Options{Path: dir, MaxSize: 100_000, MaxFiles: 5}
	w, err := logfile.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, w, 1, 4000)
	over := make(chan struct{})
	close(over)
	watches := NewWatches()
	defer watches.Close()
	if err := os.WriteFile(filepath.Join(dir, "00000002.log.zst.tmp"), []byte("of a killed engine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Compress(context.Background(), dir, watches, over); err != nil {
		t.Fatal(err)
	}
	w.Close()
	names := func(pattern string) int {
		all, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if names("*.zst") != 4 || names("*.log") != 1 || names("*.tmp") != 0 {
		entries, _ := os.ReadDir(dir)
		t.Fatalf("folder: %v", entries)
	}
	if w, err = logfile.Open(opts); err != nil { // the container is started again
		t.Fatal(err)
	}
	defer w.Close()
	fill(t, w, 4001, 4010)
	first, last, n := lineNumbers(t, dir, ReadOptions{Tail: -1})
	if last != 4010 || n != 4010-first+1 || n < 2000 {
		t.Errorf("all: %d to %d, %d lines", first, last, n)
	}
	if a, b, n := lineNumbers(t, dir, ReadOptions{Tail: 1500}); a != 2511 || b != 4010 || n != 1500 {
		t.Errorf("tail: %d to %d, %d lines", a, b, n)
	}
	if a, b, _ := lineNumbers(t, dir, ReadOptions{Tail: -1, Since: time.Unix(2000, 0), Until: time.Unix(2100, 0)}); a != 2000 || b != 2100 {
		t.Errorf("since: %d to %d", a, b)
	}
	tape := OpenTape(dir, Place{})
	defer tape.Close()
	var p Piece
	lines := 0
	for {
		ok, err := tape.Next(&p)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		lines += strings.Count(string(p.Data), "\n") + int(p.Missed)
	}
	if lines != 4010 {
		t.Errorf("the tape has %d lines", lines)
	}
	fill(t, w, 4011, 9000) // all that was compressed goes
	if names("*.zst") != 0 || names("*.idx") != 5 {
		t.Error("the bound left compressed files")
	}
	if err := Trim(dir, 1<<40); err != nil || names("*.log") != 1 || names("*.idx") != 1 {
		t.Errorf("trim: %v, %d files", err, names("*"))
	}
	fill(t, w, 9001, 9002)
	if _, last, _ := lineNumbers(t, dir, ReadOptions{Tail: 1}); last != 9002 {
		t.Errorf("after the trim the last line is %d", last)
	}
}
