// Package syslog is the log driver syslog: messages to a system logger, here or elsewhere.
//
// It owns the formats and the addresses. It promises Docker's messages byte for byte, but for the time, which is when the container said it:
//
//	(none)        <PRI>Jan _2 15:04:05 TAG[PID]: text                       what local loggers expect
//	rfc3164       <PRI>Jan _2 15:04:05 HOST TAG[PID]: text
//	rfc5424       <PRI>1 2006-01-02T15:04:05Z07:00 HOST TAG PID TAG - text
//	rfc5424micro  the same with microseconds
//
// Each ends with a newline, which separates messages on a stream; rfc5424 over tcp+tls is counted instead, as RFC 5425 asks: "LENGTH " before each. PRI is the facility, with severity
// err (3) for stderr and info (6) for stdout; PID is the engine's. Empty lines are not sent, as in Docker.
package syslog

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/link"
	"corten.dev/corten/internal/logs/ship"
)

const (
	secure      = "tcp+tls"
	defaultPort = "514"
	tlsOptions  = "syslog-tls"

	severityErr  = 3
	severityInfo = 6
)

// Driver is syslog.
type Driver struct {
	// Local are the sockets of this host's own logger, which is used without an address; empty: the usual ones.
	Local []string
}

// Name implements [ship.Driver].
func (Driver) Name() string { return "syslog" }

// Options implements [ship.Driver].
func (Driver) Options() []string {
	return append([]string{"syslog-address", "syslog-facility", "syslog-format"}, link.TLSOptions(tlsOptions)...)
}

// Check implements [ship.Driver].
func (Driver) Check(opts map[string]string) error {
	if _, _, err := address(opts["syslog-address"]); err != nil {
		return err
	}
	if _, err := facility(opts["syslog-facility"]); err != nil {
		return err
	}
	if _, ok := stamps(opts["syslog-format"]); !ok {
		return errs.New(errs.Invalid, "Invalid syslog format")
	}
	return nil
}

// Policy implements [ship.Driver].
func (Driver) Policy(map[string]string) ship.Policy { return ship.Policy{} }

// address reads PROTO://ADDRESS; "", "" is the host's own logger.
func address(text string) (network, addr string, err error) {
	if text == "" {
		return "", "", nil
	}
	bad := errs.New(errs.Invalid, "syslog-address should be in form proto://address, got %v", text)
	u, err := url.Parse(text)
	if err != nil {
		return "", "", errs.New(errs.Invalid, "%w", err)
	}
	switch u.Scheme {
	case "unix", "unixgram":
		if _, err := os.Stat(u.Path); err != nil {
			return "", "", errs.New(errs.Invalid, "%w", err)
		}
		return u.Scheme, u.Path, nil
	case "udp", "tcp", secure:
		if !strings.HasPrefix(text, u.Scheme+"://") {
			return "", "", bad
		}
		if u.Port() == "" {
			return u.Scheme, net.JoinHostPort(u.Hostname(), defaultPort), nil
		}
		return u.Scheme, u.Host, nil
	}
	return "", "", bad
}

// facility reads a name or a number.
func facility(text string) (int, error) {
	if text == "" {
		text = "daemon"
	}
	names := []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "", "", "", "",
		"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}
	for i, name := range names {
		if name == text {
			return i, nil
		}
	}
	if n, err := strconv.Atoi(text); err == nil && n >= 0 && n <= 23 {
		return n, nil
	}
	return 0, errs.New(errs.Invalid, "invalid syslog facility")
}

// stamps are the time formats of the message formats.
func stamps(format string) (layout string, ok bool) {
	switch format {
	case "", "rfc3164":
		return time.Stamp, true
	case "rfc5424":
		return time.RFC3339, true
	case "rfc5424micro":
		return "2006-01-02T15:04:05.000000Z07:00", true
	}
	return "", false
}

// Open implements [ship.Driver].
func (d Driver) Open(ctx context.Context, info *ship.Info) (ship.Destination, error) {
	network, addr, err := address(info.Config["syslog-address"])
	if err != nil {
		return nil, err
	}
	code, err := facility(info.Config["syslog-facility"])
	if err != nil {
		return nil, err
	}
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return nil, err
	}
	w := &writer{format: info.Config["syslog-format"], facility: code, host: info.Host, tag: tag, pid: strconv.Itoa(os.Getpid())}
	w.layout, _ = stamps(w.format)
	w.counted = network == secure && strings.HasPrefix(w.format, "rfc5424")
	if w.link, err = d.dial(ctx, network, addr, info.Config); err != nil {
		return nil, err
	}
	w.datagrams = network == "udp" || w.link.RemoteAddr().Network() == "unixgram"
	return w, nil
}

func (d Driver) dial(ctx context.Context, network, addr string, opts map[string]string) (*link.Link, error) {
	switch network {
	case "":
		return d.dialLocal(ctx)
	case "unix": // Docker's unix is what the logger listens with: mostly datagrams, else a stream
		l, err := link.Dial(ctx, link.Options{Network: "unixgram", Address: addr})
		if err != nil {
			l, err = link.Dial(ctx, link.Options{Network: "unix", Address: addr})
		}
		return l, err
	case secure:
		conf, err := link.TLS(opts, tlsOptions)
		if err != nil {
			return nil, err
		}
		return link.Dial(ctx, link.Options{Network: "tcp", Address: addr, TLS: conf})
	}
	return link.Dial(ctx, link.Options{Network: network, Address: addr})
}

// dialLocal finds this host's own logger.
func (d Driver) dialLocal(ctx context.Context) (*link.Link, error) {
	sockets := d.Local
	if len(sockets) == 0 {
		sockets = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}
	}
	for _, network := range []string{"unixgram", "unix"} {
		for _, path := range sockets {
			if l, err := link.Dial(ctx, link.Options{Network: network, Address: path}); err == nil {
				return l, nil
			}
		}
	}
	return nil, errs.New(errs.Unavailable, "Unix syslog delivery error: no logger listens at %s", strings.Join(sockets, ", "))
}

type writer struct {
	link      *link.Link
	format    string
	layout    string
	facility  int
	host      string
	tag       string
	pid       string
	counted   bool
	datagrams bool
	buf, one  []byte
}

// Send implements [ship.Destination].
func (w *writer) Send(ctx context.Context, msgs []ship.Message) (int, error) {
	w.buf = w.buf[:0]
	for i := range msgs {
		if len(msgs[i].Line) == 0 {
			continue
		}
		w.one = w.message(w.one[:0], &msgs[i])
		if w.datagrams {
			if err := w.link.Write(ctx, w.one); err != nil {
				return i, link.Refused(err)
			}
			continue
		}
		if w.counted {
			w.buf = append(strconv.AppendInt(w.buf, int64(len(w.one)), 10), ' ')
		}
		w.buf = append(w.buf, w.one...)
	}
	if len(w.buf) > 0 {
		if err := w.link.Write(ctx, w.buf); err != nil {
			return 0, err
		}
	}
	return len(msgs), nil
}

// message appends one message.
func (w *writer) message(b []byte, m *ship.Message) []byte {
	severity := severityInfo
	if m.Stderr() {
		severity = severityErr
	}
	b = append(b, '<')
	b = strconv.AppendInt(b, int64(w.facility<<3|severity), 10)
	b = append(b, '>')
	switch w.format {
	case "":
		b = m.Time.Local().AppendFormat(b, w.layout)
		b = fmt.Appendf(b, " %s[%s]: ", w.tag, w.pid)
	case "rfc3164":
		b = m.Time.Local().AppendFormat(b, w.layout)
		b = fmt.Appendf(b, " %s %s[%s]: ", w.host, w.tag, w.pid)
	default:
		b = append(b, '1', ' ')
		b = m.Time.Local().AppendFormat(b, w.layout)
		b = fmt.Appendf(b, " %s %s %s %s - ", w.host, w.tag, w.pid, w.tag)
	}
	b = append(b, m.Line...)
	if b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return b
}

// Close implements [ship.Destination].
func (w *writer) Close() error { return w.link.Close() }
