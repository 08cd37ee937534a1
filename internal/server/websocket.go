package server

import (
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"sync"

	"github.com/coder/websocket"
)

// containerAttachWS attaches over a websocket. Messages carry the streams unframed, stdout and stderr together: binary since 1.28, text before.
// A browser of another origin is refused by the websocket library.
func (s *Server) containerAttachWS(w http.ResponseWriter, r *request) error {
	opts := attachOptions(r)
	if r.version < 42 { // older versions attached to all streams, whatever was asked
		opts.Stdin, opts.Stdout, opts.Stderr = true, true, true
	}
	opts.Stream = opts.Stream || !opts.Logs
	kind := websocket.MessageBinary
	if r.version < 28 {
		kind = websocket.MessageText
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	var conn *wsConn
	answer := &handshake{ResponseWriter: w}
	opts.Hijack = func(tty bool) (net.Conn, []byte, error) {
		ws, err := websocket.Accept(answer, r.Request, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
		if err != nil {
			return nil, nil, err
		}
		ws.SetReadLimit(1 << 20)
		conn = &wsConn{Conn: websocket.NetConn(ctx, ws, kind), framed: !tty, cancel: cancel}
		return conn, nil, nil
	}
	err := s.Containers.Attach(ctx, r.id(), opts)
	if conn == nil {
		cancel()
		if answer.refused != 0 {
			s.fail(w, answer.refused, err.Error())
			return nil
		}
		return err
	}
	if err != nil {
		s.Logger.Debug("session ended", "path", r.URL.Path, "err", err)
	}
	return nil
}

// handshake keeps the library from answering a request that is no websocket's: it is told in our words, once.
type handshake struct {
	http.ResponseWriter
	refused int // the status that it was answered with
}

func (h *handshake) WriteHeader(code int) {
	if code == http.StatusSwitchingProtocols {
		h.ResponseWriter.WriteHeader(code)
		return
	}
	h.refused = code
}

func (h *handshake) Write(p []byte) (int, error) { return len(p), nil }

// Unwrap has the connection found.
func (h *handshake) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// wsConn takes Docker's 8-byte frame headers out of what is written, because websocket clients get the plain streams. Headers and payload may come in any pieces.
type wsConn struct {
	net.Conn
	framed bool
	cancel context.CancelFunc

	mu     sync.Mutex // guards all below
	header [8]byte
	have   int    // bytes of the header that were seen
	left   uint32 // payload bytes until the next header
}

// Write sends the payload of p.
func (c *wsConn) Write(p []byte) (int, error) {
	if !c.framed {
		return c.Conn.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	written := len(p)
	for len(p) > 0 {
		if c.left == 0 {
			n := copy(c.header[c.have:], p)
			c.have += n
			p = p[n:]
			if c.have == len(c.header) {
				c.have, c.left = 0, binary.BigEndian.Uint32(c.header[4:])
			}
			continue
		}
		n := min(uint32(len(p)), c.left)
		if _, err := c.Conn.Write(p[:n]); err != nil {
			return 0, err
		}
		p = p[n:]
		c.left -= n
	}
	return written, nil
}

// Close ends the websocket.
func (c *wsConn) Close() error {
	defer c.cancel()
	return c.Conn.Close()
}
