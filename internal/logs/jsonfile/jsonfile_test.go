package jsonfile

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/logs/shiptest"
)

func info(t *testing.T, bound ship.Bound, opts map[string]string) *ship.Info {
	i := shiptest.Info(opts)
	i.LogPath, i.Bound = filepath.Join(t.TempDir(), "id-json.log"), bound
	return i
}

// The lines are byte for byte what Docker 20.10 writes for the same output.
func TestLines(t *testing.T) {
	for _, c := range []struct {
		opts map[string]string
		msg  string
		ends bool
		want string
	}{
		{nil, "out one", true, `{"log":"out one\n","stream":"stdout","time":"2026-02-03T04:05:06.789012345Z"}`},
		{nil, "!err", true, `{"log":"!err\n","stream":"stderr","time":"2026-02-03T04:05:06.789012345Z"}`},
		{nil, "", true, `{"log":"\n","stream":"stdout","time":"2026-02-03T04:05:06.789012345Z"}`},
		{nil, "no end", false, `{"log":"no end","stream":"stdout","time":"2026-02-03T04:05:06.789012345Z"}`},
		{nil, "\ttab\r", true, `{"log":"\u0009tab\r\n","stream":"stdout","time":"2026-02-03T04:05:06.789012345Z"}`},
		{nil, "a\xffb<>&\u2028\x01\"\\é", true, `{"log":"a\ufffdb\u003c\u003e\u0026\u2028\u0001\"\\é\n","stream":"stdout","time":"2026-02-03T04:05:06.789012345Z"}`},
		{map[string]string{"labels": "com.ex.a,b", "env": "FOO", "tag": "{{.ID}}x"}, "x", true,
			`{"log":"x\n","stream":"stdout","attrs":{"FOO":"x y","com.ex.a":"va","tag":"0123456789abx"},"time":"2026-02-03T04:05:06.789012345Z"}`},
	} {
		i := info(t, ship.Bound{}, c.opts)
		msgs := shiptest.Messages(c.msg)
		msgs[0].Ends = c.ends
		shiptest.Send(t, Driver{}, i, msgs)
		got, err := os.ReadFile(i.LogPath)
		if err != nil || string(got) != c.want+"\n" {
			t.Errorf("got  %s%v\nwant %s", got, err, c.want)
		}
	}
}

// read reads the files back, the oldest first.
func read(t *testing.T, path string) (lines []string) {
	t.Helper()
	var parts [][]string
	for n := 0; ; n++ {
		name := path
		if n > 0 {
			name = fmt.Sprintf("%s.%d", path, n)
		}
		f, err := os.Open(name)
		var r io.Reader = f
		if err != nil {
			if f, err = os.Open(name + ".gz"); err != nil {
				break
			}
			if r, err = gzip.NewReader(f); err != nil {
				t.Fatal(err)
			}
		}
		var part []string
		for s := bufio.NewScanner(r); s.Scan(); {
			var l struct{ Log string }
			if err := json.Unmarshal(s.Bytes(), &l); err != nil {
				t.Fatalf("%s: %v in %q", name, err, s.Text())
			}
			part = append(part, strings.TrimSuffix(l.Log, "\n"))
		}
		f.Close()
		parts = append(parts, part)
	}
	for i := len(parts) - 1; i >= 0; i-- {
		lines = append(lines, parts[i]...)
	}
	return lines
}

func numbered(from, to int) (lines []string) {
	for i := from; i <= to; i++ {
		lines = append(lines, fmt.Sprintf("line %d of some length", i))
	}
	return lines
}

func TestRotation(t *testing.T) {
	for _, c := range []struct {
		bound ship.Bound
		files []string
	}{
		{ship.Bound{MaxSize: 1000, MaxFiles: 4}, []string{"", ".1", ".2", ".3"}},
		{ship.Bound{MaxSize: 1000, MaxFiles: 3, Compress: true}, []string{"", ".1.gz", ".2.gz"}},
		{ship.Bound{MaxSize: 1000, MaxFiles: 1}, []string{""}},
		{ship.Bound{MaxSize: -1, MaxFiles: 3}, []string{""}},
	} {
		i := info(t, c.bound, nil)
		shiptest.Send(t, Driver{}, i, shiptest.Messages(numbered(1, 200)...))
		entries, err := os.ReadDir(filepath.Dir(i.LogPath))
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for _, e := range entries {
			have = append(have, strings.TrimPrefix(e.Name(), "id-json.log"))
			if st, err := e.Info(); err != nil || c.bound.MaxSize > 0 && st.Size() > c.bound.MaxSize+200 {
				t.Errorf("%s is too large: %d %v", e.Name(), st.Size(), err)
			}
		}
		if fmt.Sprint(have) != fmt.Sprint(c.files) {
			t.Errorf("%+v: files %q, want %q", c.bound, have, c.files)
		}
		lines := read(t, i.LogPath)
		if want := numbered(200-len(lines)+1, 200); len(lines) == 0 || fmt.Sprint(lines) != fmt.Sprint(want) || c.bound.MaxSize < 0 && len(lines) != 200 {
			t.Errorf("%+v: not the last lines: %q", c.bound, lines)
		}
	}
}

// An engine that is killed behind any Send writes what it had not told anybody about once more, and the file has it once, also when the kill fell into a rotation.
func TestNothingTwiceAfterAKill(t *testing.T) {
	all := numbered(1, 200)
	for _, bound := range []ship.Bound{{MaxSize: 1000, MaxFiles: 100}, {MaxSize: 1000, MaxFiles: 100, Compress: true}, {MaxSize: -1}} {
		i := info(t, bound, nil)
		mark, next := "", 0
		for round := 0; next < len(all); round++ {
			dest, err := Driver{}.Open(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			m := dest.(ship.Marked)
			if err := m.Resume(mark); err != nil {
				t.Fatal(err)
			}
			for k := range 3 {
				n, err := dest.Send(t.Context(), shiptest.Messages(all[next:min(next+5, len(all))]...))
				if err != nil {
					t.Fatal(err)
				}
				if k < 2 { // the place behind the last one was not kept
					next, mark = next+n, m.Mark()
				}
				if next == len(all) {
					break
				}
			}
			dest.Close()
		}
		if lines := read(t, i.LogPath); fmt.Sprint(lines) != fmt.Sprint(all) {
			t.Errorf("%+v: got %d lines %q", bound, len(lines), lines)
		}
	}
}

// People empty log files in place; the next lines follow.
func TestEmptiedInPlace(t *testing.T) {
	i := info(t, ship.Bound{}, nil)
	dest := shiptest.Send(t, Driver{}, i, shiptest.Messages(numbered(1, 10)...))
	if err := os.Truncate(i.LogPath, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := dest.Send(t.Context(), shiptest.Messages(numbered(11, 12)...)); err != nil {
		t.Fatal(err)
	}
	if lines := read(t, i.LogPath); fmt.Sprint(lines) != fmt.Sprint(numbered(11, 12)) {
		t.Errorf("%q", lines)
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("a\xff\u2028\x00\"<é"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var back string
		if err := json.Unmarshal(append(append([]byte{'"'}, appendText(nil, b)...), '"'), &back); err != nil {
			t.Fatalf("%v: %q", err, appendText(nil, b))
		}
		if want := strings.ToValidUTF8(string(b), "\ufffd"); utf8.Valid(b) && back != want {
			t.Errorf("%q became %q", b, back)
		}
	})
}

func BenchmarkLines(b *testing.B) {
	i := shiptest.Info(nil)
	i.LogPath, i.Bound = filepath.Join(b.TempDir(), "x"), ship.Bound{MaxSize: 20_000_000, MaxFiles: 3}
	dest, err := Driver{}.Open(b.Context(), i)
	if err != nil {
		b.Fatal(err)
	}
	defer dest.Close()
	msgs := shiptest.Messages(numbered(1, 1000)...)
	b.SetBytes(int64(len(msgs) * len(msgs[0].Line)))
	for b.Loop() {
		for left := msgs; len(left) > 0; {
			n, err := dest.Send(b.Context(), left)
			if err != nil {
				b.Fatal(err)
			}
			left = left[n:]
		}
	}
}
