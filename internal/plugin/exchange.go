package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/http1"
)

// exchange is one request and its answer, on a connection of its own.
type exchange struct {
	method  string // with its interface
	in, out any
	limit   time.Duration
}

func (p *plugin) exchange(parent context.Context, at place, x exchange) error {
	var body []byte
	if x.in != nil {
		var err error
		if body, err = json.Marshal(x.in); err != nil {
			return fmt.Errorf("call plugin %s: %s: %w", p.name, x.method, err)
		}
	}
	late := errs.New(errs.Unavailable, "plugin %s: %s: no answer within %v", p.name, x.method, x.limit)
	ctx, cancel := context.WithTimeoutCause(parent, x.limit, late)
	defer cancel()
	select {
	case p.lane <- struct{}{}:
		defer func() { <-p.lane }()
	case <-ctx.Done():
		return &awayError{fmt.Errorf("plugin %s: %d calls wait for an answer: %w", p.name, laneWidth, context.Cause(ctx))}
	}
	nc, err := dial(ctx, at)
	if err != nil {
		if errors.Is(context.Cause(ctx), late) {
			p.silent(late)
		}
		err = fmt.Errorf("plugin %s cannot be reached: %w", p.name, err)
		var cert *tls.CertificateVerificationError
		if errors.Is(err, errs.Invalid) || errors.As(err, &cert) {
			return errs.As(errs.Unavailable, err) // waiting makes it no better
		}
		return &awayError{err}
	}
	conn := http1.NewConn(nc)
	defer conn.Close() //nolint:errcheck // nothing more is expected of it
	status, answer, err := send(ctx, conn, at, x.method, body)
	if err != nil {
		switch {
		case context.Cause(ctx) == late || errors.Is(parent.Err(), context.DeadlineExceeded):
			p.silent(late)
			return &uncertainError{late}
		case parent.Err() != nil:
			return &uncertainError{fmt.Errorf("plugin %s: %s: %w", p.name, x.method, context.Cause(parent))}
		}
		return &uncertainError{&brokenError{errs.New(errs.Unavailable, "plugin %s: %s: the connection broke before the answer: %w", p.name, x.method, err)}}
	}
	p.answered()
	return p.read(x, status, answer)
}

func send(ctx context.Context, conn *http1.Conn, at place, method string, body []byte) (status int, answer []byte, err error) {
	// No Content-Type: Docker sends none, and plugins are written for that.
	req := &http1.Request{Method: "POST", Target: "/" + method, Host: "localhost", Header: []http1.Field{{Name: "Accept", Value: MediaType}, {Name: "Connection", Value: "close"}}}
	if at.network == "tcp" {
		req.Host = at.addr
	}
	if body != nil {
		req.Body, req.Length = bytes.NewReader(body), int64(len(body))
	}
	resp, err := conn.Do(ctx, req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // the connection goes with it
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	return resp.Status, answer, err
}

// read makes sense of an answer.
func (p *plugin) read(x exchange, status int, answer []byte) error {
	if len(answer) > maxAnswer {
		return &uncertainError{errs.New(errs.Unavailable, "plugin %s: %s: an answer of more than %d bytes", p.name, x.method, maxAnswer)}
	}
	var said struct{ Err, Error string } // address management says Error
	err := json.Unmarshal(answer, &said)
	text := said.Err
	if text == "" {
		text = said.Error
	}
	switch {
	case status != 200 && (err != nil || text == ""):
		return &Error{Plugin: p.name, Method: x.method, Status: status, Text: oneLine(string(answer))}
	case err == nil && text != "":
		return &Error{Plugin: p.name, Method: x.method, Status: status, Text: oneLine(text)}
	case err == nil && x.out != nil:
		err = json.Unmarshal(answer, x.out)
	}
	if err != nil {
		return &uncertainError{errs.New(errs.Unavailable, "plugin %s: %s: an answer that makes no sense: %w", p.name, x.method, err)}
	}
	return nil
}

// oneLine makes a plugin's words fit into an error.
func oneLine(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), maxText)], "")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	return strings.TrimSpace(text)
}

func dial(ctx context.Context, at place) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, at.network, at.addr)
	if err != nil || at.tls == nil {
		return nc, err
	}
	conf, err := at.tls.config()
	if err == nil {
		conf.ServerName, _, err = net.SplitHostPort(at.addr)
	}
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	tc := tls.Client(nc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("tls with %s: %w", at.addr, err), nc.Close())
	}
	return tc, nil
}

// config reads the files, for each connection: they may have been renewed.
func (t *TLS) config() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.InsecureSkipVerify}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, errs.New(errs.Invalid, "TLSConfig: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errs.New(errs.Invalid, "TLSConfig: %s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, errs.New(errs.Invalid, "TLSConfig: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}
