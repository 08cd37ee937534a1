package monitor

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/monitor/wire"
)

// maxPreread is how much stdin travels in a packet, of all clients together; more goes through copying connections.
const maxPreread = 8 << 10

// hand adds a connection to a request. end is called once, with how the attachment ended, if the request succeeds.
func (m *monitor) hand(req *wire.Message, pc *parcel, conn net.Conn, o AttachOptions, end func(AttachEnd)) error {
	a := wire.Attachment{DetachKeys: o.DetachKeys}
	for _, x := range []struct {
		on  bool
		bit uint8
	}{{o.Stdin, wire.WantStdin}, {o.Stdout, wire.WantStdout}, {o.Stderr, wire.WantStderr}, {o.Framed, wire.Framed}, {o.Shared, wire.Shared}} {
		if x.on {
			a.Flags |= x.bit
		}
	}
	fd, begin, err := descriptor(conn, o.Preread, o.Shared, len(o.Preread) <= maxPreread-pc.preread)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if begin == nil {
		a.Preread = o.Preread
		pc.preread += len(o.Preread)
	}
	h := &handover{settled: make(chan struct{})}
	m.mu.Lock()
	m.number++
	a.Number = m.number
	if m.ends == nil {
		m.ends = map[uint32]func(AttachEnd){}
	}
	m.ends[a.Number] = func(e AttachEnd) { go h.finish(func() { end(e) }) }
	m.mu.Unlock()
	pc.fds = append(pc.fds, fd)
	pc.done = append(pc.done, func(sent bool) {
		unix.Close(fd)
		h.sent = sent
		switch {
		case !sent:
			m.mu.Lock()
			delete(m.ends, a.Number)
			m.mu.Unlock()
			if begin != nil {
				begin(false)
			}
		case begin != nil:
			h.copied = begin(true)
		default:
			conn.Close()
		}
		close(h.settled)
	})
	req.Attached = append(req.Attached, a)
	return nil
}

// handover is a connection on its way to the monitor; its end may be told before the request's answer was seen here.
type handover struct {
	settled chan struct{} // closes when sent and copied are set
	sent    bool
	copied  <-chan struct{} // closes when a copying connection has delivered everything
}

func (h *handover) finish(end func()) {
	<-h.settled
	if !h.sent {
		return
	}
	if h.copied != nil {
		<-h.copied
	}
	end()
}

// descriptor gives a copy of the connection's own descriptor. A connection that has none of its own (TLS, a websocket), or of which more was read already than
// fits the packet, gets a socket pair; begin then starts (or gives up) copying, and its channel closes when all output was copied.
func descriptor(conn net.Conn, preread []byte, shared, fits bool) (fd int, begin func(start bool) <-chan struct{}, err error) {
	if fits {
		switch conn.(type) {
		case *net.UnixConn, *net.TCPConn:
			fd, err = duplicate(conn.(syscall.Conn))
			return fd, nil, err
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, nil, err
	}
	f := os.NewFile(uintptr(pair[0]), "attached")
	inner, err := net.FileConn(f)
	f.Close()
	if err != nil {
		unix.Close(pair[1])
		return -1, nil, err
	}
	return pair[1], func(start bool) <-chan struct{} {
		if !start {
			inner.Close()
			return nil
		}
		done := make(chan struct{})
		go through(conn, inner.(*net.UnixConn), preread, shared, done)
		return done
	}, nil
}

func duplicate(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	if cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}

// through copies between a connection and the monitor's end until the monitor has sent everything or the client is gone.
func through(conn net.Conn, inner *net.UnixConn, preread []byte, shared bool, done chan struct{}) {
	defer close(done)
	var input sync.WaitGroup
	input.Add(1)
	go func() {
		defer input.Done()
		_, err := inner.Write(preread)
		if err == nil {
			_, err = io.Copy(inner, conn)
		}
		if err == nil {
			inner.CloseWrite() // the client ended its stdin, and may still listen
		} else {
			inner.Close()
		}
	}()
	if _, err := io.Copy(conn, inner); err != nil { // the client is gone
		conn.Close()
		inner.Close()
		input.Wait()
		return
	}
	if c, ok := conn.(interface{ CloseWrite() error }); ok && !shared {
		c.CloseWrite()
	}
	conn.Close()
	inner.Close()
	input.Wait()
}

// Attach implements [Process].
func (p *proc) Attach(ctx context.Context, conn net.Conn, opts AttachOptions) (_ <-chan AttachEnd, err error) {
	ch := make(chan AttachEnd, 1)
	req := wire.Message{Kind: wire.Attach, Session: p.session}
	var pc parcel
	defer func() { pc.close(err == nil) }()
	if err := p.m.hand(&req, &pc, conn, opts, func(e AttachEnd) { ch <- e; close(ch) }); err != nil {
		return nil, err
	}
	if _, err := p.m.link.call(ctx, &req, pc.fds...); err != nil {
		return nil, fmt.Errorf("attach to %s: %w", p.m.id, err)
	}
	return ch, nil
}
