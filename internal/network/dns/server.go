// Package dns answers the name questions of containers on user-defined networks.
//
// It owns the sockets that it is given and a cache of what upstream servers said. It runs in a process of its own, which outlives the engine (resident.go has the protocol
// between them). A [Directory] tells what an owner may see and whom to ask for the rest; book.go makes one of what the engine said. It promises:
// a name of another network is never told; an owner who reaches no outside is never asked for outside; no packet, however made, stops the
// server; one owner's questions do not starve another's.
//
// All sockets, two per container (udp and tcp, opened in its namespace), wait in one epoll set that one goroutine reads. A question about a
// container is answered right there, from memory; one for upstream, and each tcp connection, gets a goroutine while it lasts.
//
//	question ─▶ name of the owner's networks? ── yes ─▶ answer (or empty answer, for a type it has not)
//	                 │ no
//	                 └─▶ outside allowed, and the name, where there is an egress list (gate.go)? ── no ─▶ "no such name"
//	                          │ yes
//	                          └─▶ cache? ─▶ upstreams, the next joining the race when the earlier are slow ─▶ answer, or "server failure"
package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Directory tells what the owner of a question may know. It is asked from several goroutines.
type Directory interface {
	// Lookup finds a name, in lower case and without the last dot, on the owner's networks.
	Lookup(owner, name string) (addrs []netip.Addr, found bool)
	// Reverse finds the full name of an address on the owner's networks.
	Reverse(owner string, addr netip.Addr) (name string, found bool)
	// Upstreams are the servers to ask for the rest; ok is false when the owner must not reach outside.
	Upstreams(owner string) (servers []netip.AddrPort, ok bool)
	// Dial connects to one of them, from the host's namespace or wherever it is meant to be reached from.
	Dial(ctx context.Context, owner, network string, server netip.AddrPort) (net.Conn, error)
}

// Server serves any number of containers.
type Server struct {
	dir   Directory
	log   *slog.Logger
	epoll int
	wake  int
	cache cache
	slots chan struct{} // questions on their way upstream, of all owners
	work  sync.WaitGroup

	mu     sync.Mutex
	byFD   map[int]*socket
	owners map[string]*client
	closed bool
}

// client is one owner's side.
type client struct {
	owner string
	fds   []int
	slots chan struct{} // work in flight for this owner
}

type socket struct {
	*client
	stream bool
}

const (
	maxForward  = 512 // questions upstream at a time
	maxPerOwner = 64  // work in flight per owner; what is more is dropped, as a full network would
	maxUDP      = 4096
	tcpIdle     = 10 * time.Second
)

// New starts a server without containers.
func New(dir Directory, log *slog.Logger) (*Server, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)})
	}
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), unix.Close(epoll))
	}
	s := &Server{dir: dir, log: log, epoll: epoll, wake: wake, byFD: map[int]*socket{}, owners: map[string]*client{}, slots: make(chan struct{}, maxForward)}
	s.cache.init()
	s.work.Go(s.loop)
	return s, nil
}

// Listen opens the two sockets of a container in the namespace of the calling thread, on the address with free ports, for Add.
func Listen(addr netip.Addr) (udp, tcp int, udpPort, tcpPort uint16, err error) {
	if udp, udpPort, err = bind(unix.SOCK_DGRAM, addr); err != nil {
		return -1, -1, 0, 0, fmt.Errorf("dns socket: %w", err)
	}
	if tcp, tcpPort, err = bind(unix.SOCK_STREAM, addr); err != nil {
		return -1, -1, 0, 0, errors.Join(fmt.Errorf("dns socket: %w", err), unix.Close(udp))
	}
	return udp, tcp, udpPort, tcpPort, nil
}

func bind(kind int, addr netip.Addr) (int, uint16, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, 0, err
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()})
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 64)
	}
	var port uint16
	if err == nil {
		var sa unix.Sockaddr
		if sa, err = unix.Getsockname(fd); err == nil {
			port = uint16(sa.(*unix.SockaddrInet4).Port)
		}
	}
	if err != nil {
		return -1, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, port, nil
}

// Add serves the sockets for the owner; they are the server's from now on, also when it fails. An owner who is served already gets the new ones instead.
func (s *Server) Add(owner string, udp, tcp int) error {
	s.Remove(owner)
	c := &client{owner: owner, fds: []int{udp, tcp}, slots: make(chan struct{}, maxPerOwner)}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.closed {
		err = net.ErrClosed
	}
	for i, fd := range c.fds {
		if err == nil {
			s.byFD[fd] = &socket{client: c, stream: i == 1}
			err = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("serve names: %w", err), s.drop(c))
	}
	s.owners[owner] = c
	return nil
}

// Remove stops serving the owner. No harm if there is none.
func (s *Server) Remove(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.owners[owner]; c != nil {
		delete(s.owners, owner)
		if err := s.drop(c); err != nil {
			s.log.Warn("close dns sockets", "owner", owner, "err", err)
		}
	}
}

// Files are duplicates of the owner's sockets, udp and tcp; none when it is not served.
func (s *Server) Files(owner string) (files []*os.File, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.owners[owner]
	if c == nil {
		return nil, nil
	}
	for _, fd := range c.fds {
		f, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			for _, f := range files {
				_ = f.Close() // a duplicate
			}
			return nil, os.NewSyscallError("dup", err)
		}
		files = append(files, os.NewFile(uintptr(f), "dns"))
	}
	return files, nil
}

// drop closes a client's sockets, which takes them out of the epoll set. mu is held, so that the loop never meets a number that was given anew.
func (s *Server) drop(c *client) error {
	var all []error
	for _, fd := range c.fds {
		delete(s.byFD, fd)
		all = append(all, unix.Close(fd))
	}
	return errors.Join(all...)
}

// Close stops everything.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var all []error
	for owner, c := range s.owners {
		delete(s.owners, owner)
		all = append(all, s.drop(c))
	}
	s.mu.Unlock()
	_, err := unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	s.work.Wait()
	return errors.Join(append(all, err, unix.Close(s.wake), unix.Close(s.epoll))...)
}

func (s *Server) loop() {
	events := make([]unix.EpollEvent, 64)
	buf := make([]byte, maxUDP)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			s.log.Error("names are not served any more", "err", err)
			return
		}
		for _, ev := range events[:n] {
			if int(ev.Fd) == s.wake {
				return
			}
			s.ready(int(ev.Fd), buf)
		}
	}
}

// ready reads what waits on one socket: a few packets, then the others' turn.
func (s *Server) ready(fd int, buf []byte) {
	for range 16 {
		s.mu.Lock()
		sock := s.byFD[fd]
		if sock == nil {
			s.mu.Unlock()
			return
		}
		if sock.stream {
			conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			s.mu.Unlock()
			if err != nil {
				return
			}
			s.accept(sock.client, conn)
			continue
		}
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		s.mu.Unlock()
		if err != nil {
			return
		}
		s.packet(sock.client, fd, from, buf[:n])
	}
}

// packet answers a question that came by udp.
func (s *Server) packet(c *client, fd int, from unix.Sockaddr, p []byte) {
	answer, q := s.local(c.owner, p, false)
	if answer == nil && q == nil {
		return // not a question: no answer
	}
	if answer != nil {
		s.reply(c, fd, from, answer)
		return
	}
	p = append([]byte{}, p...)
	s.spawn(c, func() { s.reply(c, fd, from, s.forward(c.owner, p, q, false)) })
}

// reply sends by udp, if the owner is still served by that socket.
func (s *Server) reply(c *client, fd int, to unix.Sockaddr, answer []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sock := s.byFD[fd]; sock != nil && sock.client == c {
		_ = unix.Sendto(fd, answer, unix.MSG_DONTWAIT, to) // who asks by udp asks again
	}
}

func (s *Server) spawn(c *client, fn func()) bool {
	select {
	case c.slots <- struct{}{}:
	default:
		return false
	}
	go func() {
		defer func() { <-c.slots }()
		fn()
	}()
	return true
}

// accept serves a tcp connection: questions with their length before them, one after the other.
func (s *Server) accept(c *client, fd int) {
	f := os.NewFile(uintptr(fd), "dns")
	if !s.spawn(c, func() {
		defer f.Close()
		for {
			if err := f.SetDeadline(time.Now().Add(tcpIdle)); err != nil {
				return
			}
			p, err := readFrame(f)
			if err != nil {
				return
			}
			answer, q := s.local(c.owner, p, true)
			if answer == nil && q != nil {
				answer = s.forward(c.owner, p, q, true)
			}
			if answer == nil || writeFrame(f, answer) != nil {
				return
			}
		}
	}) {
		_ = f.Close()
	}
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	p := make([]byte, int(head[0])<<8|int(head[1]))
	_, err := io.ReadFull(r, p)
	return p, err
}

func writeFrame(w io.Writer, p []byte) error {
	if len(p) > 0xffff {
		return errors.New("answer too long")
	}
	_, err := w.Write(append([]byte{byte(len(p) >> 8), byte(len(p))}, p...))
	return err
}
