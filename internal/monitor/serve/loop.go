// Package serve is the monitor's side: the loop that cmd/corten-monitor runs.
//
// It owns the monitor's descriptors and its folder's socket, the container's pipes, log and exit record. It links nothing but system calls: one thread, one epoll,
// no goroutine on the way of a byte (the log of a non-blocking container and the flushing of finished log files have one each). It promises what package monitor
// promises of a monitor, and that an idle one costs about half a megabyte.
//
//	waiting ──Launch──▶ running ──first process reaped──▶ draining ──▶ recorded ──▶ lingering ──▶ gone
//	 ▲   │ engine gone                                     pipes empty   ExitPath     │ output delivered to the attached clients, sessions reaped,
//	 │   ▼                                                               engines told │ and Quit said (or no engine connected, and the exit is on disk)
//	 │  gone                                                                          │
//	 └────────────── Again said, and nothing of the container is left: see again.go ──┘
//
// Attached clients. What a client does not take at once waits in its queue. A client with more than 256 KiB waiting stops the reading of that
// process's output, as Docker does; one that took nothing for ten seconds is cut off, so that the container goes on. For a container whose log is non-blocking
// nothing is ever stopped: whole frames that do not fit into the queue (1 MiB) are dropped.
package serve

import (
	"runtime"
	"syscall"
)

// Times, in ns.
const (
	second       = int64(1e9)
	stallLimit   = 10 * second // a client that takes nothing for this long is cut off
	firstLimit   = 10 * second // how long an exec process's output waits for its first client
	lingerLimit  = 2 * second  // how long a finished client may take to close its side
	tick         = 250
	trimAfter    = 1 * second // big buffers of an idle monitor are given back
	scratchSize  = 256 << 10
	collectEvery = 96 << 10 // bytes of garbage, roughly, between two collections
)

// watcher is what owns a descriptor.
type watcher interface {
	ready(events uint32)
}

type watch struct {
	w      watcher
	events uint32
	gen    int32
	on     bool
}

// Server is one monitor.
type Server struct {
	ep        int
	watches   []watch
	gen       int32
	scratch   []byte // what a read fills: a packet, output, a client's stdin
	send      sender
	engines   []*engine
	listener  *listener
	folder    string
	dirfd     int
	procs     []*process // procs[0] is the container's first process
	clients   []*client
	log       logger
	oom       *oomWatch
	exitPath  string
	durable   bool
	nonblock  bool // the container must never wait for anyone
	quit      bool
	unwritten bool    // the exit found no room on the disk
	again     *engine // who wants the monitor back, as a waiting one, rather than gone
	gather    int64   // ns that the loop lets a stream of output gather
	asked     int     // bytes that requests have cost since the last collection, roughly
	busy      int64   // when the scratch memory was last used beyond its first pages
	score     score
}

// Run serves on the control socket and returns when the monitor's work is done; the result is the process's exit code.
func Run(control int) int {
	runtime.LockOSThread() // the container's first process dies with the thread that made it (PR_SET_PDEATHSIG)
	deafen()
	closeFrom(control + 1)
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return 1
	}
	syscall.RawSyscall6(syscall.SYS_PRCTL, setChildSubreap, 1, 0, 0, 0, 0)
	s := &Server{ep: ep, scratch: memory(scratchSize), dirfd: -1}
	s.addEngine(control)
	for s.loop(); s.renew(); s.loop() {
	}
	s.finish()
	return 0
}

func (s *Server) loop() {
	var events [32]syscall.EpollEvent
	timeout := -1
	for !s.over() {
		n, err := s.wait(events[:], timeout)
		if err == syscall.EINTR {
			s.reap()
		}
		for i := 0; i < n; i++ {
			ev := &events[i]
			if fd := int(ev.Fd); fd < len(s.watches) {
				if w := &s.watches[fd]; w.on && w.gen == ev.Pad {
					w.w.ready(ev.Events)
				}
			}
		}
		timeout = s.oom.tend(s.tend())
	}
}

// wait is epoll_wait. While a stream of output gathers it sleeps first, and then looks without waiting, so that the writer has nobody to wake.
func (s *Server) wait(events []syscall.EpollEvent, timeout int) (int, error) {
	if s.gather > 0 {
		nap(s.gather, s.nonblock)
		s.gather = 0
		if n := poll(s.ep, events); n > 0 {
			return n, nil
		}
	}
	return syscall.EpollWait(s.ep, events, timeout)
}

// watch sets what w waits for on fd; 0 still hears of hang-ups.
func (s *Server) watch(fd int, events uint32, w watcher) {
	for fd >= len(s.watches) {
		s.watches = append(s.watches, watch{})
	}
	e := &s.watches[fd]
	if e.on && e.events == events && e.w == w {
		return
	}
	op := syscall.EPOLL_CTL_MOD
	if !e.on {
		op = syscall.EPOLL_CTL_ADD
		s.gen++
		e.gen = s.gen
	}
	e.w, e.events, e.on = w, events, true
	ev := syscall.EpollEvent{Events: events, Fd: int32(fd), Pad: e.gen}
	syscall.EpollCtl(s.ep, op, fd, &ev)
}

// unwatch hears nothing more of fd; to be called before it is closed.
func (s *Server) unwatch(fd int) {
	if fd >= 0 && fd < len(s.watches) && s.watches[fd].on {
		s.watches[fd].on, s.watches[fd].w = false, nil
		syscall.EpollCtl(s.ep, syscall.EPOLL_CTL_DEL, fd, &syscall.EpollEvent{})
	}
}

// close forgets and closes fd.
func (s *Server) close(fd int) {
	if fd >= 0 {
		s.unwatch(fd)
		syscall.Close(fd)
	}
}

// tend does what time asks for and returns the next time-out of the wait, in ms.
func (s *Server) tend() int {
	if s.asked >= collectEvery {
		s.collect()
	}
	if len(s.clients) == 0 && s.busy == 0 && !s.expecting() {
		return -1
	}
	now := monotonic()
	waiting := s.expecting()
	for i := len(s.clients) - 1; i >= 0; i-- {
		if i < len(s.clients) && s.clients[i].tend(now) {
			waiting = true
		}
	}
	for i := len(s.procs) - 1; i >= 0; i-- {
		if i < len(s.procs) {
			s.procs[i].tend(now)
		}
	}
	if s.busy != 0 {
		if now-s.busy < trimAfter {
			waiting = true
		} else {
			s.busy = 0
			syscall.Madvise(s.scratch, syscall.MADV_DONTNEED)
			for _, c := range s.clients {
				if c.out.len() == 0 {
					c.out.free()
				}
			}
		}
	}
	if waiting {
		return tick
	}
	return -1
}

// collect collects garbage. The collector is off (GOGC=off): an idle monitor must not wake up for it. It is not put off for long either: memory that the heap once had is not given back.
func (s *Server) collect() {
	s.asked = 0
	runtime.GC()
}

// expecting reports whether a process's output still waits for its first client.
func (s *Server) expecting() bool {
	for _, p := range s.procs {
		if p.waitFirst != 0 {
			return true
		}
	}
	return false
}

// over reports whether nothing is left to do.
func (s *Server) over() bool {
	if len(s.procs) == 0 {
		return len(s.engines) == 0
	}
	if !s.procs[0].ended || len(s.clients) > 0 {
		return false
	}
	if s.quit {
		return true
	}
	if len(s.engines) > 0 || s.expecting() || s.unwritten {
		return false
	}
	for _, p := range s.procs {
		if !p.ended {
			return false
		}
	}
	return true
}

// finish takes the folder away, unless the engine did (then it may belong to the next start of the container).
func (s *Server) finish() {
	if s.log != nil {
		s.log.close()
	}
	if s.dirfd >= 0 && !s.quit {
		s.unlinkSocket()
		syscall.Rmdir(s.folder)
	}
}
