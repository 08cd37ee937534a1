package ship

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"corten.dev/corten/internal/logs/logfile"
)

// write makes a log of random pieces of lines of both streams, and returns what each stream said.
func write(t *testing.T, dir string, opts logfile.Options, seed uint64) (said [4]string) {
	t.Helper()
	opts.Path = dir
	w, err := logfile.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range 300 {
		s := logfile.Stdout + r.IntN(2)
		text := ""
		for range 1 + r.IntN(4) {
			switch r.IntN(9) {
			case 0:
				text += "\n"
			case 1:
				text += strings.Repeat("long ", 1000+r.IntN(6000))
			default:
				text += fmt.Sprintf("%d.%d ", i, s)
			}
			if r.IntN(3) > 0 {
				text += "\n"
			}
		}
		if text == "" {
			continue
		}
		said[s] += text
		if err := w.Write(s, int64(i+1), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return said
}

type got struct {
	stream  int
	text    string
	ends    bool
	number  int64
	partial Partial
}

// all cuts everything from a place on; each message with the place behind it.
func all(t *testing.T, dir string, from place) (msgs []got, places []place, missed int64) {
	t.Helper()
	c := newCutter(dir, from)
	defer c.tape.Close()
	for {
		var m Message
		var p place
		ok, err := c.next(&m, &p)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			if c.ended {
				return msgs, places, c.missed
			}
			c.ended = true
			continue
		}
		msgs, places = append(msgs, got{m.Stream, string(m.Line), m.Ends, m.Number, m.Partial}), append(places, p)
	}
}

func joined(msgs []got) (text [4]string) {
	for _, m := range msgs {
		text[m.stream] += m.text
		if m.ends {
			text[m.stream] += "\n"
		}
	}
	return text
}

// Every place that a follower may have kept leads to exactly the messages behind it, wherever lines of the two streams lie among each other.
func TestEveryPlaceIsOneToGoOnFrom(t *testing.T) {
	dir := t.TempDir()
	said := write(t, dir, logfile.Options{MaxSize: 200_000, MaxFiles: 1000}, 7)
	msgs, places, missed := all(t, dir, place{})
	if text := joined(msgs); text != said || missed != 0 {
		t.Fatalf("messages do not make up what was said (missed %d)", missed)
	}
	split := 0
	for i, p := range places {
		if i%11 != 0 && msgs[i].partial.Ordinal == 0 { // each of them takes reading all the rest
			continue
		}
		if len(msgs[i].text) > MaxLine {
			t.Errorf("message %d has %d bytes", i, len(msgs[i].text))
		}
		if msgs[i].partial.Ordinal > 0 {
			split++
		}
		rest, _, missed := all(t, dir, p)
		if len(rest) != len(msgs)-i-1 || missed != 0 {
			t.Fatalf("from place %d (%+v): %d messages, want %d; missed %d", i, p, len(rest), len(msgs)-i-1, missed)
		}
		for k, m := range rest {
			want := msgs[i+1+k]
			// Ids are random: a line whose first piece is cut anew has a new one.
			want.partial.ID, m.partial.ID = "", ""
			if m != want {
				t.Fatalf("from place %d, message %d: got %.80q %+v, want %.80q %+v", i, k, m.text, m, want.text, want)
			}
		}
	}
	if split == 0 {
		t.Error("no line was long enough")
	}
}

// What the bound took is counted: lines that are gone, and the one whose beginning is.
func TestWhatIsGoneIsCounted(t *testing.T) {
	for seed := range uint64(20) {
		dir := t.TempDir()
		said := write(t, dir, logfile.Options{MaxSize: 60_000, MaxFiles: 3}, seed)
		msgs, _, missed := all(t, dir, place{})
		lines := int64(strings.Count(said[1], "\n") + strings.Count(said[2], "\n"))
		ended := int64(0)
		for _, m := range msgs {
			if m.ends {
				ended++
			}
		}
		text := joined(msgs)
		for s := 1; s <= 2; s++ {
			if !strings.HasSuffix(said[s], text[s]) {
				t.Errorf("seed %d: stream %d is not the end of what was said", seed, s)
			}
		}
		if ended+missed != lines {
			t.Errorf("seed %d: %d lines and %d missed, said %d", seed, ended, missed, lines)
		}
	}
}

func TestKeeper(t *testing.T) {
	path := t.TempDir() + "/place"
	k, state, err := openKeeper(path)
	if err != nil || state.Sent != 0 {
		t.Fatal(state, err)
	}
	for i := range int64(5) {
		state.Sent, state.Number = i+1, i+1
		if err := k.keep(&state); err != nil {
			t.Fatal(err)
		}
	}
	// Half of the next one was written when the power went.
	if _, err := k.f.WriteAt([]byte("torn torn torn torn torn"), int64((k.serial+1)%2)*half); err != nil {
		t.Fatal(err)
	}
	k.close()
	k, state, err = openKeeper(path)
	if err != nil || state.Sent != 5 || state.Number != 5 {
		t.Fatalf("%+v %v", state, err)
	}
	k.close()
}

func FuzzKept(f *testing.F) {
	f.Add([]byte("0123456789abcdef{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var one kept
		decodeKept(b, &one)
	})
}
