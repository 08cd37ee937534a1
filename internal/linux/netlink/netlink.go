// Package netlink speaks to the kernel's netlink families with few system calls: many requests in one datagram, one wait for all of them.
//
// It owns the sockets that its callers open through it, and the byte layout of messages and attributes. It knows the requests of rtnetlink that
// Corten needs (links, addresses, routes, neighbours); nftables stand on it in their own package. It promises: every error of the
// kernel is told with the request it belongs to and the kernel's own words where it gave some; a reader of foreign bytes never reads beyond them.
//
// A batch on the wire, one sendto:
//
//	┌ nlmsghdr ┬ family header ┬ attributes ┐┌ nlmsghdr ┬ … ┐┌ nlmsghdr + NLM_F_ACK … ┐
//	The kernel answers errors for every request, and the acknowledgement for the last: when that arrived, all were done.
package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Native is the byte order of netlink headers.
var native = binary.NativeEndian

const headerLen = 16

// Error is the kernel's answer to one request of a batch.
type Error struct {
	Request string // what the request was for, as given to Begin
	Errno   syscall.Errno
	Text    string // the kernel's own words, often empty
}

func (e *Error) Error() string {
	if e.Text != "" {
		return fmt.Sprintf("%s: %v (%s)", e.Request, e.Errno, e.Text)
	}
	return fmt.Sprintf("%s: %v", e.Request, e.Errno)
}

// Unwrap gives the errno, so that errors.Is(err, unix.EEXIST) works.
func (e *Error) Unwrap() error { return e.Errno }

// OnlyErrno says whether an error, or every one of those that were joined, is the one errno.
func OnlyErrno(err error, errno syscall.Errno) bool {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			if !OnlyErrno(e, errno) {
				return false
			}
		}
		return true
	}
	return errors.Is(err, errno)
}

// Conn is one netlink socket. Not safe for concurrent use: take one each, for instance from a [Pool].
type Conn struct {
	fd   int
	seq  uint32
	port uint32
	buf  []byte
}

// Port is the number that the kernel knows the socket by: [Header].From of news about its requests.
func (c *Conn) Port() uint32 { return c.port }

// Dial opens a socket of the protocol (unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER) in the network namespace of the calling thread.
func Dial(proto int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(os.NewSyscallError("netlink bind", err), unix.Close(fd))
	}
	// These three only better what we are told; kernels without them answer all the same.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	// Requests are worked on inside sendto, so an answer that is not there after seconds never comes.
	tv := unix.Timeval{Sec: 10}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, errors.Join(os.NewSyscallError("netlink timeout", err), unix.Close(fd))
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("netlink name", err), unix.Close(fd))
	}
	return &Conn{fd: fd, seq: 1, port: sa.(*unix.SockaddrNetlink).Pid, buf: make([]byte, 32<<10)}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// SetBuffers makes room for large batches; beyond the system's limits only as far as those go.
func (c *Conn) SetBuffers(size int) {
	for _, opt := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, opt, size)
	}
}

// What is sent at once, at most: the kernel takes no more than fits a socket's buffer, and its answers, one for each request that fails, must fit the other one.
const maxRequests, maxBytes = 128, 64 << 10

// Do sends the batch and waits until the kernel has worked on all of it. It returns the joined errors of the requests that failed; those after a failed one were tried all the same.
func (c *Conn) Do(b *Batch) error {
	var all []error
	for rest := *b; rest.Len() > 0; {
		var part Batch
		part, rest = rest.split()
		first := c.stamp(&part, unix.NLM_F_ACK)
		if err := c.send(part.buf); err != nil {
			return errors.Join(append(all, err)...)
		}
		if err := c.await(&part, first, first+uint32(part.Len())-1); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// split takes what can be sent at once off the front of a batch.
func (b *Batch) split() (part, rest Batch) {
	n := 1
	for n < len(b.starts) && n < maxRequests && b.end(n) <= maxBytes {
		n++
	}
	if n == len(b.starts) {
		return *b, Batch{}
	}
	size := b.end(n - 1)
	part = Batch{buf: b.buf[:size], starts: b.starts[:n], names: b.names[:n]}
	rest = Batch{buf: b.buf[size:], starts: slices.Clone(b.starts[n:]), names: b.names[n:]}
	for i := range rest.starts {
		rest.starts[i] -= size
	}
	return part, rest
}

// end is where request number i ends.
func (b *Batch) end(i int) int {
	if i+1 < len(b.starts) {
		return b.starts[i+1]
	}
	return len(b.buf)
}

// await collects the answers until the one to the last request came.
func (c *Conn) await(b *Batch, first, last uint32) error {
	var errs []error
	for {
		wait := 0
		if len(errs) > 0 {
			wait = unix.MSG_DONTWAIT // all answers are there already, and a transaction refused as a whole has fewer of them
		}
		n, err := c.recv(wait)
		if len(errs) > 0 && errors.Is(err, unix.EAGAIN) {
			return errors.Join(errs...)
		}
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		done := false
		err = Walk(c.buf[:n], func(h Header, payload []byte) error {
			if h.Seq-first > last-first {
				return nil // an answer to an earlier request that nobody waited for
			}
			if h.Type != unix.NLMSG_ERROR {
				return nil
			}
			if e := parseError(payload, h); e != nil {
				e.Request = b.names[h.Seq-first]
				errs = append(errs, e)
			}
			done = done || h.Seq == last
			return nil
		})
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if done {
			return errors.Join(errs...)
		}
	}
}

// Transact is Do for a batch that the kernel takes as a whole (nftables): it adds the message that ends the transaction, which has no answer of its own.
func (c *Conn) Transact(b *Batch, endType uint16, header []byte) error {
	first := c.stamp(b, unix.NLM_F_ACK)
	last := first + uint32(len(b.starts)) - 1
	size, count := len(b.buf), len(b.starts)
	b.Begin("end transaction", endType, 0, header)
	b.End()
	native.PutUint32(b.buf[size+8:], c.seq)
	c.seq++
	err := c.send(b.buf)
	b.buf, b.starts = b.buf[:size], b.starts[:count]
	if err != nil {
		return err
	}
	return c.await(b, first, last)
}

// Dump sends the one request of b with NLM_F_DUMP and hands every answer to fn.
func (c *Conn) Dump(b *Batch, fn func(typ uint16, payload []byte) error) error {
	first := c.stamp(b, unix.NLM_F_DUMP)
	if err := c.send(b.buf); err != nil {
		return err
	}
	for {
		n, err := c.recv(0)
		if err != nil {
			return err
		}
		done := false
		err = Walk(c.buf[:n], func(h Header, payload []byte) error {
			switch {
			case h.Seq != first || done:
				return nil
			case h.Type == unix.NLMSG_DONE:
				done = true
				return nil
			case h.Type == unix.NLMSG_ERROR:
				done = true
				if e := parseError(payload, h); e != nil {
					e.Request = b.names[0]
					return e
				}
				return nil
			}
			return fn(h.Type, payload)
		})
		if err != nil || done {
			return err
		}
	}
}

// Get sends the one request of b and returns a copy of the first answer.
func (c *Conn) Get(b *Batch) ([]byte, error) {
	first := c.stamp(b, 0)
	if err := c.send(b.buf); err != nil {
		return nil, err
	}
	var out []byte
	n, err := c.recv(0)
	if err != nil {
		return nil, err
	}
	err = Walk(c.buf[:n], func(h Header, payload []byte) error {
		if h.Seq != first || out != nil {
			return nil
		}
		if h.Type == unix.NLMSG_ERROR {
			if e := parseError(payload, h); e != nil {
				e.Request = b.names[0]
				return e
			}
			return nil
		}
		out = append([]byte{}, payload...)
		return nil
	})
	return out, err
}

// stamp gives the requests their numbers, and the last one the flags.
func (c *Conn) stamp(b *Batch, flags uint16) uint32 {
	first := c.seq
	c.seq += uint32(len(b.starts))
	if c.seq < first { // wrapped: begin anew, so that the numbers of one batch are in a row
		first, c.seq = 1, 1+uint32(len(b.starts))
	}
	for i, at := range b.starts {
		native.PutUint32(b.buf[at+8:], first+uint32(i))
	}
	at := b.starts[len(b.starts)-1]
	native.PutUint16(b.buf[at+6:], native.Uint16(b.buf[at+6:])|flags)
	return first
}

func (c *Conn) send(p []byte) error {
	for {
		err := unix.Sendto(c.fd, p, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return os.NewSyscallError("netlink send", err)
		}
	}
}

func (c *Conn) recv(wait int) (int, error) {
	for {
		n, _, flags, _, err := unix.RecvmsgBuffers(c.fd, [][]byte{c.buf}, nil, wait)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("netlink receive", err)
		}
		if flags&unix.MSG_TRUNC != 0 {
			return 0, errors.New("netlink receive: answer does not fit the buffer")
		}
		return n, nil
	}
}

// Header is what matters of a message's head. From is the socket whose request it answers or tells of.
type Header struct {
	Type, Flags uint16
	Seq, From   uint32
}

// ErrMalformed says that bytes are not what netlink sends.
var ErrMalformed = errors.New("malformed netlink message")

// Walk hands each message in p to fn.
func Walk(p []byte, fn func(h Header, payload []byte) error) error {
	for len(p) >= headerLen {
		size := int(native.Uint32(p))
		if size < headerLen || size > len(p) {
			return ErrMalformed
		}
		h := Header{Type: native.Uint16(p[4:]), Flags: native.Uint16(p[6:]), Seq: native.Uint32(p[8:]), From: native.Uint32(p[12:])}
		if err := fn(h, p[headerLen:size]); err != nil {
			return err
		}
		if size = align(size); size >= len(p) {
			return nil
		}
		p = p[size:]
	}
	if len(p) != 0 {
		return ErrMalformed
	}
	return nil
}

// Attrs hands each attribute in p to fn, the flag bits of the type taken off.
func Attrs(p []byte, fn func(typ uint16, data []byte)) error {
	for len(p) >= 4 {
		size := int(native.Uint16(p))
		if size < 4 || size > len(p) {
			return ErrMalformed
		}
		fn(native.Uint16(p[2:])&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), p[4:size])
		if size = align(size); size >= len(p) {
			return nil
		}
		p = p[size:]
	}
	return nil
}

func parseError(payload []byte, h Header) *Error {
	if len(payload) < 4 {
		return &Error{Errno: unix.EPROTO}
	}
	code := int32(native.Uint32(payload))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: syscall.Errno(-code)}
	// struct nlmsgerr is the errno and the header of the request (capped), then attributes with the kernel's words.
	if h.Flags&unix.NLM_F_ACK_TLVS != 0 && len(payload) >= 4+headerLen {
		at := 4 + headerLen
		if h.Flags&unix.NLM_F_CAPPED == 0 {
			at = 4 + align(int(native.Uint32(payload[4:])))
		}
		if at >= 0 && at <= len(payload) {
			_ = Attrs(payload[at:], func(typ uint16, data []byte) {
				if typ == unix.NLMSGERR_ATTR_MSG {
					e.Text = cString(data)
				}
			})
		}
	}
	return e
}

func cString(p []byte) string {
	for i, c := range p {
		if c == 0 {
			return string(p[:i])
		}
	}
	return string(p)
}

func align(n int) int { return (n + 3) &^ 3 }

// Pool keeps idle sockets of one protocol, so that requests side by side do not wait for each other and none opens a socket of its own.
// The sockets belong to the namespace of the thread that called Take first; use a Pool for the host's only.
type Pool struct {
	Proto int
	mu    sync.Mutex
	idle  []*Conn
	done  atomic.Bool
}

// Take hands out a socket.
func (p *Pool) Take() (*Conn, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	return Dial(p.Proto)
}

// Give takes the socket back. One whose last exchange failed half way must be closed instead.
func (p *Pool) Give(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done.Load() || len(p.idle) >= 8 {
		_ = c.Close()
		return
	}
	p.idle = append(p.idle, c)
}

// Do runs the batch on a socket of the pool.
func (p *Pool) Do(b *Batch) error {
	c, err := p.Take()
	if err != nil {
		return err
	}
	defer p.Give(c)
	return c.Do(b)
}

// Close closes the idle sockets, and those that come back later.
func (p *Pool) Close() error {
	p.done.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []error
	for _, c := range p.idle {
		all = append(all, c.Close())
	}
	p.idle = nil
	return errors.Join(all...)
}
