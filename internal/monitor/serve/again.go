package serve

import (
	"syscall"

	"corten.dev/corten/internal/monitor/wire"
)

// renew makes a monitor whose work is done one that waits, as it was when it was started, and tells so. To start another costs 2 to 3 ms of processor time, and the more the more
// descriptors its engine has: where containers come and go, that is a tenth of what they cost.
//
// It reports false where a trace of the container could be left: then the monitor ends, as after Quit.
func (s *Server) renew() bool {
	e := s.again
	if e == nil || e.gone || len(e.out) > 0 || len(s.engines) != 1 || s.nonblock || !s.childless() {
		return false
	}
	for _, p := range s.procs {
		if !p.ended || !p.done {
			return false
		}
	}
	s.letGo()
	if s.listener != nil {
		s.close(s.listener.fd)
		syscall.Close(s.dirfd)
	}
	s.score.expose() // the next container's processes are to be what the kernel kills first, too
	if s.busy != 0 {
		syscall.Madvise(s.scratch, syscall.MADV_DONTNEED)
	}
	*s = Server{ep: s.ep, watches: s.watches, gen: s.gen, scratch: s.scratch, engines: s.engines, dirfd: -1, score: s.score}
	s.collect()
	e.tell(&wire.Message{Kind: wire.Idle}, -1)
	return true
}

// childless tells whether no process is left that is ours to reap: an orphan of a container that shared the host's process ids would be.
func (s *Server) childless() bool {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err == syscall.ECHILD {
			return true
		}
		if err != syscall.EINTR && pid <= 0 {
			return false
		}
	}
}
