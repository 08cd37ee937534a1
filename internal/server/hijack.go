package server

import (
	"bufio"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
)

// hijack takes the connection of a request for attach or exec:
//
//	client                                   door                                engine, then monitor
//	POST …/attach, Upgrade: tcp ───────────▶ checks, asks the service ─────────▶ checks, calls take
//	◀──────── 101 UPGRADED (200 if not asked) ◀──────────────────────────────────┘
//	◀═══════════════ raw or framed bytes, both ways: never through the door ═════▶
type hijack struct {
	w       http.ResponseWriter
	r       *request
	begun   bool     // the connection is not the HTTP server's any more: whatever happens now, the request cannot be answered again
	taken   net.Conn // nil also when it broke while it was taken
	tty     bool
	preread []byte
}

// take sends the header and gives the connection away with what was read of it already. Nothing here touches the connection afterwards.
func (h *hijack) take(tty bool) (net.Conn, []byte, error) {
	return h.takeWith(tty, upgradeHeader(h.r, tty))
}

// takeWith is take with what else is to be said first.
func (h *hijack) takeWith(tty bool, header []byte) (net.Conn, []byte, error) {
	switch {
	case h.taken != nil:
		return h.taken, h.preread, nil
	case h.begun:
		return nil, nil, net.ErrClosed
	}
	conn, buf, err := http.NewResponseController(h.w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.begun = true
	// The read deadline of the header must not end a quiet session.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	if _, err := conn.Write(header); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	h.taken, h.tty, h.preread = conn, tty, buffered(buf.Reader)
	return conn, h.preread, nil
}

func buffered(r *bufio.Reader) []byte {
	n := r.Buffered()
	if n == 0 {
		return nil
	}
	peeked, _ := r.Peek(n) // cannot fail: they are there
	return append([]byte(nil), peeked...)
}

func upgradeHeader(r *request, tty bool) []byte {
	kind := streamType(r.version, tty)
	if upgrade := r.Header.Get("Upgrade"); upgrade != "" {
		return []byte("HTTP/1.1 101 UPGRADED\r\nContent-Type: " + kind + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	}
	return []byte("HTTP/1.1 200 OK\r\nContent-Type: " + kind + "\r\n\r\n")
}

// streamType is the content type of a container's output; the framed one has a name of its own since 1.42.
func streamType(version int, tty bool) string {
	if !tty && version >= 42 {
		return types.MediaTypeMultiplexedStream
	}
	return types.MediaTypeRawStream
}

// frame puts text behind the 8-byte header of Docker's stream format.
func frame(streamNumber byte, text string) []byte {
	n := len(text)
	return append([]byte{streamNumber, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, text...)
}

// say writes an error into a session that has begun, where the user looks, and ends it.
func (h *hijack) say(text string) error {
	conn, _, err := h.take(h.tty)
	if err != nil {
		return err
	}
	text = strings.TrimSuffix(text, "\n") + "\r\n"
	if h.tty {
		_, err = conn.Write([]byte(text))
	} else {
		_, err = conn.Write(frame(1, text))
	}
	if cerr := conn.Close(); err == nil {
		err = cerr
	}
	return err
}
