// Package http1 is a small HTTP/1.1 client over one connection at a time.
//
// It owns the bytes on the wire: writing a request, reading a response (by length, in chunks or until the end), and
// handing over the raw connection after an upgrade. It promises to refuse what a correct peer never sends (two
// lengths, broken chunks, endless headers) instead of guessing, and to say whether a connection may serve again.
//
// It exists because the command line has to start in two milliseconds: net/http alone costs a third of that.
package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// Limits on what a peer may send before its body.
const (
	maxHeadBytes = 256 << 10
	maxHeads     = 256
	maxInterim   = 8
)

// Field is one header line.
type Field struct{ Name, Value string }

// Request is what to send. A nil Body means none; Length -1 sends the body in chunks.
type Request struct {
	Method string
	Target string // path and query, already escaped
	Host   string
	Header []Field
	Body   io.Reader
	Length int64
}

// Response is what came back. Close the body: only then can the connection serve again.
type Response struct {
	Status int
	Reason string
	Header map[string]string // names in small letters; the last of equal names wins
	Body   io.ReadCloser
}

// Conn speaks HTTP/1.1 on one network connection. It serves one request at a time.
type Conn struct {
	nc net.Conn
	br *bufio.Reader
	bw *bufio.Writer

	mu       sync.Mutex // guards the fields below
	reusable bool
	sending  bool // a body is still being written
	source   error
}

// NewConn wraps a network connection.
func NewConn(nc net.Conn) *Conn {
	return &Conn{nc: nc, br: bufio.NewReaderSize(nc, 32<<10), bw: bufio.NewWriterSize(nc, 4<<10), reusable: true}
}

// Close closes the network connection.
func (c *Conn) Close() error { return c.nc.Close() }

// Reusable tells whether another request may follow on this connection.
func (c *Conn) Reusable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reusable && !c.sending
}

func (c *Conn) spoil() {
	c.mu.Lock()
	c.reusable = false
	c.mu.Unlock()
}

// SourceError says that the body of a request could not be read to its end. The connection was closed then, so that the peer does not take what it has for the whole.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap gives the reader's error.
func (e *SourceError) Unwrap() error { return e.Err }

// blame gives the failure of our own body, if there was one, in place of what the connection made of it.
func (c *Conn) blame(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.source != nil {
		return c.source
	}
	return err
}

// Do sends the request and reads the head of the response. Cancelling ctx closes the connection, also while the body
// is read.
func (c *Conn) Do(ctx context.Context, req *Request) (*Response, error) {
	stop := context.AfterFunc(ctx, func() { c.spoil(); c.nc.Close() })
	resp, err := c.roundTrip(req)
	if err != nil {
		c.spoil()
		stop()
		c.nc.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.blame(err)
	}
	resp.Body = &body{r: resp.Body, conn: c, ctx: ctx, stop: stop}
	return resp, nil
}

// Upgraded is a connection after its hand-over to another protocol. Read through it: the first bytes may be buffered.
type Upgraded struct {
	net.Conn
	br        *bufio.Reader
	MediaType string
}

// Read reads what the peer sent, buffered bytes first.
func (u *Upgraded) Read(p []byte) (int, error) {
	if u.br.Buffered() > 0 {
		return u.br.Read(p)
	}
	return u.Conn.Read(p)
}

// Direct is the connection itself, for what the kernel can do with it. It is nil while bytes that came with the answer's head are still to be read.
func (u *Upgraded) Direct() net.Conn {
	if u.br.Buffered() > 0 {
		return nil
	}
	return u.Conn
}

// CloseWrite tells the peer that nothing more will be sent.
func (u *Upgraded) CloseWrite() error {
	if cw, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// Upgrade sends the request with an upgrade to protocol and hands over the connection when the peer agrees (101, or
// to "tcp" 200 as peers before HTTP upgrades did). Any other answer is returned as a response and keeps the connection.
func (c *Conn) Upgrade(ctx context.Context, req *Request, protocol string) (*Upgraded, *Response, error) {
	r := *req
	r.Header = append([]Field{{"Connection", "Upgrade"}, {"Upgrade", protocol}}, req.Header...)
	stop := context.AfterFunc(ctx, func() { c.spoil(); c.nc.Close() })
	if err := c.send(&r); err != nil {
		stop()
		c.spoil()
		return nil, nil, err
	}
	resp, err := c.readHead()
	if err == nil && (resp.Status == 101 || resp.Status == 200 && protocol == "tcp") {
		if !stop() {
			return nil, nil, ctx.Err()
		}
		c.spoil()
		return &Upgraded{Conn: c.nc, br: c.br, MediaType: resp.Header["content-type"]}, nil, nil
	}
	if err == nil {
		resp.Body, err = c.bodyOf(r.Method, resp)
	}
	if err != nil {
		stop()
		c.spoil()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, nil, err
	}
	resp.Body = &body{r: resp.Body, conn: c, ctx: ctx, stop: stop}
	return nil, resp, nil
}

func (c *Conn) roundTrip(req *Request) (*Response, error) {
	sendErr := c.send(req)
	// A server that refuses a body may answer and close while we still write: its answer says more than our EPIPE.
	resp, err := c.readHead()
	if err != nil {
		if sendErr != nil {
			return nil, sendErr
		}
		return nil, err
	}
	if sendErr != nil {
		c.spoil()
	}
	resp.Body, err = c.bodyOf(req.Method, resp)
	return resp, err
}

// send writes head and body. A streamed body goes on in the background, so that an early answer is seen at once.
func (c *Conn) send(req *Request) error {
	if err := checkRequest(req); err != nil {
		return err
	}
	w := c.bw
	w.WriteString(req.Method + " " + req.Target + " HTTP/1.1\r\nHost: " + req.Host + "\r\n")
	for _, f := range req.Header {
		w.WriteString(f.Name + ": " + f.Value + "\r\n")
	}
	switch {
	case req.Body == nil && req.Method != "POST" && req.Method != "PUT":
		w.WriteString("\r\n")
	case req.Body == nil:
		w.WriteString("Content-Length: 0\r\n\r\n")
	case req.Length >= 0:
		w.WriteString("Content-Length: " + strconv.FormatInt(req.Length, 10) + "\r\n\r\n")
		if _, err := io.CopyN(w, req.Body, req.Length); err != nil {
			return fmt.Errorf("send request body: %w", err)
		}
	default:
		w.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		if err := w.Flush(); err != nil {
			return err
		}
		c.sending = true
		go c.sendChunks(req.Body)
		return nil
	}
	return w.Flush()
}

func (c *Conn) sendChunks(r io.Reader) {
	err := writeChunks(c.nc, r)
	var source *SourceError
	broke := errors.As(err, &source)
	c.mu.Lock()
	c.sending = false
	c.reusable = c.reusable && err == nil
	if broke {
		c.source = source
	}
	c.mu.Unlock()
	if broke {
		c.nc.Close()
	}
}

func writeChunks(w io.Writer, r io.Reader) error {
	const room = 8 // "xxxxxx\r\n" before the data
	buf := make([]byte, room+64<<10+2)
	for {
		n, err := r.Read(buf[room : len(buf)-2])
		if n > 0 {
			head := fmt.Sprintf("%06x\r\n", n)
			copy(buf, head)
			buf[room+n], buf[room+n+1] = '\r', '\n'
			if _, werr := w.Write(buf[:room+n+2]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			_, werr := io.WriteString(w, "0\r\n\r\n")
			return werr
		}
		if err != nil {
			return &SourceError{err}
		}
	}
}

func checkRequest(req *Request) error {
	bad := func(s string) bool { return strings.ContainsAny(s, "\r\n\x00") }
	if req.Target == "" || req.Target[0] != '/' || bad(req.Target) || strings.Contains(req.Target, " ") ||
		bad(req.Method) || bad(req.Host) {
		return fmt.Errorf("invalid request target %q", req.Target)
	}
	for _, f := range req.Header {
		if bad(f.Name) || bad(f.Value) {
			return fmt.Errorf("invalid request header %q", f.Name)
		}
	}
	return nil
}

// body gives the connection back (or up) when it is closed.
type body struct {
	r    io.ReadCloser
	conn *Conn
	ctx  context.Context // of the one request this body belongs to
	stop func() bool
	done bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		if err = b.conn.blame(err); b.ctx.Err() != nil {
			err = b.ctx.Err()
		}
	}
	return n, err
}

func (b *body) Close() error {
	if b.done {
		return nil
	}
	b.done = true
	err := b.r.Close()
	if !b.stop() || !b.conn.Reusable() {
		b.conn.spoil()
		b.conn.nc.Close()
	}
	return err
}
