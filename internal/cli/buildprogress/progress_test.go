package buildprogress

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// event is a line of a recorded stream: when it came (seconds by our clock, which is an hour off the engine's), and what.
type event struct {
	At     float64
	Status json.RawMessage
}

func stories(t *testing.T, each func(t *testing.T, name string, events []event)) {
	files, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(file, ".jsonl")
		t.Run(filepath.Base(name), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var events []event
			for line := range strings.Lines(string(data)) {
				var e event
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatal(err)
				}
				events = append(events, e)
			}
			each(t, name, events)
		})
	}
}

func clockAt(sec float64) time.Time {
	return time.Date(2026, 1, 2, 4, 4, 5, 0, time.UTC).Add(time.Duration(sec * float64(time.Second)))
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestPlain(t *testing.T) {
	stories(t, func(t *testing.T, name string, events []event) {
		var out bytes.Buffer
		now := clockAt(0)
		d, err := New(Options{Out: &out, Mode: Text, Clock: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			now = clockAt(e.At)
			if err := d.Update(e.Status, ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Finish(); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".plain", out.Bytes())
	})
}

// The frames of the live view, each as the terminal has it then.
func TestLive(t *testing.T) {
	stories(t, func(t *testing.T, name string, events []event) {
		var out bytes.Buffer
		m := NewModel(20)
		v := NewLive(m, "Building", false)
		scr := &screen{width: 60}
		for i, e := range events {
			var st Status
			if err := json.Unmarshal(e.Status, &st); err != nil {
				t.Fatal(err)
			}
			m.Apply(&st, "", clockAt(e.At))
			last := i == len(events)-1
			scr.write(t, v.Frame(clockAt(e.At), 60, 12, last))
			if n := len(scr.lines); n > 12 && !last {
				t.Errorf("frame %d has %d lines", i, n)
			}
			fmt.Fprintf(&out, "== %.2f\n%s", e.At, scr)
		}
		out.Write(m.Failures(20))
		golden(t, name+".tty", out.Bytes())
	})
}

// screen is the little of a terminal that the live view uses.
type screen struct {
	width int
	lines []string
	row   int
}

func (s *screen) String() string { return strings.Join(s.lines, "\n") + "\n" }

func (s *screen) write(t *testing.T, p []byte) {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(p))
	for {
		c, _, err := r.ReadRune()
		if err != nil {
			return
		}
		switch c {
		case '\r':
			if s.row < len(s.lines) {
				s.lines[s.row] = ""
			}
		case '\n':
			s.row++
		case 0x1b:
			r.ReadByte()
			arg, final := "", byte(0)
			for {
				b, err := r.ReadByte()
				if err != nil {
					t.Fatal("a sequence without an end")
				}
				if final = b; b >= 0x40 && b <= 0x7e {
					break
				}
				arg += string(b)
			}
			switch final {
			case 'A':
				n := 0
				fmt.Sscan(arg, &n)
				s.row -= n
				for i := max(s.row, 0); i < len(s.lines); i++ { // what is drawn anew
					s.lines[i] = ""
				}
				if s.row < 0 {
					t.Fatal("above the screen")
				}
			case 'J':
				s.lines = s.lines[:min(len(s.lines), s.row)]
			case 'K', 'h', 'l', 'm':
			default:
				t.Fatalf("unknown sequence %q%c", arg, final)
			}
		default:
			for len(s.lines) <= s.row {
				s.lines = append(s.lines, "")
			}
			s.lines[s.row] += string(c)
			if wide(s.lines[s.row]) > s.width {
				t.Errorf("a line is wider than the terminal: %q", s.lines[s.row])
			}
		}
	}
}

func TestSourceLines(t *testing.T) {
	src := &Source{Filename: "Dockerfile", Data: []byte("FROM a\nRUN b \\\n  c\nRUN d\nRUN e\n")}
	var b bytes.Buffer
	if err := src.Lines(&b, []Range{{Position{Line: 2}, Position{Line: 3}}}); err != nil {
		t.Fatal(err)
	}
	if err := src.Lines(&b, []Range{{Position{Line: 1}, Position{Line: 1}}}); err != nil {
		t.Fatal(err)
	}
	if err := src.Lines(&b, []Range{{Position{Line: 99}, Position{Line: 99}}}); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/source.txt", b.Bytes())
}

func TestWarnings(t *testing.T) {
	var b bytes.Buffer
	list := []Warning{{Short: []byte("StageNameCasing: write it small (line 1)"), Detail: [][]byte{[]byte("why")}, URL: "https://example.org",
		Source: &Source{Filename: "Dockerfile", Data: []byte("FROM a AS B\n")}, Ranges: []Range{{Position{Line: 1}, Position{Line: 1}}}}}
	for _, details := range []bool{false, true} {
		if err := printWarnings(&b, list, details, false); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "testdata/warnings.txt", b.Bytes())
}

// What a build prints must not reach the terminal as commands.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"a\tb": "a    b", "10%\r20%\r": "20%", "\x1b[31mred\x1b[0m": "red", "\x1b]0;title\x07x": "x", "a\x08b\x00": "ab", "\x1b]8;;u\x1b\\l": "l", "日本": "日本"} {
		if got := printable(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

// Whatever an engine sends: no panic, no line wider than the terminal.
func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"vertexes":[{"digest":"a","name":"x","started":"2026-01-02T03:04:05Z"}],"logs":[{"vertex":"a","data":"YWJj"}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		m, n := NewModel(5), NewModel(5)
		v, p := NewLive(m, "Building", true), NewPlain(n)
		for i, raw := range [][]byte{one, two, one} {
			var st Status
			if json.Unmarshal(raw, &st) != nil {
				return
			}
			m.Apply(&st, "", clockAt(float64(i)))
			n.Apply(&st, "app", clockAt(float64(i)))
			p.Next(clockAt(float64(i)))
			v.Frame(clockAt(float64(i)), 20, 5, i == 2)
			for _, w := range v.drawn {
				if w > 20 {
					t.Errorf("a line of %d cells", w)
				}
			}
		}
		m.Failures(3)
	})
}

func BenchmarkFrame(b *testing.B) {
	m := NewModel(20)
	for i := range 40 {
		start, stop := clockAt(0), clockAt(float64(i))
		m.Apply(&Status{Vertexes: []Vertex{{Digest: fmt.Sprint(i), Name: fmt.Sprintf("[%d/40] RUN x", i), Started: &start, Completed: &stop}}}, "", start)
	}
	v := NewLive(m, "Building", true)
	for b.Loop() {
		v.Frame(clockAt(50), 100, 30, false)
	}
}

// The live view and a quiet build kept every line that steps wrote, for the plain text that nobody was to see: a build that writes a gigabyte took as much of the client.
func TestOnlyPlainTextKeepsLines(t *testing.T) {
	now := time.Unix(100, 0)
	status := &Status{Vertexes: []Vertex{{Digest: "a", Name: "[1/1] RUN yes", Started: &now}}, Logs: []Log{{Vertex: "a", Data: bytes.Repeat([]byte("y\n"), 5000), Timestamp: now}}}
	for _, plain := range []bool{false, true} {
		m := NewModel(10)
		if plain {
			NewPlain(m)
		}
		m.Apply(status, "", now)
		s := m.steps["a"]
		if got := len(s.logs); plain && got != 5000 || !plain && got != 0 {
			t.Errorf("plain %t: %d lines kept", plain, got)
		}
		if len(s.lastLines(10)) != 10 {
			t.Errorf("plain %t: the last lines: %q", plain, s.lastLines(10))
		}
	}
}
