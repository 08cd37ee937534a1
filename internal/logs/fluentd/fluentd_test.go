package fluentd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/logs/shiptest"
)

// eventTime is extension 0 of the forward protocol.
type eventTime struct{ sec, nano uint32 }

var errShort = errors.New("more is to come")

// unpack reads one value, as the MessagePack specification describes it.
func unpack(b []byte) (v any, rest []byte, err error) {
	need := func(n int) ([]byte, error) {
		if len(rest) < n {
			return nil, errShort
		}
		out := rest[:n]
		rest = rest[n:]
		return out, nil
	}
	rest = b
	head, err := need(1)
	if err != nil {
		return nil, b, err
	}
	num := func(size int) int {
		raw, nerr := need(size)
		if nerr != nil {
			err = nerr
			return 0
		}
		n := 0
		for _, c := range raw {
			n = n<<8 | int(c)
		}
		return n
	}
	str := func(n int) (any, []byte, error) {
		if err != nil {
			return nil, b, err
		}
		raw, err := need(n)
		return string(raw), rest, err
	}
	c := head[0]
	switch {
	case c < 0x80:
		return int(c), rest, nil
	case c&0xe0 == 0xa0:
		return str(int(c & 0x1f))
	case c == 0xd9:
		return str(num(1))
	case c == 0xda:
		return str(num(2))
	case c == 0xdb:
		return str(num(4))
	case c == 0xce || c == 0xd2:
		return num(4), rest, err
	case c == 0xd7:
		raw, err := need(9)
		if err != nil || raw[0] != 0 {
			return nil, b, errors.Join(err, fmt.Errorf("extension % x", raw))
		}
		return eventTime{binary.BigEndian.Uint32(raw[1:]), binary.BigEndian.Uint32(raw[5:])}, rest, nil
	case c&0xf0 == 0x90:
		list := make([]any, c&0xf)
		for i := range list {
			if list[i], rest, err = unpack(rest); err != nil {
				return nil, b, err
			}
		}
		return list, rest, nil
	case c&0xf0 == 0x80, c == 0xde:
		n := int(c & 0xf)
		if c == 0xde {
			n = num(2)
		}
		m := map[string]any{}
		for range n {
			var k any
			if k, rest, err = unpack(rest); err != nil {
				return nil, b, err
			}
			if m[k.(string)], rest, err = unpack(rest); err != nil {
				return nil, b, err
			}
		}
		return m, rest, nil
	}
	return nil, b, fmt.Errorf("type %#x", c)
}

// events are all whole events in b: [tag, time, record, option].
func events(t testing.TB, b []byte) (all [][]any) {
	for len(b) > 0 {
		v, rest, err := unpack(b)
		if errors.Is(err, errShort) {
			return all
		}
		list, ok := v.([]any)
		if err != nil || !ok || len(list) != 4 {
			t.Fatalf("no event: %v %v", v, err)
		}
		all, b = append(all, list), rest
	}
	return all
}

func TestEvents(t *testing.T) {
	certs := shiptest.Certify(t)
	msgs := shiptest.Messages("hello", "", "!oh no", strings.Repeat("x", 16384), "end")
	msgs[3].Ends, msgs[3].Partial = false, ship.Partial{ID: "abc", Ordinal: 1}
	msgs[4].Partial = ship.Partial{ID: "abc", Ordinal: 2, Last: true}
	for _, transport := range []string{"tcp", "unix", "tls", "bare"} {
		for _, precise := range []string{"false", "true"} {
			t.Run(transport+" "+precise, func(t *testing.T) {
				opts := map[string]string{"labels": "com.ex.a", "env": "FOO", "fluentd-sub-second-precision": precise, "tag": "docker.{{.Name}}"}
				var r *shiptest.Receiver
				switch transport {
				case "unix":
					r = shiptest.Listen(t, "unix", "", nil)
				case "tls":
					r = shiptest.Listen(t, "tcp", "", certs.Server)
					opts["fluentd-tls-ca-cert"], opts["fluentd-tls-cert"], opts["fluentd-tls-key"] = certs.CA, certs.Cert, certs.Key
				default:
					r = shiptest.Listen(t, "tcp", "", nil)
				}
				opts["fluentd-address"] = transport + "://" + r.Address
				if transport == "bare" {
					opts["fluentd-address"] = r.Address
				}
				shiptest.Send(t, Driver{}, shiptest.Info(opts), msgs)
				var all [][]any
				shiptest.Eventually(t, "five events", func() bool { all = events(t, r.Bytes()); return len(all) == 5 })
				for i, e := range all {
					checkEvent(t, e, &msgs[i], precise == "true")
				}
			})
		}
	}
}

func checkEvent(t *testing.T, e []any, m *ship.Message, precise bool) {
	t.Helper()
	want := map[string]any{"container_id": strings.Repeat("0123456789abcdef", 4), "container_name": "/web", "source": "stdout", "log": string(m.Line), "FOO": "x y", "com.ex.a": "va"}
	if m.Stderr() {
		want["source"] = "stderr"
	}
	if m.Split() {
		want["partial_message"], want["partial_id"], want["partial_ordinal"], want["partial_last"] = "true", "abc", fmt.Sprint(m.Partial.Ordinal), fmt.Sprint(m.Partial.Last)
	}
	var when any = int(m.Time.Unix())
	if precise {
		when = eventTime{uint32(m.Time.Unix()), uint32(m.Time.Nanosecond())}
	}
	if e[0] != "docker.web" || e[1] != when || fmt.Sprint(e[2]) != fmt.Sprint(want) || fmt.Sprint(e[3]) != "map[]" {
		t.Errorf("got %.900v\nwant %v %.900v", e, when, want)
	}
}

// answering makes acknowledgements of the chunks of what came, except for the first ones that are to be forgotten.
type answering struct {
	mu     sync.Mutex // guards what follows
	b      []byte
	forget int
}

func (a *answering) answer(piece []byte) (back []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.b = append(a.b, piece...)
	for {
		v, rest, err := unpack(a.b)
		if err != nil {
			return back
		}
		a.b = rest
		chunk := v.([]any)[3].(map[string]any)["chunk"].(string)
		if a.forget > 0 {
			a.forget--
			continue
		}
		back = append(back, 0x81, 0xa3, 'a', 'c', 'k', 0xa0|byte(len(chunk)))
		back = append(back, chunk...)
	}
}

func TestAcknowledgements(t *testing.T) {
	r := shiptest.Listen(t, "tcp", "", nil)
	a := &answering{}
	r.Answer = a.answer
	opts := map[string]string{"fluentd-address": r.Address, "fluentd-request-ack": "true"}
	shiptest.Send(t, Driver{}, shiptest.Info(opts), shiptest.Messages("one", "two", "three"))
	// A receiver that answers for some only: what is before the first gap counts.
	a.mu.Lock()
	a.forget = 1
	a.mu.Unlock()
	opts["fluentd-read-timeout"] = "300ms"
	dest, err := Driver{}.Open(t.Context(), shiptest.Info(opts))
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	if n, err := dest.Send(t.Context(), shiptest.Messages("four", "five")); n != 0 || err == nil {
		t.Errorf("%d %v", n, err)
	}
}

// A receiver that closes each connection after a few messages, which it has acknowledged, got the same ones for ever: its answers were not read once the rest could not be written.
func TestAnswersOfAClosedConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, 8<<10)
		n, err := io.ReadAtLeast(conn, buf, 6<<10) // the rest is never read: the connection ends with a reset
		if err != nil {
			return
		}
		a := &answering{}
		_, _ = conn.Write(a.answer(buf[:n]))
	}()
	dest, err := Driver{}.Open(t.Context(), shiptest.Info(map[string]string{"fluentd-address": l.Addr().String(), "fluentd-request-ack": "true"}))
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	lines := make([]string, 2000)
	for i := range lines {
		lines[i] = strings.Repeat("x", 1000)
	}
	if n, err := dest.Send(t.Context(), shiptest.Messages(lines...)); n < 4 || n > 8 || err == nil {
		t.Errorf("%d messages of those acknowledged count: %v", n, err)
	}
}

// What answers in another language is not believed.
func TestForeignAnswers(t *testing.T) {
	r := shiptest.Listen(t, "tcp", "", nil)
	r.Answer = func([]byte) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") }
	dest, err := Driver{}.Open(t.Context(), shiptest.Info(map[string]string{"fluentd-address": r.Address, "fluentd-request-ack": "true"}))
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	if n, err := dest.Send(t.Context(), shiptest.Messages("x")); n != 0 || !errors.Is(err, errAnswer) {
		t.Errorf("%d %v", n, err)
	}
}

func TestPolicy(t *testing.T) {
	p := Driver{}.Policy(map[string]string{"fluentd-async": "true", "fluentd-retry-wait": "2s", "fluentd-max-retries": "5", "fluentd-buffer-limit": "64k"})
	if !p.Lazy || p.Wait != 2*time.Second || p.Tries != 6 || p.Batch != 64<<10 {
		t.Errorf("%+v", p)
	}
	// A connection that is as old as it may get is opened anew.
	r := shiptest.Listen(t, "tcp", "", nil)
	dest, err := Driver{}.Open(t.Context(), shiptest.Info(map[string]string{"fluentd-address": r.Address, "fluentd-async": "1", "fluentd-async-reconnect-interval": "100ms"}))
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	dest.(*writer).opened = time.Now().Add(-time.Second)
	if _, err := dest.Send(t.Context(), shiptest.Messages("x")); !errors.Is(err, errStale) {
		t.Errorf("got %v", err)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ opts, want string }{
		{"fluentd-address=foo://a", "invalid fluentd-address foo://a: unsupported scheme: foo"},
		{"fluentd-address=127.0.0.1:x", `invalid fluentd-address 127.0.0.1:x: parse "tcp://127.0.0.1:x": invalid port ":x" after host`},
		{"fluentd-address=tcp://127.0.0.1/path", "invalid fluentd-address tcp://127.0.0.1/path: should not contain a path element"},
		{"fluentd-address=unix://", "invalid fluentd-address unix://: path is empty"},
		{"fluentd-async=maybe", `strconv.ParseBool: parsing "maybe": invalid syntax`},
		{"fluentd-buffer-limit=x", "invalid size: 'x'"},
		{"fluentd-retry-wait=x", `time: invalid duration "x"`},
		{"fluentd-max-retries=x", `strconv.ParseUint: parsing "x": invalid syntax`},
		{"fluentd-request-ack=x", `strconv.ParseBool: parsing "x": invalid syntax`},
		{"fluentd-async=1 fluentd-async-connect=1", "conflicting options: cannot specify both 'fluentd-async' and 'fluentd-async-connect'"},
		{"fluentd-async-reconnect-interval=1ms", "invalid value for fluentd-async-reconnect-interval: value (1ms) must be between 100ms and 10s"},
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
	for text, want := range map[string]string{"": "tcp 127.0.0.1:24224", "h": "tcp h:24224", "tls://h:1": "tcp h:1", "unix:///a": "unix /a", "tcp://[::1]:9": "tcp [::1]:9"} {
		if network, addr, _, err := address(text); err != nil || network+" "+addr != want {
			t.Errorf("%s: %s %s %v, want %s", text, network, addr, err, want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x81\xa3ack\xa1x"))
	f.Add([]byte("\xde\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{r: bytes.NewReader(b)}
		for {
			if _, err := d.ack(); err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, errAnswer) {
					return
				}
				t.Fatal(err)
			}
		}
	})
}

func FuzzAddress(f *testing.F) {
	f.Add("tls://h:1")
	f.Fuzz(func(t *testing.T, s string) {
		if network, addr, _, err := address(s); err == nil && (network == "" || addr == "") {
			t.Errorf("%q: %q %q", s, network, addr)
		}
	})
}
