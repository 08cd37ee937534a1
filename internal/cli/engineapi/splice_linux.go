package engineapi

import (
	"io"
	"net"
	"syscall"
)

// splicer moves bytes from a connection to a pipe inside the kernel.
type splicer struct {
	from syscall.RawConn
	to   int
}

// newSplicer returns nil if that cannot be done from r to w: w must be a pipe, and one that makes its writer wait, so that "try again" can only
// mean the connection.
func newSplicer(w io.Writer, r io.Reader) *splicer {
	f, ok := w.(syscall.Conn)
	if !ok {
		return nil
	}
	d, ok := r.(interface{ Direct() net.Conn })
	if !ok {
		return nil
	}
	conn, ok := d.Direct().(*net.UnixConn)
	if !ok {
		return nil
	}
	from, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	to, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	s := &splicer{from: from, to: -1}
	if to.Control(func(fd uintptr) {
		var st syscall.Stat_t
		flags, _, e := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		if e == 0 && flags&syscall.O_NONBLOCK == 0 && syscall.Fstat(int(fd), &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFIFO {
			s.to = int(fd)
		}
	}) != nil || s.to < 0 {
		return nil
	}
	return s
}

// move moves up to n bytes and returns how many it moved. What stops it (the connection's end, a pipe that nobody reads) is left for an ordinary read or
// write to find, which tell it better.
func (s *splicer) move(n int) (moved int) {
	for moved < n {
		before := moved
		if s.from.Read(func(fd uintptr) bool {
			for {
				k, err := syscall.Splice(int(fd), nil, s.to, nil, n-moved, 0)
				if err == nil {
					moved += int(k)
				}
				if err != syscall.EINTR {
					return err != syscall.EAGAIN
				}
			}
		}) != nil || moved == before {
			break
		}
	}
	return moved
}
