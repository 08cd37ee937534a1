package serve

import (
	"syscall"
	"unsafe"

	"corten.dev/corten/internal/monitor/wire"
)

// engine is a connection of an engine; there may be more than one for a moment while one engine replaces another.
type engine struct {
	s    *Server
	fd   int
	out  []packet // what its socket did not take
	gone bool
}

type packet struct {
	b  []byte
	fd int
}

const maxWaiting = 4096 // packets; an engine that lets more pile up is not reading any more

func (s *Server) addEngine(fd int) {
	e := &engine{s: s, fd: fd}
	s.engines = append(s.engines, e)
	s.watch(fd, epollIn, e)
}

func (e *engine) close() {
	if e.gone {
		return
	}
	e.gone = true
	e.s.close(e.fd)
	for _, p := range e.out {
		e.s.close(p.fd)
	}
	for i, x := range e.s.engines {
		if x == e {
			e.s.engines = append(e.s.engines[:i], e.s.engines[i+1:]...)
			break
		}
	}
	for _, c := range e.s.clients {
		if c.owner == e {
			c.owner = nil
		}
	}
}

func (e *engine) ready(events uint32) {
	if events&epollOut != 0 {
		e.flush()
	}
	if events&epollIn != 0 {
		e.receive()
	} else if events&epollHup != 0 {
		e.close()
	}
}

// receive takes one packet with its descriptors.
func (e *engine) receive() {
	var oob [(wire.MaxFiles + 8) * 4]byte
	b := e.s.scratch[:wire.MaxPacket]
	iov := syscall.Iovec{Base: &b[0], Len: uint64(len(b))}
	msg := syscall.Msghdr{Iov: &iov, Iovlen: 1, Control: &oob[0]}
	msg.SetControllen(len(oob))
	n, _, errno := syscall.Syscall(syscall.SYS_RECVMSG, uintptr(e.fd), uintptr(unsafe.Pointer(&msg)), syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
	if errno == syscall.EAGAIN || errno == syscall.EINTR {
		return
	}
	if errno != 0 || n == 0 {
		e.close()
		return
	}
	fds := rights(oob[:msg.Controllen])
	var m wire.Message
	if msg.Flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 || !wire.Decode(b[:n], &m) {
		closeAll(fds)
		e.close()
		return
	}
	e.s.asked += 4096 + 3*int(n)
	if n > 16<<10 {
		e.s.busy = monotonic()
	}
	e.s.handle(e, &m, fds)
}

// rights are the descriptors in a control message.
func rights(oob []byte) []int {
	cmsgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range cmsgs {
		if f, err := syscall.ParseUnixRights(&cmsgs[i]); err == nil {
			fds = append(fds, f...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			syscall.Close(fd)
		}
	}
}

// handle does what m asks and answers. It closes the descriptors that nobody took.
func (s *Server) handle(e *engine, m *wire.Message, fds []int) {
	switch m.Kind {
	case wire.Launch:
		p, err := s.launch(e, m, fds)
		if err != nil {
			e.fail(m.ID, err)
			return
		}
		if p.making != nil {
			return // the answer comes with the process
		}
		e.tell(&wire.Message{Kind: wire.Started, ID: m.ID, PID: uint32(p.pid)}, p.pidfd)
		s.launched()
	case wire.Exec:
		p, err := s.exec(e, m, fds)
		if err != nil {
			e.fail(m.ID, err)
			return
		}
		if p.making != nil {
			return
		}
		e.tell(&wire.Message{Kind: wire.Started, ID: m.ID, PID: uint32(p.pid)}, p.pidfd)
	case wire.Attach:
		p := s.find(m.Session)
		if p == nil || len(m.Attached) != 1 || len(fds) != 1 {
			closeAll(fds)
			e.fail(m.ID, &failure{"no such process", syscall.ESRCH})
			return
		}
		e.tell(&wire.Message{Kind: wire.Done, ID: m.ID}, -1)
		s.attach(e, p, fds[0], &m.Attached[0])
	case wire.State:
		for _, p := range s.procs {
			p.tellState(e, m.ID)
		}
		e.tell(&wire.Message{Kind: wire.Done, ID: m.ID}, -1)
	case wire.Quit:
		s.quit = len(s.procs) == 0 || s.procs[0].ended
		e.tell(&wire.Message{Kind: wire.Done, ID: m.ID}, -1)
	case wire.Again:
		if s.quit = len(s.procs) > 0 && s.procs[0].ended; s.quit {
			s.again = e
		}
		e.tell(&wire.Message{Kind: wire.Done, ID: m.ID}, -1)
	default:
		closeAll(fds)
		s.handleProcess(e, m)
	}
}

// handleProcess does the small things that concern one process.
func (s *Server) handleProcess(e *engine, m *wire.Message) {
	p := s.find(m.Session)
	if p == nil {
		e.fail(m.ID, &failure{"no such process", syscall.ESRCH})
		return
	}
	var err error
	switch m.Kind {
	case wire.Resize:
		if !p.terminal || p.in.fd < 0 {
			err = &failure{"resize: no terminal", syscall.ENOTTY}
		} else if n := setSize(p.in.fd, m.Rows, m.Cols); n != 0 {
			err = &failure{"resize", n}
		}
	case wire.CloseStdin:
		p.endStdin()
	case wire.Forget:
		p.forgotten = true
		s.sweep()
	default:
		err = &failure{"unknown request", syscall.ENOSYS}
	}
	if err != nil {
		e.fail(m.ID, err)
		return
	}
	e.tell(&wire.Message{Kind: wire.Done, ID: m.ID}, -1)
}

// failure is an error with its errno apart, for the engine to put into words.
type failure struct {
	what  string
	errno syscall.Errno
}

func (f *failure) Error() string { return f.what }

func (e *engine) fail(id uint32, err error) {
	m := wire.Message{Kind: wire.Failed, ID: id, Text: err.Error()}
	m.Errno = uint32(errnoOf(err))
	e.tell(&m, -1)
}

// tell sends m, with a copy of fd unless it is -1; what the socket does not take waits.
func (e *engine) tell(m *wire.Message, fd int) {
	if e == nil || e.gone {
		return
	}
	var buf [512]byte
	b := wire.Append(buf[:0], m)
	if len(e.out) == 0 {
		switch e.write(b, fd) {
		case 0:
			return
		case syscall.EAGAIN:
		default:
			e.close()
			return
		}
	}
	if len(e.out) >= maxWaiting {
		e.close()
		return
	}
	if fd >= 0 {
		fd, _ = fcntl(fd, syscall.F_DUPFD_CLOEXEC, 0)
	}
	e.out = append(e.out, packet{append([]byte(nil), b...), fd})
	e.s.watch(e.fd, epollIn|epollOut, e)
}

func (e *engine) flush() {
	for len(e.out) > 0 {
		switch e.write(e.out[0].b, e.out[0].fd) {
		case 0:
		case syscall.EAGAIN:
			return
		default:
			e.close()
			return
		}
		if e.out[0].fd >= 0 {
			syscall.Close(e.out[0].fd)
		}
		e.out = e.out[1:]
	}
	e.out = nil
	e.s.watch(e.fd, epollIn, e)
}

func (e *engine) write(b []byte, fd int) syscall.Errno {
	iov := syscall.Iovec{Base: &b[0], Len: uint64(len(b))}
	msg := syscall.Msghdr{Iov: &iov, Iovlen: 1}
	if fd >= 0 {
		oob := syscall.UnixRights(fd)
		msg.Control = &oob[0]
		msg.SetControllen(len(oob))
	}
	for {
		_, _, errno := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(e.fd), uintptr(unsafe.Pointer(&msg)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
		if errno != syscall.EINTR {
			return errno
		}
	}
}

// tellAll tells every engine.
func (s *Server) tellAll(m *wire.Message) {
	for i := len(s.engines) - 1; i >= 0; i-- {
		s.engines[i].tell(m, -1)
	}
}

// listener is the socket in the monitor's folder, where a later engine finds it.
type listener struct {
	s  *Server
	fd int
}

func (l *listener) ready(uint32) {
	fd, _, err := syscall.Accept4(l.fd, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	l.s.addEngine(fd)
}

// listen binds the socket. The name is relative to the folder, because a path of a socket may have only 107 bytes.
func (s *Server) listen(folder string) error {
	dir, err := syscall.Open(folder, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return &failure{"open " + folder, errnoOf(err)}
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		syscall.Close(dir)
		return &failure{"socket", errnoOf(err)}
	}
	old := syscall.Umask(0o177)
	err = syscall.Fchdir(dir)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: "socket"})
	}
	syscall.Chdir("/")
	syscall.Umask(old)
	if err == nil {
		err = syscall.Listen(fd, 16)
	}
	if err != nil {
		syscall.Close(fd)
		syscall.Close(dir)
		return &failure{"listen in " + folder, errnoOf(err)}
	}
	s.folder, s.dirfd = folder, dir
	s.listener = &listener{s, fd}
	s.watch(fd, epollIn, s.listener)
	return nil
}

func (s *Server) unlinkSocket() {
	name := [...]byte{'s', 'o', 'c', 'k', 'e', 't', 0}
	syscall.Syscall(syscall.SYS_UNLINKAT, uintptr(s.dirfd), uintptr(unsafe.Pointer(&name[0])), 0)
}
