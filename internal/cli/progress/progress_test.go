package progress

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

const report = `{"status":"Pulling from library/busybox","id":"latest"}
{"status":"Pulling fs layer","progressDetail":{},"id":"aaaa"}
{"status":"Pulling fs layer","progressDetail":{},"id":"bbbb"}
{"status":"Downloading","progressDetail":{"current":524288,"total":1048576},"id":"aaaa","progress":"x"}
{"status":"Pull complete","progressDetail":{},"id":"aaaa"}
{"status":"Digest: sha256:1"}
{"progressDetail":{},"aux":{"Tag":"latest"}}
`

func TestPipe(t *testing.T) {
	var out bytes.Buffer
	var aux string
	s := Screen{Out: &out, Aux: func(raw json.RawMessage) { aux = string(raw) }}
	if err := s.Show(strings.NewReader(report)); err != nil {
		t.Fatal(err)
	}
	if want := "latest: Pulling from library/busybox\naaaa: Pulling fs layer\nbbbb: Pulling fs layer\naaaa: Pull complete\nDigest: sha256:1\n"; out.String() != want || aux != `{"Tag":"latest"}` {
		t.Errorf("%q %s", out.String(), aux)
	}
}

func TestTerminal(t *testing.T) {
	var out bytes.Buffer
	if err := (Screen{Out: &out, Live: true}).Show(strings.NewReader(report)); err != nil {
		t.Fatal(err)
	}
	want := "latest: Pulling from library/busybox\n" +
		"\n\x1b[1A\x1b[2K\raaaa: Pulling fs layer \r\x1b[1B" +
		"\n\x1b[1A\x1b[2K\rbbbb: Pulling fs layer \r\x1b[1B" +
		"\x1b[2A\x1b[2K\raaaa: Downloading [=========================>                         ]  524.3kB/1.049MB\r\x1b[2B" +
		"\x1b[2A\x1b[2K\raaaa: Pull complete \r\x1b[2B" +
		"Digest: sha256:1\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
	out.Reset()
	narrow := Screen{Out: &out, Live: true, Wide: func() int { return 80 }}
	if err := narrow.Show(strings.NewReader(report)); err != nil || strings.Contains(out.String(), "[==") || !strings.Contains(out.String(), "524.3kB/1.049MB") {
		t.Errorf("%q %v", out.String(), err)
	}
}

func TestErrors(t *testing.T) {
	for in, want := range map[string]string{
		`{"errorDetail":{"message":"gone"},"error":"gone"}`: "gone",
		`{"error":"old\u001b[31m words"}`:                   "old[31m words",
		`{"status":`:                                        "read progress: unexpected EOF",
	} {
		var out bytes.Buffer
		if err := (Screen{Out: &out}).Show(strings.NewReader(in)); err == nil || err.Error() != want {
			t.Errorf("%s: %v", in, err)
		}
	}
	// A disk or pipe that takes nothing more is told.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	if err := (Screen{Out: full}).Show(strings.NewReader(report)); err == nil {
		t.Error("nothing said")
	}
}

func FuzzShow(f *testing.F) {
	f.Add(report)
	f.Add(`{"stream":"\u001b[2J","id":"a"}`)
	f.Fuzz(func(t *testing.T, in string) {
		var out bytes.Buffer
		_ = (Screen{Out: &out}).Show(strings.NewReader(in)) // what is no JSON is an error; nothing may panic
		if strings.ContainsAny(out.String(), "\x1b\x00") {
			t.Errorf("control characters: %q", out.String())
		}
	})
}

// A number below nothing made a bar of negative length, which ended the client.
func TestNumbersThatCannotBe(t *testing.T) {
	var out strings.Builder
	screen := Screen{Out: &out, Live: true}
	if err := screen.Show(strings.NewReader(`{"id":"a","status":"Downloading","progressDetail":{"current":-5,"total":10}}{"id":"a","status":"Downloading","progressDetail":{"current":-5,"total":-10}}`)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "a: Downloading") {
		t.Errorf("%q", out.String())
	}
}
