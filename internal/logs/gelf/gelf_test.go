package gelf

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/logs/shiptest"
)

// assemble reads datagrams as the GELF specification describes them: chunks by their id and number, then gzip, zlib or plain by the first bytes.
func assemble(t *testing.T, grams [][]byte) (objects []string) {
	t.Helper()
	chunks := map[string][][]byte{}
	for _, b := range grams {
		if len(b) > 1420 {
			t.Errorf("a datagram of %d bytes", len(b))
		}
		if !bytes.HasPrefix(b, []byte{0x1e, 0x0f}) {
			objects = append(objects, unzip(t, b))
			continue
		}
		if len(b) < 13 || b[11] > 128 || b[10] >= b[11] {
			t.Fatalf("bad chunk % x", b[:min(len(b), 13)])
		}
		id := string(b[2:10])
		if chunks[id] == nil {
			chunks[id] = make([][]byte, b[11])
		}
		chunks[id][b[10]] = b[12:]
		whole := []byte{}
		for _, piece := range chunks[id] {
			if piece == nil {
				whole = nil
				break
			}
			whole = append(whole, piece...)
		}
		if whole != nil {
			objects = append(objects, unzip(t, whole))
		}
	}
	return objects
}

func unzip(t *testing.T, b []byte) string {
	t.Helper()
	var r io.Reader = bytes.NewReader(b)
	var err error
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(r)
	case b[0] == 0x78:
		r, err = zlib.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

// object is what must be in a message, by the specification and as Docker fills it.
func object(line string, level int, when float64) map[string]any {
	return map[string]any{
		"version": "1.1", "host": "desk", "short_message": line, "timestamp": when, "level": float64(level), "_container_id": strings.Repeat("0123456789abcdef", 4), "_container_name": "web",
		"_image_id": "sha256:" + strings.Repeat("f", 64), "_image_name": "app:1", "_command": "sh -c x", "_created": "2020-09-13T12:26:40.005Z", "_tag": "0123456789ab", "_FOO": "x y", "_com.ex.a": "va",
	}
}

func check(t *testing.T, objects []string, long string) {
	t.Helper()
	want := []map[string]any{object("hello \"you\" <&>", 6, 1770091506.789), object("!oh no", 3, 1770091506.791), object(long, 6, 1770091506.792)}
	for i := range want {
		var got map[string]any
		if err := json.Unmarshal([]byte(objects[i]), &got); err != nil {
			t.Fatalf("%v in %.200s", err, objects[i])
		}
		if fmt.Sprint(got) != fmt.Sprint(want[i]) {
			t.Errorf("got %.900v\nwant %.900v", got, want[i])
		}
	}
}

// random text does not get smaller by compression, so that it needs chunks.
func random() string {
	var b strings.Builder
	x := uint32(1)
	for b.Len() < 16000 {
		x = x*1664525 + 1013904223
		b.WriteByte(' ' + byte(x>>24)%94)
	}
	return b.String()
}

func TestUDP(t *testing.T) {
	long := random()
	for _, c := range []string{"", "gzip", "zlib", "none", "zlib 9", "gzip 0"} {
		t.Run(c, func(t *testing.T) {
			r := shiptest.Listen(t, "udp", "", nil)
			opts := map[string]string{"gelf-address": "udp://" + r.Address, "labels": "com.ex.a", "env": "FOO"}
			kind, level, _ := strings.Cut(c, " ")
			if kind != "" {
				opts["gelf-compression-type"] = kind
			}
			if level != "" {
				opts["gelf-compression-level"] = level
			}
			shiptest.Send(t, Driver{}, shiptest.Info(opts), shiptest.Messages("hello \"you\" <&>", "", "!oh no", long))
			var objects []string
			shiptest.Eventually(t, "three messages", func() bool {
				objects = assemble(t, r.Datagrams())
				return len(objects) == 3
			})
			check(t, objects, long)
			first := r.Datagrams()[0]
			plain := first[0] == '{'
			if plain != (kind == "none") || (first[0] == 0x78) != (kind == "zlib") {
				t.Errorf("%q begins with % x", c, first[:2])
			}
		})
	}
}

func TestTCP(t *testing.T) {
	long := random()
	r := shiptest.Listen(t, "tcp", "", nil)
	shiptest.Send(t, Driver{}, shiptest.Info(map[string]string{"gelf-address": "tcp://" + r.Address, "labels": "com.ex.a", "env": "FOO"}),
		shiptest.Messages("hello \"you\" <&>", "", "!oh no", long))
	var objects []string
	shiptest.Eventually(t, "three messages", func() bool {
		objects = strings.SplitAfter(string(r.Bytes()), "\x00")
		return len(objects) == 4
	})
	for i := range objects {
		objects[i] = strings.TrimSuffix(objects[i], "\x00")
	}
	check(t, objects, long)
}

// What does not fit into 128 chunks is refused, not tried for ever.
func TestTooLarge(t *testing.T) {
	r := shiptest.Listen(t, "udp", "", nil)
	info := shiptest.Info(map[string]string{"gelf-address": "udp://" + r.Address, "gelf-compression-type": "none", "labels": "big"})
	info.ContainerLabels = map[string]string{"big": strings.Repeat("x", 200_000)}
	dest, err := Driver{}.Open(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	if n, err := dest.Send(t.Context(), shiptest.Messages("x")); n != 0 || !errors.Is(err, ship.ErrRefused) {
		t.Errorf("%d %v", n, err)
	}
}

func TestPolicy(t *testing.T) {
	p := Driver{}.Policy(map[string]string{"gelf-tcp-max-reconnect": "3", "gelf-tcp-reconnect-delay": "2"})
	if p.Tries != 4 || p.Wait.Seconds() != 2 || p.MaxWait.Seconds() != 2 {
		t.Errorf("%+v", p)
	}
	if p := (Driver{}).Policy(nil); p.Tries != 0 {
		t.Errorf("%+v", p)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ opts, want string }{
		{"", "gelf-address is a required parameter"},
		{"gelf-address=http://127.0.0.1:1", "gelf-address should be in form proto://address, got http://127.0.0.1:1"},
		{"gelf-address=127.0.0.1:1", "gelf-address should be in form proto://address, got 127.0.0.1:1"},
		{"gelf-address=udp://127.0.0.1", "gelf: please provide gelf-address as proto://host:port"},
		{"gelf-address=tcp://127.0.0.1:1 gelf-compression-type=gzip", "compression is only supported on UDP"},
		{"gelf-address=udp://127.0.0.1:1 gelf-compression-type=foo", `unknown value "foo" for log opt "gelf-compression-type" for gelf log driver`},
		{"gelf-address=udp://127.0.0.1:1 gelf-compression-level=11", `unknown value "11" for log opt "gelf-compression-level" for gelf log driver`},
		{"gelf-address=udp://127.0.0.1:1 gelf-tcp-max-reconnect=3", `"gelf-tcp-max-reconnect" is only valid for TCP`},
		{"gelf-address=tcp://127.0.0.1:1 gelf-tcp-max-reconnect=-3", `"gelf-tcp-max-reconnect" must be a positive integer`},
		{"gelf-address=tcp://127.0.0.1:1 gelf-tcp-reconnect-delay=x", `"gelf-tcp-reconnect-delay" must be a positive integer`},
	} {
		opts := map[string]string{}
		for _, kv := range strings.Fields(c.opts) {
			key, value, _ := strings.Cut(kv, "=")
			opts[key] = value
		}
		if err := (Driver{}).Check(opts); err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", c.opts, err, c.want)
		}
	}
}

func FuzzAddress(f *testing.F) {
	f.Add("udp://h:1")
	f.Add("tcp:h")
	f.Fuzz(func(t *testing.T, s string) {
		if network, addr, err := address(s); err == nil && (network == "" || addr == "") {
			t.Errorf("%q: %q %q", s, network, addr)
		}
	})
}
