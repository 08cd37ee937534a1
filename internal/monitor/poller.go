package monitor

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/monitor/wire"
)

// poller hears all monitors with one goroutine: with one for each, a thousand idle containers cost ten megabytes of stacks and buffers.
//
// Its epoll is itself watched by Go's own poller, so that no thread waits in it. Sockets are removed and closed by the poller's goroutine alone; others shut them down, which it hears.
type poller struct {
	epoll *os.File
	mu    sync.Mutex // guards links
	links map[int32]*link
	over  atomic.Bool // close was called
	ended chan struct{}
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // only such a descriptor goes to Go's poller
		unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	p := &poller{epoll: os.NewFile(uintptr(fd), "monitors"), links: map[int32]*link{}, ended: make(chan struct{})}
	raw, err := p.epoll.SyscallConn()
	if err != nil {
		p.epoll.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go p.run(raw)
	return p, nil
}

// run ends when close is called.
func (p *poller) run(raw syscall.RawConn) {
	defer close(p.ended)
	var events [64]unix.EpollEvent
	in := inbox{buf: make([]byte, 2048)} // what monitors say is short
	_ = raw.Read(func(fd uintptr) bool { // closed: that is its end
		for {
			n, err := unix.EpollWait(int(fd), events[:], 0)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 || p.over.Load() {
				return p.over.Load()
			}
			for _, ev := range events[:n] {
				p.mu.Lock()
				l := p.links[ev.Fd]
				p.mu.Unlock()
				if l != nil && !l.receive(&in) {
					p.drop(int(fd), ev.Fd, l)
				}
			}
		}
	})
}

// add begins to hear a link.
func (p *poller) add(l *link) error {
	p.mu.Lock()
	p.links[l.fd] = l
	p.mu.Unlock()
	err := l.with(func(fd int) error {
		return p.watch(fd)
	})
	if err != nil {
		p.mu.Lock()
		delete(p.links, l.fd)
		p.mu.Unlock()
		return fmt.Errorf("listen to a monitor: %w", err)
	}
	return nil
}

func (p *poller) watch(fd int) (err error) {
	raw, err := p.epoll.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(ep uintptr) {
		err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)})
	}); cerr != nil {
		return cerr
	}
	return err
}

// drop closes a link whose other side is gone, and says so. ep is the epoll, also while close ends it.
func (p *poller) drop(ep int, fd int32, l *link) {
	p.mu.Lock()
	delete(p.links, fd)
	p.mu.Unlock()
	// The kernel takes a closed descriptor out of the epoll by itself, but only when no other one stands for the same socket (see link.again).
	_ = l.with(func(fd int) error { return unix.EpollCtl(ep, unix.EPOLL_CTL_DEL, fd, nil) })
	l.end()
}

// close ends the poller; links that are still there hear nothing any more.
func (p *poller) close() error {
	p.over.Store(true)
	err := p.epoll.Close() // waits for run
	<-p.ended
	return err
}

// inbox is the memory that all packets are received into, one after the other.
type inbox struct {
	buf []byte
	oob [64]byte
}

// receive takes one packet; false when it was the last: the other side is gone, talks nonsense, or is idle and somebody else's from now on.
func (l *link) receive(in *inbox) bool {
	var n, on int
	err := l.with(func(fd int) (err error) {
		for {
			n, on, _, _, err = unix.Recvmsg(fd, in.buf, in.oob[:], unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				return err
			}
		}
	})
	if err == unix.EAGAIN {
		return true
	}
	if err != nil || n == 0 {
		return false
	}
	a := answer{files: received(in.oob[:on])}
	if !wire.Decode(in.buf[:n], &a.Message) {
		a.close()
		return false
	}
	if a.ID == 0 || a.Kind == wire.Process {
		l.hear(&a)
		a.close()
		return a.Kind != wire.Idle
	}
	l.mu.Lock()
	ch := l.pending[a.ID]
	l.mu.Unlock()
	select {
	case ch <- a: // there is room for the one answer
	default: // nobody waits any more
		a.close()
	}
	return true
}
