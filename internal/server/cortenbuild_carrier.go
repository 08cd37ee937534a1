package server

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"corten.dev/corten/internal/errs"
)

// maxHanded is how many descriptors may be on their way at once.
const maxHanded = 16

// buildCarrier is the connection of a build after its upgrade. On a unix socket, descriptors may come with the bytes.
type buildCarrier struct {
	net.Conn
	preread []byte
	unix    *net.UnixConn
	oob     []byte

	mu     sync.Mutex // guards what follows
	handed []int
	closed bool
}

func newBuildCarrier(nc net.Conn, preread []byte) *buildCarrier {
	c := &buildCarrier{Conn: nc, preread: preread}
	if c.unix, _ = nc.(*net.UnixConn); c.unix != nil {
		c.oob = make([]byte, syscall.CmsgSpace(4*maxHanded))
	}
	return c
}

// Read is for one goroutine.
func (c *buildCarrier) Read(p []byte) (int, error) {
	if len(c.preread) > 0 {
		n := copy(p, c.preread)
		c.preread = c.preread[n:]
		return n, nil
	}
	if c.unix == nil {
		return c.Conn.Read(p)
	}
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(p, c.oob)
	if oobn > 0 {
		if terr := c.queue(c.oob[:oobn]); terr != nil {
			return 0, terr
		}
	}
	if flags&syscall.MSG_CTRUNC != 0 {
		return 0, errors.New("too many descriptors on the connection of a build")
	}
	if n == 0 && err == nil && len(p) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err // an error comes with -1
}

func (c *buildCarrier) queue(oob []byte) error {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // another kind of message
		}
		c.handed = append(c.handed, fds...)
	}
	if c.closed || len(c.handed) > maxHanded {
		c.drop()
		return errors.New("too many descriptors on the connection of a build")
	}
	return nil
}

// WriteWith is not for this side: the engine hands nothing over.
func (c *buildCarrier) WriteWith([]byte, uintptr) error { return errors.ErrUnsupported }

// Take gives the first descriptor that was not taken.
func (c *buildCarrier) Take() (uintptr, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.handed) == 0 {
		return 0, false
	}
	fd := c.handed[0]
	c.handed = c.handed[1:]
	return uintptr(fd), true
}

// Close closes descriptors that nobody took, too.
func (c *buildCarrier) Close() error {
	c.mu.Lock()
	c.closed = true
	c.drop()
	c.mu.Unlock()
	return c.Conn.Close()
}

func (c *buildCarrier) drop() {
	for _, fd := range c.handed {
		_ = syscall.Close(fd)
	}
	c.handed = nil
}

// openPath is O_PATH: such a descriptor can be had of a directory that its owner cannot read, and proves nothing.
const openPath = 0x200000

// checkHanded refuses what is no open directory. A descriptor that was opened for reading proves that the caller may list the directory.
func checkHanded(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return errs.New(errs.Invalid, "what was handed over as a context is no directory")
	}
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_GETFL, 0)
	if errno != 0 {
		return errno
	}
	if flags&openPath != 0 || flags&syscall.O_ACCMODE == syscall.O_WRONLY {
		return errs.New(errs.Forbidden, "the context was not opened for reading by the one who handed it over")
	}
	return nil
}

// handedKey names a directory over builds.
func handedKey(f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.ErrUnsupported
	}
	return "directory:" + itoa(uint64(sys.Dev)) + ":" + itoa(sys.Ino), nil
}
