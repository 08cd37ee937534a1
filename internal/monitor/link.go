package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor/wire"
)

// answer is a packet from the monitor with its descriptors.
type answer struct {
	wire.Message
	files []int
}

// link is the engine's end of a monitor's socket: requests get their answers, the rest goes to hear. The pool's poller receives for it.
type link struct {
	sock *os.File // blocking, so that Go's own poller leaves it alone
	fd   int32
	hear func(*answer) // what is no answer, and the descriptions of processes, in order; must not wait
	gone func()        // called once when the monitor is gone; must not wait

	sending sync.RWMutex // held to read by those who send, to write by what ends the link: nothing is sent to a monitor that is somebody else's by then

	mu      sync.Mutex // guards what is below
	last    uint32
	pending map[uint32]chan answer
	closed  bool
}

// newLink makes a link of a connected socket, which it owns from here on.
func newLink(fd int) *link { return &link{sock: os.NewFile(uintptr(fd), "monitor"), fd: int32(fd)} }

// with calls fn with the descriptor, which stays open meanwhile; os.ErrClosed once it was closed.
func (l *link) with(fn func(fd int) error) (err error) {
	raw, err := l.sock.SyscallConn()
	if err != nil {
		return err
	}
	if raw.Control(func(fd uintptr) { err = fn(int(fd)) }) != nil {
		return os.ErrClosed // its only reason, but said with an error of Go's own that nobody can ask for
	}
	return err
}

// again is another link over the same socket; this one is about to end.
func (l *link) again() (next *link, err error) {
	err = l.with(func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			next = newLink(dup)
		}
		return err
	})
	return next, err
}

// shut ends the conversation: both sides hear of it.
func (l *link) shut() error {
	err := l.with(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
	if errors.Is(err, os.ErrClosed) || err == unix.ENOTCONN {
		return nil
	}
	return err
}

// end is the last thing that happens to a link.
func (l *link) end() {
	l.sending.Lock()
	_ = l.sock.Close() // nothing is buffered
	l.sending.Unlock()
	l.mu.Lock()
	l.closed = true
	for _, ch := range l.pending {
		close(ch)
	}
	l.pending = nil
	l.mu.Unlock()
	if l.gone != nil {
		l.gone()
	}
}

var errGone = errs.New(errs.Unavailable, "the monitor is gone")

// ask sends a request and returns the channel of its answer.
func (l *link) ask(m *wire.Message, fds []int) (chan answer, error) {
	ch := make(chan answer, 1)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, errGone
	}
	l.last++
	m.ID = l.last
	if l.pending == nil {
		l.pending = map[uint32]chan answer{}
	}
	l.pending[m.ID] = ch
	l.mu.Unlock()
	if err := l.send(m, fds, true); err != nil {
		l.forget(m.ID)
		return nil, err
	}
	return ch, nil
}

// tell sends a request whose answer nobody waits for; one that the socket does not take at once is not sent.
func (l *link) tell(m *wire.Message) {
	l.mu.Lock()
	l.last++
	m.ID = l.last
	l.mu.Unlock()
	_ = l.send(m, nil, false)
}

// sendLimit is how long a monitor may leave its socket full.
const sendLimit = 10 * time.Second

func (l *link) send(m *wire.Message, fds []int, wait bool) error {
	b := wire.Append(make([]byte, 0, 1024+len(m.Program)), m)
	if len(b) > wire.MaxPacket {
		return errs.New(errs.Invalid, "request of %d bytes is larger than a packet", len(b))
	}
	if len(fds) > wire.MaxFiles {
		return errs.New(errs.Invalid, "%d files are more than the %d that a packet can carry", len(fds), wire.MaxFiles)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	l.sending.RLock()
	defer l.sending.RUnlock()
	err := l.with(func(fd int) error {
		end := time.Now().Add(sendLimit)
		for {
			err := unix.Sendmsg(fd, b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN && wait && time.Now().Before(end):
				if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 100); err != nil && err != unix.EINTR {
					return err
				}
			default:
				return err
			}
		}
	})
	if err != nil {
		return errs.As(errs.Unavailable, fmt.Errorf("ask the monitor: %w", err))
	}
	return nil
}

func (l *link) forget(id uint32) {
	l.mu.Lock()
	if delete(l.pending, id); len(l.pending) == 0 {
		l.pending = nil // an idle monitor is not asked for days
	}
	l.mu.Unlock()
}

// call asks and waits for the one answer.
func (l *link) call(ctx context.Context, m *wire.Message, fds ...int) (answer, error) {
	ch, err := l.ask(m, fds)
	if err != nil {
		return answer{}, err
	}
	defer l.forget(m.ID)
	select {
	case a, ok := <-ch:
		if !ok {
			return answer{}, errGone
		}
		return a, a.err()
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

// err is the failure that an answer tells.
func (a *answer) err() error {
	if a.Kind != wire.Failed {
		return nil
	}
	if a.Errno == 0 {
		return fmt.Errorf("%s", a.Text)
	}
	err := fmt.Errorf("%s: %w", a.Text, syscall.Errno(a.Errno))
	switch syscall.Errno(a.Errno) {
	case syscall.ESRCH:
		return errs.As(errs.NotFound, err)
	case syscall.EEXIST, syscall.EBUSY:
		return errs.As(errs.Conflict, err)
	}
	return err
}

func received(oob []byte) []int {
	if len(oob) == 0 {
		return nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range cmsgs {
		if f, err := unix.ParseUnixRights(&cmsgs[i]); err == nil {
			fds = append(fds, f...)
		}
	}
	return fds
}

func (a *answer) close() {
	for _, fd := range a.files {
		unix.Close(fd)
	}
	a.files = nil
}

// pidfd is the descriptor that came along.
func (a *answer) pidfd() *os.File {
	if len(a.files) == 0 {
		return nil
	}
	f := os.NewFile(uintptr(a.files[0]), "pidfd")
	a.files = a.files[1:]
	a.close()
	return f
}
