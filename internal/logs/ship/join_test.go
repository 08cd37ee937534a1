package ship

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/logfile"
)

// put writes a log of whole records; those of the error stream begin with "!".
func put(t *testing.T, dir string, records ...string) {
	t.Helper()
	w, err := logfile.Open(logfile.Options{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i, text := range records {
		s := logfile.Stdout
		if rest, ok := strings.CutPrefix(text, "!"); ok {
			s, text = logfile.Stderr, rest
		}
		if err := w.Write(s, int64(i+1), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
}

// collect reads all messages from a place on, to the end of a log that has ended.
func collect(t *testing.T, dir string, from place, join *Join) (all []string, places []place) {
	t.Helper()
	j := &joiner{cutter: newCutter(dir, from), join: join}
	defer j.tape.Close()
	j.ended = true
	b := batch{limit: 256 << 10}
	for {
		if err := b.collect(j); err != nil {
			t.Fatal(err)
		}
		if len(b.msgs) == 0 {
			return all, places
		}
		for i := range b.msgs {
			all, places = append(all, string(b.msgs[i].Line)), append(places, b.places[i])
		}
	}
}

// A trace of a stack is one message, whichever way its lines came, and every place that was kept leads to the messages behind it as a whole.
func TestJoin(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "  lost its head\n[1] one\n", "[2] two\n  at a\n", "  at b\n[3]", " three\n  at c\n", "!  at d\n", "  at e\n", "!  at f\n", "[4] "+strings.Repeat("x", MaxLine)+"\n", "  at g\n[5] five\n  at ", "h\n[6] no end")
	join := &Join{Start: regexp.MustCompile(`^\[`), MaxBytes: 1000, Wait: time.Hour}
	want := []string{"  lost its head", "[1] one", "[2] two\n  at a\n  at b", "[3] three\n  at c", "  at d", "  at e", "  at f",
		"[4] " + strings.Repeat("x", MaxLine-4), "xxxx", "  at g", "[5] five\n  at h", "[6] no end"}
	got, places := collect(t, dir, place{}, join)
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Fatalf("%q\nwant %q", got, want)
	}
	for i, p := range places {
		if rest, _ := collect(t, dir, p, join); strings.Join(rest, "|") != strings.Join(want[i+1:], "|") {
			t.Errorf("behind message %d: %q, want %q", i, rest, want[i+1:])
		}
	}
	join.MaxBytes = 14
	if got, _ := collect(t, dir, place{}, join); got[2] != "[2] two\n  at a" || got[3] != "  at b" {
		t.Errorf("a bound of 14 bytes: %q", got[2:4])
	}
}

// A message waits for its next line as long as it was said, and no longer.
func TestJoinWaits(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "[1] one\n  at a\n")
	j := &joiner{cutter: newCutter(dir, place{}), join: &Join{Start: regexp.MustCompile(`^\[`), MaxBytes: 1000, Wait: time.Hour}}
	defer j.tape.Close()
	var m Message
	var p place
	if ok, err := j.next(&m, &p); ok || err != nil {
		t.Fatalf("%q, %v", m.Line, err)
	}
	if due, held := j.due(); !held || due <= 0 {
		t.Errorf("due in %s, %t", due, held)
	}
	j.join.Wait = time.Nanosecond
	if ok, err := j.next(&m, &p); !ok || err != nil || !bytes.Equal(m.Line, []byte("[1] one\n  at a")) {
		t.Errorf("%q, %t, %v", m.Line, ok, err)
	}
	if _, held := j.due(); held {
		t.Error("nothing is held any more")
	}
}

func TestJoinOptions(t *testing.T) {
	find := func(name string) Driver {
		if name == "test" {
			return &receiver{}
		}
		return nil
	}
	parse := func(names string, opts map[string]string) (*Config, error) {
		return Parse(find, Request{Names: names, Options: opts})
	}
	c, err := parse("test,local", map[string]string{"multiline-pattern": "^x", "test.multiline-pattern": "^y", "multiline-wait": "20ms", "multiline-max-bytes": "2k"})
	if err != nil || c.Targets[0].Join.Start.String() != "^y" || c.Targets[0].Join.Wait != 20*time.Millisecond || c.Targets[0].Join.MaxBytes != 2048 || len(c.Targets[0].Options) != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []map[string]string{
		{"multiline-pattern": "("}, {"multiline-pattern": ""}, {"multiline-wait": "1s"}, {"multiline-pattern": "x", "multiline-wait": "0s"}, {"multiline-pattern": "x", "multiline-max-bytes": "1g"}, {"multiline-bogus": "1"},
	} {
		if _, err := parse("test", bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	if _, err := parse("local", map[string]string{"multiline-pattern": "x"}); err == nil || err.(interface{ Unwrap() []error }).Unwrap()[1] != errs.Invalid {
		t.Errorf("local: %v", err)
	}
}
