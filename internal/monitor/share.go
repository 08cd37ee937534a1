package monitor

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Copy is a copy of a connection's descriptor, for the end of an attachment with [AttachOptions.Shared]. No poller looks at it: what flows on the connection meanwhile wakes nobody here.
type Copy struct{ fd int }

// CopyOf copies the descriptor of a unix or TCP connection. Close it.
func CopyOf(conn net.Conn) (*Copy, error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.New("connection without a descriptor")
	}
	fd, err := duplicate(c)
	if err != nil {
		return nil, err
	}
	return &Copy{fd}, nil
}

// Close closes the copy.
func (c *Copy) Close() error { return unix.Close(c.fd) }

// Finish sends the last bytes of a connection and waits, for at most limit, until the client has closed it: to close it with unread bytes would take them away from under the client.
func (c *Copy) Finish(last []byte, limit time.Duration) error {
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "client")
	conn, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := conn.Write(last); err != nil {
		return err
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}
