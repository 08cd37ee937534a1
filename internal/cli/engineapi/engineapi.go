// Package engineapi speaks the Docker Engine API: versioned paths, JSON bodies, errors, hijacked streams.
//
// It owns the negotiation of the version and the connections, which stay open between requests. It promises not to
// spend a round trip on negotiation: requests go out with the newest version we know, and only an engine that calls it
// too new, or that names an older one in its first answer, makes us step down.
package engineapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/http1"
)

// The versions we speak.
const (
	Newest = "1.56"
	Oldest = "1.24"
)

// Config says how to reach the engine.
type Config struct {
	Dial      func(context.Context) (net.Conn, error)
	Authority string // Host header
	BasePath  string // put before every path
	Version   string // fixed version; empty negotiates
	Header    map[string]string
	UserAgent string
	Name      string // of the engine, for errors; empty is the one that the command talks to
}

// Client talks to one engine. Methods may be called at the same time; each takes a connection of its own.
type Client struct {
	cfg Config

	mu      sync.Mutex // guards the fields below
	version string
	settled bool // the engine has answered once, or the version is fixed
	idle    []*http1.Conn
}

// New makes a client. Nothing is dialled before the first request.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg, version: cfg.Version, settled: cfg.Version != ""}
	if c.version == "" {
		c.version = Newest
	}
	return c
}

// Close closes the idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	idle := c.idle
	c.idle = nil
	c.mu.Unlock()
	for _, conn := range idle {
		conn.Close()
	}
}

// Version is the API version in use.
func (c *Client) Version() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

// Error is an error answer of the engine. Its text is docker's.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return "Error response from daemon: " + e.Message }

// Unwrap gives the kind that the status stands for.
func (e *Error) Unwrap() error {
	switch e.Status {
	case 400:
		return errs.Invalid
	case 401:
		return errs.Unauthorized
	case 403:
		return errs.Forbidden
	case 404:
		return errs.NotFound
	case 409:
		return errs.Conflict
	case 501:
		return errs.NotImplemented
	case 503:
		return errs.Unavailable
	}
	return nil
}

// GoneError is an engine that ended the connection before its answer was whole: it was stopped or killed, or could not go on.
type GoneError struct {
	Engine  string // [Config.Name]
	Request string
	Err     error
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("%s: the engine went away: %v", e.Request, e.Err)
}

// Unwrap gives what the connection said.
func (e *GoneError) Unwrap() error { return e.Err }

// failed says what an error of the connection means.
func (c *Client) failed(r Request, err error) error {
	if source := (*http1.SourceError)(nil); errors.As(err, &source) {
		return source // what was to be sent, not the engine
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return &GoneError{Engine: c.cfg.Name, Request: r.Method + " " + r.Path, Err: err}
	}
	return fmt.Errorf("%s %s: %w", r.Method, r.Path, err)
}

// Request is one call. Path is without version ("/containers/json"). In is marshalled as JSON, or json.RawMessage; Stream is sent as it
// is, with ContentType. At most one of the two is set.
type Request struct {
	Method      string
	Path        string
	Query       url.Values
	In          any
	Stream      io.Reader
	ContentType string
	Header      []http1.Field
	AtMost      string // ask in no newer version than this one: for fields that newer ones lack
}

// Do sends the request and returns the answer if its status is below 400; else an *Error. Close the body.
func (c *Client) Do(ctx context.Context, r Request) (*http1.Response, error) {
	resp, _, err := c.do(ctx, r, "")
	return resp, err
}

// Hijack sends the request with an upgrade to a raw stream. Cancelling ctx does not close the stream.
func (c *Client) Hijack(ctx context.Context, r Request) (*http1.Upgraded, error) {
	resp, up, err := c.do(ctx, r, "tcp")
	if err != nil {
		return nil, err
	}
	if up == nil {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: engine answered %d instead of switching to a stream", r.Path, resp.Status)
	}
	return up, nil
}

// Upgrade sends the request with an upgrade that the engine may not know: then its answer is the ordinary one, and is given. Cancelling ctx does not close the stream.
func (c *Client) Upgrade(ctx context.Context, r Request, protocol string) (*http1.Upgraded, *http1.Response, error) {
	resp, up, err := c.do(ctx, r, protocol)
	return up, resp, err
}

// Call sends the request and unmarshals the answer into out (nil discards it).
func (c *Client) Call(ctx context.Context, r Request, out any) error {
	resp, err := c.Do(ctx, r)
	if err != nil {
		return err
	}
	return r.Read(resp, out)
}

// Read reads the answer to the request into out (nil discards it), and closes its body.
func (r Request) Read(resp *http1.Response, out any) error {
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read answer to %s: %w", r.Path, err)
	}
	if out == nil || len(data) == 0 {
		return nil
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = data
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("read answer to %s: %w", r.Path, err)
	}
	return nil
}

// Get is Call for the commonest request.
func (c *Client) Get(ctx context.Context, path string, q url.Values, out any) error {
	return c.Call(ctx, Request{Method: "GET", Path: path, Query: q}, out)
}

// Post is Call with a JSON body.
func (c *Client) Post(ctx context.Context, path string, q url.Values, in, out any) error {
	return c.Call(ctx, Request{Method: "POST", Path: path, Query: q, In: in}, out)
}

// Delete is Call without a body.
func (c *Client) Delete(ctx context.Context, path string, q url.Values, out any) error {
	return c.Call(ctx, Request{Method: "DELETE", Path: path, Query: q}, out)
}

func (c *Client) do(ctx context.Context, r Request, upgrade string) (*http1.Response, *http1.Upgraded, error) {
	var payload []byte
	if raw, ok := r.In.(json.RawMessage); ok {
		payload = raw
	} else if r.In != nil {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r.In); err != nil {
			return nil, nil, fmt.Errorf("write request to %s: %w", r.Path, err)
		}
		payload = buf.Bytes()
	}
	if r.Stream != nil { // it can be sent once only: learn the version before
		if err := c.Settle(ctx); err != nil {
			return nil, nil, err
		}
	}
	for attempt := 0; ; attempt++ {
		used := c.Version()
		resp, up, err := c.once(ctx, r, payload, upgrade)
		var apiErr *Error
		if attempt == 0 && errors.As(err, &apiErr) && r.Stream == nil && c.stepDown(apiErr, used) {
			continue
		}
		return resp, up, err
	}
}

// Settle makes sure that Version is what the engine will be spoken to in.
func (c *Client) Settle(ctx context.Context) error {
	if c.isSettled() {
		return nil
	}
	return c.Call(ctx, Request{Method: "GET", Path: "/_ping"}, nil)
}

func (c *Client) isSettled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settled
}

// once sends one request on an idle or a new connection.
func (c *Client) once(ctx context.Context, r Request, payload []byte, upgrade string) (*http1.Response, *http1.Upgraded, error) {
	for {
		conn, used, err := c.conn(ctx)
		if err != nil {
			return nil, nil, err
		}
		req := c.build(r, payload)
		var resp *http1.Response
		var up *http1.Upgraded
		if upgrade != "" {
			up, resp, err = conn.Upgrade(ctx, req, upgrade)
		} else {
			resp, err = conn.Do(ctx, req)
		}
		if err != nil {
			conn.Close()
			// The engine may have closed an idle connection. Only what changes nothing is sent again.
			if used && r.Method == "GET" && ctx.Err() == nil {
				continue
			}
			return nil, nil, c.failed(r, err)
		}
		if up != nil {
			return nil, up, nil
		}
		c.settle(resp)
		resp.Body = &returning{ReadCloser: resp.Body, client: c, conn: conn, of: r}
		if resp.Status >= 400 {
			return nil, nil, readError(resp)
		}
		return resp, nil, nil
	}
}

func (c *Client) build(r Request, payload []byte) *http1.Request {
	target := c.cfg.BasePath
	if r.Path != "/_ping" {
		v := c.Version()
		if r.AtMost != "" && Less(r.AtMost, v) {
			v = r.AtMost
		}
		target += "/v" + v
	}
	target += r.Path
	if q := r.Query.Encode(); q != "" {
		target += "?" + q
	}
	req := &http1.Request{Method: r.Method, Target: target, Host: c.cfg.Authority, Header: r.Header}
	req.Header = append(req.Header, http1.Field{Name: "User-Agent", Value: c.cfg.UserAgent})
	for k, v := range c.cfg.Header {
		req.Header = append(req.Header, http1.Field{Name: k, Value: v})
	}
	switch {
	case payload != nil:
		req.Body, req.Length = bytes.NewReader(payload), int64(len(payload))
		req.Header = append(req.Header, http1.Field{Name: "Content-Type", Value: "application/json"})
	case r.Stream != nil:
		req.Body, req.Length = r.Stream, -1
		req.Header = append(req.Header, http1.Field{Name: "Content-Type", Value: r.ContentType})
	}
	return req
}

func (c *Client) conn(ctx context.Context) (conn *http1.Conn, used bool, err error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		conn = c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return conn, true, nil
	}
	c.mu.Unlock()
	nc, err := c.cfg.Dial(ctx)
	if err != nil {
		return nil, false, err
	}
	return http1.NewConn(nc), false, nil
}

// returning puts its connection back among the idle ones when the body is done with.
type returning struct {
	io.ReadCloser
	client *Client
	conn   *http1.Conn
	of     Request
	once   sync.Once
}

func (r *returning) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !errors.Is(err, context.Canceled) {
		err = r.client.failed(r.of, err)
	}
	return n, err
}

func (r *returning) Close() error {
	err := r.ReadCloser.Close()
	r.once.Do(func() {
		if !r.conn.Reusable() {
			return
		}
		r.client.mu.Lock()
		r.client.idle = append(r.client.idle, r.conn)
		r.client.mu.Unlock()
	})
	return err
}

// settle takes the engine's version from its first answer.
func (c *Client) settle(resp *http1.Response) {
	theirs := resp.Header["api-version"]
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settled {
		return
	}
	c.settled = true
	if Less(theirs, c.version) && !Less(theirs, Oldest) {
		c.version = theirs
	}
}

// stepDown tells whether the error was about our version being too new, having lowered it.
func (c *Client) stepDown(e *Error, used string) bool {
	const marks = "is too new. Maximum supported API version is "
	_, theirs, found := strings.Cut(e.Message, marks)
	if e.Status == 400 && Less(c.Version(), used) { // its headers said so: an answer to HEAD has no text
		return true
	}
	if e.Status != 400 || !found || c.cfg.Version != "" {
		return false
	}
	theirs, _, _ = strings.Cut(theirs, " ")
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, ok := split(theirs); !ok || Less(theirs, Oldest) {
		return false
	}
	c.version, c.settled = theirs, true
	return true
}

// Less compares two versions of the form 1.24. What is not a version is less than nothing.
func Less(a, b string) bool {
	amaj, amin, ok1 := split(a)
	bmaj, bmin, ok2 := split(b)
	return ok1 && ok2 && (amaj < bmaj || amaj == bmaj && amin < bmin)
}

func split(v string) (major, minor int, ok bool) {
	a, b, found := strings.Cut(v, ".")
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	return major, minor, found && err1 == nil && err2 == nil
}

// readError turns an error answer into an *Error and closes the body.
func readError(resp *http1.Response) error {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return &Error{Status: resp.Status, Message: "cannot read the error: " + err.Error()}
	}
	msg := strings.TrimSpace(string(data))
	if strings.HasPrefix(resp.Header["content-type"], "application/json") {
		var body struct{ Message string }
		if err := json.Unmarshal(data, &body); err == nil && body.Message != "" {
			msg = strings.TrimSpace(body.Message)
		}
	}
	if msg == "" {
		msg = fmt.Sprintf("%d %s", resp.Status, resp.Reason)
	}
	return &Error{Status: resp.Status, Message: msg}
}
