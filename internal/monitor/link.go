package monitor

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor/wire"
)

// answer is a packet from the monitor with its descriptors.
type answer struct {
	wire.Message
	files []int
}

// link is the engine's end of a monitor's socket: requests get their answers, the rest goes to the monitor's hear.
type link struct {
	conn    *net.UnixConn
	mu      sync.Mutex // guards what is below
	last    uint32
	pending map[uint32]chan answer
	closed  bool
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
	l.pending[m.ID] = ch
	l.mu.Unlock()
	b := wire.Append(make([]byte, 0, 256+len(m.Program)), m)
	if len(b) > wire.MaxPacket {
		l.forget(m.ID)
		return nil, errs.New(errs.Invalid, "request of %d bytes is larger than a packet", len(b))
	}
	if len(fds) > wire.MaxFiles {
		l.forget(m.ID)
		return nil, errs.New(errs.Invalid, "%d files are more than the %d that a packet can carry", len(fds), wire.MaxFiles)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := l.conn.WriteMsgUnix(b, oob, nil); err != nil {
		l.forget(m.ID)
		return nil, errs.As(errs.Unavailable, fmt.Errorf("ask the monitor: %w", err))
	}
	return ch, nil
}

func (l *link) forget(id uint32) {
	l.mu.Lock()
	delete(l.pending, id)
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

// read takes packets until the monitor is gone; hear gets what is no answer, and the descriptions of processes, in order.
func (l *link) read(hear func(*answer)) {
	buf := make([]byte, 2048) // what monitors say is short
	var oob [64]byte
	for {
		n, on, _, _, err := l.conn.ReadMsgUnix(buf, oob[:])
		if err != nil || n == 0 {
			break
		}
		a := answer{files: received(oob[:on])}
		if !wire.Decode(buf[:n], &a.Message) {
			a.close()
			break
		}
		if a.ID == 0 || a.Kind == wire.Process {
			hear(&a)
			a.close()
			continue
		}
		l.mu.Lock()
		ch := l.pending[a.ID]
		l.mu.Unlock()
		select {
		case ch <- a: // there is room for the one answer
		default: // nobody waits any more
			a.close()
		}
	}
	l.conn.Close()
	l.mu.Lock()
	l.closed = true
	for _, ch := range l.pending {
		close(ch)
	}
	l.pending = map[uint32]chan answer{}
	l.mu.Unlock()
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
