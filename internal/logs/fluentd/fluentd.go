// Package fluentd is the log driver fluentd: messages in the forward protocol (version 1) of Fluentd and Fluent Bit.
//
// It owns the protocol's client side. It promises Docker's events in message mode:
//
//	[tag, time, {container_id, container_name, source, log, partial_…, chosen labels and variables}, {chunk?}]       MessagePack
//
// time is whole seconds, or an EventTime with nanoseconds; with fluentd-request-ack every event has a chunk id, and counts as delivered when the receiver has answered {"ack": id}.
package fluentd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	units "github.com/docker/go-units"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/link"
	"corten.dev/corten/internal/logs/ship"
)

const (
	defaultHost = "127.0.0.1"
	defaultPort = "24224"
	tlsOptions  = "fluentd-tls"
	// ackTimeout is how long the receiver may take to answer.
	ackTimeout = 30 * time.Second
)

// Driver is fluentd.
type Driver struct{}

// Name implements [ship.Driver].
func (Driver) Name() string { return "fluentd" }

// Options implements [ship.Driver].
func (Driver) Options() []string {
	return append([]string{
		"fluentd-address", "fluentd-async", "fluentd-async-connect", "fluentd-async-reconnect-interval", "fluentd-buffer-limit", "fluentd-max-retries", "fluentd-request-ack", "fluentd-retry-wait",
		"fluentd-sub-second-precision", "fluentd-write-timeout", "fluentd-read-timeout",
	}, link.TLSOptions(tlsOptions)...)
}

// settings are the options, read.
type settings struct {
	network, addr string
	secure        bool
	async         bool
	reconnect     time.Duration
	limit         int64
	retries       uint64
	wait          time.Duration
	ack, precise  bool
	write, read   time.Duration
}

// Check implements [ship.Driver].
func (Driver) Check(opts map[string]string) error {
	_, err := read(opts)
	return err
}

// Policy implements [ship.Driver].
func (Driver) Policy(opts map[string]string) ship.Policy {
	set, err := read(opts)
	if err != nil { // it was checked when the container was made
		return ship.Policy{}
	}
	p := ship.Policy{Lazy: set.async, Wait: set.wait, Batch: int(min(set.limit, 1<<20))}
	if set.retries > 0 && set.retries < 1<<31-1 { // Docker's word for no bound
		p.Tries = int(set.retries) + 1
	}
	return p
}

func read(opts map[string]string) (*settings, error) {
	set := &settings{}
	var err error
	if set.network, set.addr, set.secure, err = address(opts["fluentd-address"]); err != nil {
		return nil, err
	}
	_, one := opts["fluentd-async"]
	_, other := opts["fluentd-async-connect"]
	if one && other {
		return nil, errs.New(errs.Invalid, "conflicting options: cannot specify both 'fluentd-async' and 'fluentd-async-connect'")
	}
	flag := func(key string, to *bool) {
		if text := opts[key]; text != "" && err == nil {
			var on bool
			if on, err = strconv.ParseBool(text); err == nil {
				*to = *to || on
			}
		}
	}
	flag("fluentd-async", &set.async)
	flag("fluentd-async-connect", &set.async)
	flag("fluentd-request-ack", &set.ack)
	flag("fluentd-sub-second-precision", &set.precise)
	for key, to := range map[string]*time.Duration{
		"fluentd-async-reconnect-interval": &set.reconnect, "fluentd-retry-wait": &set.wait, "fluentd-write-timeout": &set.write, "fluentd-read-timeout": &set.read,
	} {
		if text := opts[key]; text != "" && err == nil {
			*to, err = time.ParseDuration(text)
			if err == nil && *to < 0 {
				err = errs.New(errs.Invalid, "invalid value for %s: must not be negative: %s", key, text)
			}
		}
	}
	if text := opts["fluentd-buffer-limit"]; text != "" && err == nil {
		set.limit, err = units.RAMInBytes(text)
	}
	if text := opts["fluentd-max-retries"]; text != "" && err == nil {
		set.retries, err = strconv.ParseUint(text, 10, 32)
	}
	if iv := set.reconnect; err == nil && iv != 0 && (iv < 100*time.Millisecond || iv > 10*time.Second) {
		err = errs.New(errs.Invalid, "invalid value for fluentd-async-reconnect-interval: value (%s) must be between 100ms and 10s", iv)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	return set, nil
}

// address reads HOST[:PORT], PROTO://HOST[:PORT] or unix://PATH.
func address(text string) (network, addr string, secure bool, err error) {
	bad := func(why any) error { return errs.New(errs.Invalid, "invalid fluentd-address %s: %v", text, why) }
	if text == "" {
		return "tcp", net.JoinHostPort(defaultHost, defaultPort), false, nil
	}
	full := text
	if !strings.Contains(full, "://") {
		full = "tcp://" + full
	}
	u, err := url.Parse(full)
	if err != nil {
		return "", "", false, bad(err)
	}
	switch u.Scheme {
	case "unix":
		if u.Path == "" || u.Host != "" {
			return "", "", false, bad("path is empty")
		}
		return "unix", u.Path, false, nil
	case "tcp", "tls":
	default:
		return "", "", false, bad("unsupported scheme: " + u.Scheme)
	}
	if u.Path != "" {
		return "", "", false, bad("should not contain a path element")
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		host = defaultHost
	}
	if port == "" {
		port = defaultPort
	}
	if n, err := strconv.Atoi(port); err != nil || n > 65535 {
		return "", "", false, bad("invalid port " + port)
	}
	return "tcp", net.JoinHostPort(host, port), u.Scheme == "tls", nil
}

// Open implements [ship.Driver].
func (Driver) Open(ctx context.Context, info *ship.Info) (ship.Destination, error) {
	set, err := read(info.Config)
	if err != nil {
		return nil, err
	}
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return nil, err
	}
	attrs, err := info.Attributes(nil)
	if err != nil {
		return nil, err
	}
	opts := link.Options{Network: set.network, Address: set.addr, Stall: set.write}
	if set.secure {
		if opts.TLS, err = link.TLS(info.Config, tlsOptions); err != nil {
			return nil, err
		}
	}
	w := &writer{settings: *set, tag: tag, opened: time.Now()}
	if w.read == 0 {
		w.read = ackTimeout
	}
	w.fields = map[string]string{"container_id": info.ContainerID, "container_name": info.ContainerName}
	maps.Copy(w.fields, attrs)
	for _, name := range []string{"source", "log", "partial_message", "partial_id", "partial_ordinal", "partial_last"} {
		delete(w.fields, name) // the message's own
	}
	for _, name := range slices.Sorted(maps.Keys(w.fields)) {
		w.same = appendString(appendString(w.same, name), w.fields[name])
	}
	if w.link, err = link.Dial(ctx, opts); err != nil {
		return nil, err
	}
	w.answers = decoder{r: w.link}
	return w, nil
}

type writer struct {
	settings
	link    *link.Link
	tag     string
	fields  map[string]string
	same    []byte // fields that every event has
	buf     []byte
	answers decoder
	opened  time.Time
}

// errStale asks the follower for a new connection.
var errStale = errors.New("the connection is as old as fluentd-async-reconnect-interval says")

// Send implements [ship.Destination].
func (w *writer) Send(ctx context.Context, msgs []ship.Message) (int, error) {
	if w.reconnect > 0 && w.async && time.Since(w.opened) > w.reconnect {
		return 0, ship.Again(errStale)
	}
	w.buf = w.buf[:0]
	waiting := map[string]int{} // chunk → message
	for i := range msgs {
		chunk := ""
		if w.ack {
			var id [16]byte
			rand.Read(id[:]) // never fails
			chunk = base64.StdEncoding.EncodeToString(id[:])
			waiting[chunk] = i
		}
		w.buf = w.event(w.buf, &msgs[i], chunk)
	}
	err := w.link.Write(ctx, w.buf)
	switch {
	case err == nil && !w.ack:
		return len(msgs), nil
	case !w.ack:
		return 0, err
	case err != nil: // what it has answered before it went away need not be sent again
		done, _ := w.await(ctx, waiting, len(msgs), lateAnswers)
		return done, err
	}
	return w.await(ctx, waiting, len(msgs), w.read)
}

// lateAnswers is how long answers of a connection that broke are looked for; of one that was closed they are there.
const lateAnswers = 100 * time.Millisecond

// await reads the answers. What is answered without a gap from the first message on is delivered.
func (w *writer) await(ctx context.Context, waiting map[string]int, n int, patience time.Duration) (int, error) {
	stop := context.AfterFunc(ctx, func() { w.link.SetDeadline(time.Now()) })
	defer stop()
	answered := make([]bool, n)
	done := 0
	for len(waiting) > 0 {
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
		if err := w.link.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return done, err
		}
		chunk, err := w.answers.ack()
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return done, fmt.Errorf("waiting for an acknowledgement of %s: %w", w.addr, err)
		}
		if i, ok := waiting[chunk]; ok {
			answered[i] = true
			delete(waiting, chunk)
		}
		for done < n && answered[done] {
			done++
		}
	}
	return done, nil
}

// event appends one event.
func (w *writer) event(b []byte, m *ship.Message, chunk string) []byte {
	b = append(b, 0x94) // array of 4
	b = appendString(b, w.tag)
	b = w.time(b, m.Time)
	n := len(w.fields) + 2
	if m.Split() {
		n += 4
	}
	b = appendMap(b, n)
	b = append(b, w.same...)
	source := "stdout"
	if m.Stderr() {
		source = "stderr"
	}
	b = appendString(appendString(b, "source"), source)
	b = appendBytes(appendString(b, "log"), m.Line)
	if m.Split() {
		b = appendString(appendString(b, "partial_message"), "true")
		b = appendString(appendString(b, "partial_id"), m.Partial.ID)
		b = appendString(appendString(b, "partial_ordinal"), strconv.Itoa(m.Partial.Ordinal))
		b = appendString(appendString(b, "partial_last"), strconv.FormatBool(m.Partial.Last))
	}
	if chunk == "" {
		return append(b, 0x80) // no options
	}
	return appendString(appendString(append(b, 0x81), "chunk"), chunk)
}

// time appends seconds, or the EventTime extension: type 0, seconds and nanoseconds, u32 each, big endian.
func (w *writer) time(b []byte, t time.Time) []byte {
	if !w.precise {
		return append32(append(b, 0xd2), uint32(t.Unix()))
	}
	return append32(append32(append(b, 0xd7, 0x00), uint32(t.Unix())), uint32(t.Nanosecond()))
}

// Close implements [ship.Destination].
func (w *writer) Close() error { return w.link.Close() }
