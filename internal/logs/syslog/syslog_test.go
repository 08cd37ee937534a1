package syslog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/logs/shiptest"
)

// parsed is a message as RFC 3164 or RFC 5424 describe it.
type parsed struct {
	facility, severity           int
	when                         time.Time
	host, app, pid, id, sd, text string
}

// parse3164 reads what section 4 of RFC 3164 says; with a host or, as local loggers take it, without one.
func parse3164(b string, host bool) (p parsed, err error) {
	rest, err := p.pri(b)
	if err != nil {
		return p, err
	}
	if len(rest) < 16 || rest[15] != ' ' {
		return p, fmt.Errorf("no TIMESTAMP in %q", rest)
	}
	if p.when, err = time.ParseInLocation("Jan _2 15:04:05", rest[:15], time.Local); err != nil {
		return p, err
	}
	rest = rest[16:]
	if host {
		p.host, rest, _ = strings.Cut(rest, " ")
	}
	tag, text, ok := strings.Cut(rest, ": ")
	if !ok {
		return p, fmt.Errorf("no TAG in %q", rest)
	}
	p.app, p.pid, _ = strings.Cut(tag, "[")
	p.pid = strings.TrimSuffix(p.pid, "]")
	p.text = text
	return p, nil
}

// parse5424 reads section 6 of RFC 5424: PRI VERSION SP TIMESTAMP SP HOSTNAME SP APP-NAME SP PROCID SP MSGID SP STRUCTURED-DATA SP MSG.
func parse5424(b string) (p parsed, err error) {
	rest, err := p.pri(b)
	if err != nil {
		return p, err
	}
	f := strings.SplitN(rest, " ", 8)
	if len(f) != 8 || f[0] != "1" {
		return p, fmt.Errorf("not eight fields of version 1: %q", rest)
	}
	if p.when, err = time.Parse(time.RFC3339Nano, f[1]); err != nil {
		return p, err
	}
	p.host, p.app, p.pid, p.id, p.sd, p.text = f[2], f[3], f[4], f[5], f[6], f[7]
	return p, nil
}

func (p *parsed) pri(b string) (rest string, err error) {
	if len(b) == 0 || b[0] != '<' {
		return "", fmt.Errorf("no PRI in %q", b)
	}
	num, rest, ok := strings.Cut(b[1:], ">")
	n, err := strconv.Atoi(num)
	if !ok || err != nil || n < 0 || n > 191 {
		return "", fmt.Errorf("PRI %q", num)
	}
	p.facility, p.severity = n/8, n%8
	return rest, nil
}

// counted takes frames of RFC 5425 (and 6587, octet counting) apart: MSG-LEN SP SYSLOG-MSG.
func counted(t *testing.T, b []byte) (frames []string) {
	t.Helper()
	for len(b) > 0 {
		num, rest, ok := bytes.Cut(b, []byte(" "))
		n, err := strconv.Atoi(string(num))
		if !ok || err != nil || n > len(rest) {
			return frames // the rest is still to come
		}
		frames = append(frames, string(rest[:n]))
		b = rest[n:]
	}
	return frames
}

func TestFormatsOverEveryTransport(t *testing.T) {
	certs := shiptest.Certify(t)
	lines := []string{"hello", "", "!oh no", "\ttab: [x]\r", strings.Repeat("long ", 3000)}
	for _, transport := range []string{"udp", "tcp", "tcp+tls", "unix", "unixgram", "unix to datagrams"} {
		for _, format := range []string{"", "rfc3164", "rfc5424", "rfc5424micro"} {
			t.Run(transport+" "+format, func(t *testing.T) {
				network, scheme := transport, transport
				opts := map[string]string{"syslog-format": format, "syslog-facility": "local3", "tag": "{{.Name}}/{{.ImageName}}"}
				var r *shiptest.Receiver
				switch transport {
				case "tcp+tls":
					opts["syslog-tls-ca-cert"], opts["syslog-tls-cert"], opts["syslog-tls-key"] = certs.CA, certs.Cert, certs.Key
					r = shiptest.Listen(t, "tcp", "", certs.Server)
				case "unix to datagrams":
					network, scheme = "unixgram", "unix"
					r = shiptest.Listen(t, network, "", nil)
				default:
					r = shiptest.Listen(t, network, "", nil)
				}
				opts["syslog-address"] = scheme + "://" + r.Address
				shiptest.Send(t, Driver{}, shiptest.Info(opts), shiptest.Messages(lines...))
				check(t, frames(t, r, network, format), format, lines)
			})
		}
	}
}

// frames waits for the four messages that are not empty.
func frames(t *testing.T, r *shiptest.Receiver, network, format string) (all []string) {
	t.Helper()
	shiptest.Eventually(t, "four messages", func() bool {
		all = nil
		switch {
		case network == "udp" || network == "unixgram":
			for _, b := range r.Datagrams() {
				all = append(all, string(b))
			}
		case network == "tcp+tls" && strings.HasPrefix(format, "rfc5424"):
			all = counted(t, r.Bytes())
		default: // RFC 6587, non-transparent framing: a newline
			all = strings.SplitAfter(string(r.Bytes()), "\n")
			all = all[:len(all)-1]
		}
		return len(all) == 4
	})
	return all
}

func check(t *testing.T, all []string, format string, lines []string) {
	t.Helper()
	for i, at := range []int{0, 2, 3, 4} {
		when := shiptest.Messages(lines...)[at].Time
		var p parsed
		var err error
		want := parsed{facility: 19, severity: 6, host: "desk", app: "web/app:1", pid: strconv.Itoa(os.Getpid()), text: lines[at] + "\n"}
		switch format {
		case "", "rfc3164":
			p, err = parse3164(all[i], format != "")
			if format == "" {
				want.host = ""
			}
			want.when, _ = time.ParseInLocation(time.Stamp, when.Local().Format(time.Stamp), time.Local)
		case "rfc5424":
			p, err = parse5424(all[i])
			want.id, want.sd, want.when = "web/app:1", "-", when.Truncate(time.Second)
		default:
			p, err = parse5424(all[i])
			want.id, want.sd, want.when = "web/app:1", "-", when.Truncate(time.Microsecond)
		}
		if at == 2 {
			want.severity = 3
		}
		if err != nil || !p.when.Equal(want.when) {
			t.Errorf("message %d: %v; time %v, want %v", i, err, p.when, want.when)
		}
		p.when = want.when
		if p != want {
			t.Errorf("message %d: got %.200q\nwant %.200q", i, fmt.Sprint(p), fmt.Sprint(want))
		}
	}
}

// A server whose certificate nobody vouches for is refused, unless that was asked for; a client without one is refused by the server.
func TestTLS(t *testing.T) {
	certs := shiptest.Certify(t)
	r := shiptest.Listen(t, "tcp", "", certs.Server)
	opts := map[string]string{"syslog-address": "tcp+tls://" + r.Address, "syslog-tls-cert": certs.Cert, "syslog-tls-key": certs.Key}
	if _, err := (Driver{}).Open(t.Context(), shiptest.Info(opts)); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("without the CA: %v", err)
	}
	opts["syslog-tls-skip-verify"] = "true"
	shiptest.Send(t, Driver{}, shiptest.Info(opts), shiptest.Messages("x"))
	shiptest.Eventually(t, "the message", func() bool { return len(r.Bytes()) > 0 })
	opts["syslog-tls-cert"] = "/does/not/exist"
	if _, err := (Driver{}).Open(t.Context(), shiptest.Info(opts)); err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("without its own: %v", err)
	}
}

// The default address is this host's logger, whatever kind of socket it has.
func TestLocal(t *testing.T) {
	for _, network := range []string{"unixgram", "unix"} {
		r := shiptest.Listen(t, network, "", nil)
		d := Driver{Local: []string{"/does/not/exist", r.Address}}
		shiptest.Send(t, d, shiptest.Info(nil), shiptest.Messages("here"))
		shiptest.Eventually(t, "the message", func() bool { return len(r.Bytes()) > 0 || len(r.Datagrams()) > 0 })
	}
	if _, err := (Driver{Local: []string{"/does/not/exist"}}).Open(t.Context(), shiptest.Info(nil)); err == nil || !strings.Contains(err.Error(), "no logger listens at /does/not/exist") {
		t.Errorf("got %v", err)
	}
}

// A receiver that goes away is noticed by the Send that it misses: none of its messages counts as sent.
func TestReceiverLeaves(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "udp", "unixgram"} {
		r := shiptest.Listen(t, network, "", nil)
		dest := shiptest.Send(t, Driver{}, shiptest.Info(map[string]string{"syslog-address": network + "://" + r.Address}), shiptest.Messages("one"))
		shiptest.Eventually(t, "the message", func() bool { return len(r.Bytes()) > 0 || len(r.Datagrams()) > 0 })
		r.Close()
		if n, err := dest.Send(t.Context(), shiptest.Messages("two")); err == nil || n != 0 {
			t.Errorf("%s: sent %d, %v", network, n, err)
		}
	}
}

func TestRefused(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	for text, want := range map[string]string{
		"syslog-address=foo": "syslog-address should be in form proto://address, got foo", "syslog-address=http://a": "syslog-address should be in form proto://address, got http://a",
		"syslog-address=unix://" + gone: "stat " + gone + ": no such file or directory", "syslog-facility=foo": "invalid syslog facility", "syslog-facility=99": "invalid syslog facility",
		"syslog-format=x": "Invalid syslog format",
	} {
		key, value, _ := strings.Cut(text, "=")
		if err := (Driver{}).Check(map[string]string{key: value}); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	for text, want := range map[string]string{"tcp://": "tcp :514", "tcp://127.0.0.1": "tcp 127.0.0.1:514", "udp://[::1]:99": "udp [::1]:99", "tcp+tls://h": "tcp+tls h:514"} {
		if network, addr, err := address(text); err != nil || network+" "+addr != want {
			t.Errorf("%s: %s %s %v, want %s", text, network, addr, err, want)
		}
	}
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"tcp://h:1", "unix:///x", "udp://", "://", "tcp+tls://[::1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if network, addr, err := address(s); err == nil && s != "" && (network == "" || addr == "") {
			t.Errorf("%q: %q %q", s, network, addr)
		}
		_, _ = facility(s)
	})
}

var _ ship.Driver = Driver{}
