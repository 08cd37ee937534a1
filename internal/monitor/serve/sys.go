package serve

import (
	"syscall"
	"unsafe"
)

// What package syscall does not name.
const (
	setPipeSize     = 1031
	pipeSize        = 1 << 20
	setChildSubreap = 36
	pollIn          = 1
	epollIn         = syscall.EPOLLIN
	epollOut        = syscall.EPOLLOUT
	epollHup        = syscall.EPOLLHUP | syscall.EPOLLERR
	epollPri        = syscall.EPOLLPRI
)

// deafen has the process ignore what is sent to end an engine's or a terminal's processes. Its children do not inherit it: the walker of launch puts every signal back.
func deafen() {
	act := struct{ handler, flags, restorer, mask uintptr }{handler: 1} // SIG_IGN
	for _, sig := range [...]syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM} {
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
}

// closeFrom closes what the engine itself had inherited from whoever started it: a monitor that outlives the engine must not keep a stranger's pipe open.
func closeFrom(first int) {
	const closeRange = 436
	syscall.RawSyscall(closeRange, uintptr(first), uintptr(^uint32(0)), 0)
}

// clock reads a clock in ns. Package time would bring three times the code.
func clock(id uintptr) int64 {
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

func realtime() int64  { return clock(0) }
func monotonic() int64 { return clock(1) }

func fcntl(fd, cmd, arg int) (int, error) {
	r, _, e := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(arg))
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

func read(fd int, b []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.Syscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

// The hot calls come in two kinds. Go's scheduler has a thread that watches those it is told of, and while bytes flow that thread wakes up thousands of times a
// second, at half the cost of moving them. So it is told (sharing) only where another goroutine may want the one processor.

// readOutput is read, of a descriptor that does not make one wait.
func readOutput(fd int, b []byte, sharing bool) (int, syscall.Errno) {
	if sharing {
		return read(fd, b)
	}
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

// nap sleeps for ns, or less when a signal comes.
func nap(ns int64, sharing bool) {
	ts := syscall.NsecToTimespec(ns)
	if sharing {
		syscall.Syscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
		return
	}
	syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// poll is an epoll_wait that does not wait.
func poll(ep int, events []syscall.EpollEvent) int {
	n, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

func write(fd int, b []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.Syscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

// recv takes bytes from a socket without waiting.
func recv(fd int, b []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.Syscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), syscall.MSG_DONTWAIT, 0, 0)
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

// sender sends two pieces as one without waiting; its structures are kept so that the data path allocates nothing.
type sender struct {
	sharing bool
	iov     [2]syscall.Iovec
	msg     syscall.Msghdr
}

func (s *sender) send(fd int, head, data []byte) (int, syscall.Errno) {
	n := 0
	for _, b := range [...][]byte{head, data} {
		if len(b) > 0 {
			s.iov[n] = syscall.Iovec{Base: &b[0], Len: uint64(len(b))}
			n++
		}
	}
	s.msg = syscall.Msghdr{Iov: &s.iov[0], Iovlen: uint64(n)}
	for {
		var r uintptr
		var e syscall.Errno
		if s.sharing {
			r, _, e = syscall.Syscall(syscall.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.msg)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
		} else {
			r, _, e = syscall.RawSyscall(syscall.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.msg)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
		}
		if e != syscall.EINTR {
			return int(r), e
		}
	}
}

// readable asks whether fd has something to read now. For a terminal this also pushes through what the kernel still has on its way to the master.
func readable(fd int) bool {
	p := struct {
		fd     int32
		ev, re int16
	}{fd: int32(fd), ev: pollIn}
	var ts syscall.Timespec
	n, _, _ := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	return n == 1
}

func setSize(fd int, rows, cols uint16) syscall.Errno {
	ws := [4]uint16{rows, cols}
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&ws)))
	return e
}

// memory maps pages that are not part of Go's heap, so that they can be given back at once.
func memory(n int) []byte {
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return make([]byte, n)
	}
	return b
}

// queue is bytes that wait, in mapped memory.
type queue struct {
	mem  []byte
	r, w int
}

func (q *queue) len() int      { return q.w - q.r }
func (q *queue) bytes() []byte { return q.mem[q.r:q.w] }

func (q *queue) add(b []byte) {
	if len(b) == 0 {
		return
	}
	if q.w+len(b) > len(q.mem) {
		if need := q.len() + len(b); need > len(q.mem) {
			size := 64 << 10
			for size < need {
				size *= 2
			}
			mem := memory(size)
			copy(mem, q.bytes())
			if q.mem != nil {
				syscall.Munmap(q.mem)
			}
			q.mem = mem
		} else {
			copy(q.mem, q.bytes())
		}
		q.r, q.w = 0, q.w-q.r
	}
	q.w += copy(q.mem[q.w:], b)
}

func (q *queue) drop(n int) {
	if q.r += n; q.r == q.w {
		q.r, q.w = 0, 0
	}
}

// free gives the memory back.
func (q *queue) free() {
	if q.mem != nil {
		syscall.Munmap(q.mem)
	}
	*q = queue{}
}
