// Package gelf is the log driver gelf: messages in the Graylog Extended Log Format 1.1, over UDP or TCP.
//
// It owns the format. It promises Docker's objects: version, host, short_message, timestamp (seconds with milliseconds), level (3 for stderr, 6 for stdout), and the additional fields
// _container_id, _container_name, _image_id, _image_name, _command, _created, _tag and the chosen labels and variables with "_" before their names. Empty lines are not sent.
//
//	UDP   one object a datagram, compressed by gzip (default), zlib or not at all; what is larger than 1420 bytes goes in at most 128 chunks:
//	      0x1e 0x0f │ message id 8 bytes │ number │ count │ up to 1408 bytes
//	TCP   objects with a zero byte behind each, never compressed
package gelf

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/link"
	"corten.dev/corten/internal/logs/ship"
)

const (
	chunkSize = 1420
	chunkHead = 12
	maxChunks = 128
)

// Driver is gelf.
type Driver struct{}

// Name implements [ship.Driver].
func (Driver) Name() string { return "gelf" }

// Options implements [ship.Driver].
func (Driver) Options() []string {
	return []string{"gelf-address", "gelf-compression-type", "gelf-compression-level", "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"}
}

// Check implements [ship.Driver].
func (Driver) Check(opts map[string]string) error {
	network, _, err := address(opts["gelf-address"])
	if err != nil {
		return err
	}
	for _, key := range []string{"gelf-compression-type", "gelf-compression-level"} {
		value, ok := opts[key]
		if !ok {
			continue
		}
		if network != "udp" {
			return errs.New(errs.Invalid, "compression is only supported on UDP")
		}
		good := value == "gzip" || value == "zlib" || value == "none"
		if key == "gelf-compression-level" {
			n, err := strconv.Atoi(value)
			good = err == nil && n >= flate.DefaultCompression && n <= flate.BestCompression
		}
		if !good {
			return errs.New(errs.Invalid, "unknown value %q for log opt %q for gelf log driver", value, key)
		}
	}
	for _, key := range []string{"gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"} {
		value, ok := opts[key]
		if !ok {
			continue
		}
		if network != "tcp" {
			return errs.New(errs.Invalid, "%q is only valid for TCP", key)
		}
		if n, err := strconv.Atoi(value); err != nil || n < 0 {
			return errs.New(errs.Invalid, "%q must be a positive integer", key)
		}
	}
	return nil
}

// Policy implements [ship.Driver]: without an option a receiver is waited for as long as the log lasts; with gelf-tcp-max-reconnect messages are given up after so many tries.
func (Driver) Policy(opts map[string]string) ship.Policy {
	var p ship.Policy
	if n, err := strconv.Atoi(opts["gelf-tcp-reconnect-delay"]); err == nil && n > 0 {
		p.Wait = time.Duration(n) * time.Second
		p.MaxWait = p.Wait
	}
	if n, err := strconv.Atoi(opts["gelf-tcp-max-reconnect"]); err == nil {
		p.Tries = n + 1
	}
	return p
}

func address(text string) (network, addr string, err error) {
	if text == "" {
		return "", "", errs.New(errs.Invalid, "gelf-address is a required parameter")
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "udp" && u.Scheme != "tcp" || u.Opaque != "" {
		return "", "", errs.New(errs.Invalid, "gelf-address should be in form proto://address, got %v", text)
	}
	if u.Hostname() == "" || u.Port() == "" {
		return "", "", errs.New(errs.Invalid, "gelf: please provide gelf-address as proto://host:port")
	}
	return u.Scheme, u.Host, nil
}

// Open implements [ship.Driver].
func (Driver) Open(ctx context.Context, info *ship.Info) (ship.Destination, error) {
	network, addr, err := address(info.Config["gelf-address"])
	if err != nil {
		return nil, err
	}
	w := &writer{tcp: network == "tcp"}
	if err := w.prepare(info); err != nil {
		return nil, err
	}
	if w.link, err = link.Dial(ctx, link.Options{Network: network, Address: addr}); err != nil {
		return nil, fmt.Errorf("gelf: cannot connect to GELF endpoint: %s %w", addr, err)
	}
	return w, nil
}

type writer struct {
	link   *link.Link
	tcp    bool
	before []byte // what stands before the text
	after  []byte // the additional fields, with the brace at the end
	zip    interface {
		io.WriteCloser
		Reset(io.Writer)
	}
	zipped bytes.Buffer
	buf    []byte
}

// prepare makes what is the same in every message.
func (w *writer) prepare(info *ship.Info) error {
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return err
	}
	fields, err := info.Attributes(func(key string) string { return "_" + key })
	if err != nil {
		return err
	}
	for key, value := range map[string]string{
		"_container_id": info.FullID(), "_container_name": info.Name(), "_image_id": info.ImageFullID(), "_image_name": info.ImageName(), "_command": info.Command(), "_tag": tag,
		"_created": info.ContainerCreated.UTC().Format(time.RFC3339Nano),
	} {
		fields[key] = value
	}
	extra, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	host, err := json.Marshal(info.Host)
	if err != nil {
		return err
	}
	w.before = fmt.Appendf(nil, `{"version":"1.1","host":%s,"short_message":`, host)
	w.after = append([]byte{','}, extra[1:]...)
	if w.tcp {
		return nil
	}
	level := flate.BestSpeed
	if text, ok := info.Config["gelf-compression-level"]; ok {
		if level, err = strconv.Atoi(text); err != nil {
			return errs.New(errs.Invalid, "gelf-compression-level %q: %w", text, err)
		}
	}
	switch info.Config["gelf-compression-type"] {
	case "none":
	case "zlib":
		w.zip, err = zlib.NewWriterLevel(nil, level)
	default:
		w.zip, err = gzip.NewWriterLevel(nil, level)
	}
	return err
}

// Send implements [ship.Destination].
func (w *writer) Send(ctx context.Context, msgs []ship.Message) (int, error) {
	w.buf = w.buf[:0]
	for i := range msgs {
		m := &msgs[i]
		if len(m.Line) == 0 {
			continue
		}
		if w.tcp {
			w.buf = append(w.object(w.buf, m), 0)
			continue
		}
		w.buf = w.object(w.buf[:0], m)
		if err := w.datagram(ctx, w.buf); err != nil {
			return i, err
		}
	}
	if w.tcp && len(w.buf) > 0 {
		if err := w.link.Write(ctx, w.buf); err != nil {
			return 0, err
		}
	}
	return len(msgs), nil
}

// object appends a message.
func (w *writer) object(b []byte, m *ship.Message) []byte {
	b = append(b, w.before...)
	text, err := json.Marshal(string(m.Line))
	if err != nil { // a string always has a form
		text = []byte(`""`)
	}
	b = append(b, text...)
	b = append(b, `,"timestamp":`...)
	b = strconv.AppendFloat(b, float64(m.Time.UnixMilli())/1000, 'f', -1, 64)
	level := 6
	if m.Stderr() {
		level = 3
	}
	b = fmt.Appendf(b, `,"level":%d`, level)
	return append(b, w.after...)
}

func (w *writer) datagram(ctx context.Context, b []byte) error {
	if w.zip != nil {
		w.zipped.Reset()
		w.zip.Reset(&w.zipped)
		if _, err := w.zip.Write(b); err != nil {
			return err
		}
		if err := w.zip.Close(); err != nil {
			return err
		}
		b = w.zipped.Bytes()
	}
	if len(b) <= chunkSize {
		return link.Refused(w.link.Write(ctx, b))
	}
	const room = chunkSize - chunkHead
	count := (len(b) + room - 1) / room
	if count > maxChunks {
		return fmt.Errorf("%w: %d bytes are more than %d chunks hold", ship.ErrRefused, len(b), maxChunks)
	}
	chunk := make([]byte, chunkHead, chunkSize)
	chunk[0], chunk[1] = 0x1e, 0x0f
	rand.Read(chunk[2:10]) // never fails
	chunk[11] = byte(count)
	for i := range count {
		chunk[10] = byte(i)
		piece := append(chunk[:chunkHead], b[i*room:min((i+1)*room, len(b))]...)
		if err := w.link.Write(ctx, piece); err != nil {
			return link.Refused(err)
		}
	}
	return nil
}

// Close implements [ship.Destination].
func (w *writer) Close() error { return w.link.Close() }
