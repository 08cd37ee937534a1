package resident

import (
	"maps"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// Engines are the connections of engines to a process that outlives them.
type Engines struct {
	mu   sync.Mutex
	open map[*net.UnixConn]chan struct{} // closed when the connection was worked on to its end
}

// Enter notes a connection; leave is called when everything that came over it is done.
func (e *Engines) Enter(c *net.UnixConn) (leave func()) {
	done := make(chan struct{})
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open == nil {
		e.open = map[*net.UnixConn]chan struct{}{}
	}
	e.open[c] = done
	return func() {
		e.mu.Lock()
		delete(e.open, c)
		e.mu.Unlock()
		close(done)
	}
}

// None says that no engine is connected.
func (e *Engines) None() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.open) == 0
}

// FinishDead waits until everything is done that engines asked for which are no more: what a killed one sent last must not come after its successor has looked.
func (e *Engines) FinishDead() {
	e.mu.Lock()
	all := maps.Clone(e.open)
	e.mu.Unlock()
	for c, done := range all {
		if hungUp(c) {
			<-done
		}
	}
}

// hungUp says that the other end is closed.
func hungUp(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	var hup bool
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		hup = err == nil && n > 0 && fds[0].Revents&unix.POLLHUP != 0
	})
	return hup || err != nil
}
