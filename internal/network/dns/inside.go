package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"corten.dev/corten/internal/network/resident"
	"golang.org/x/sys/unix"
)

// inside are sockets in a container's namespace that are not connected yet. A process without rights cannot make any there, so the engine makes a few beforehand
// and they are used in turn.
type inside struct {
	files    []*os.File
	udp, tcp chan *os.File
}

const insideUDP, insideTCP = 4, 1

// ListenInside opens the sockets by which a name server in the container is asked, in the namespace of the calling thread, for Add.
func ListenInside() (fds []int, err error) {
	for i := range insideUDP + insideTCP {
		kind := unix.SOCK_DGRAM
		if i >= insideUDP {
			kind = unix.SOCK_STREAM
		}
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			for _, fd := range fds {
				err = errors.Join(err, unix.Close(fd))
			}
			return nil, fmt.Errorf("dns socket: %w", err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func newInside(files []*os.File) (*inside, error) {
	in := &inside{files: files, udp: make(chan *os.File, len(files)), tcp: make(chan *os.File, len(files))}
	for _, f := range files {
		kind := 0
		err := resident.Control(f, func(fd int) (err error) {
			kind, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
			return err
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("dns socket: %w", err), in.close())
		}
		if kind == unix.SOCK_STREAM {
			in.tcp <- f
		} else {
			in.udp <- f
		}
	}
	return in, nil
}

func (in *inside) close() error {
	if in == nil {
		return nil
	}
	return resident.Close(in.files)
}

// dial takes a socket, waiting for one if need be, and connects it. Closing the connection gives it back.
func (in *inside) dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
	if !server.Addr().Is4() {
		return nil, fmt.Errorf("name server %s in a container: only IPv4 is asked there", server.Addr())
	}
	list := in.udp
	if network == "tcp" {
		list = in.tcp
	}
	var f *os.File
	select {
	case f = <-list:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn, err := connect(ctx, f, server)
	if err != nil {
		list <- f
		return nil, err
	}
	return &borrowed{Conn: conn, back: func() error {
		err := resident.Control(f, disconnect)
		list <- f
		return err
	}}, nil
}

func connect(ctx context.Context, f *os.File, server netip.AddrPort) (net.Conn, error) {
	err := resident.Control(f, func(fd int) error {
		err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()})
		if errors.Is(err, unix.EINPROGRESS) {
			err = awaitConnect(ctx, fd)
		}
		return os.NewSyscallError("connect", err)
	})
	if err != nil {
		return nil, err
	}
	return net.FileConn(f) // a duplicate
}

// awaitConnect waits until the connection stands or failed. The server is on loopback: that is at once, or not at all.
func awaitConnect(ctx context.Context, fd int) error {
	left := giveUp
	if end, ok := ctx.Deadline(); ok {
		left = time.Until(end)
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(left.Milliseconds()))
	if err != nil {
		return err
	}
	if n == 0 {
		return unix.ETIMEDOUT
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return err
}

// disconnect makes a used socket as good as new.
func disconnect(fd int) error {
	var none [unix.SizeofSockaddrInet4]byte // family 0: AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
	if errno != 0 {
		return os.NewSyscallError("disconnect", errno)
	}
	return nil
}

type borrowed struct {
	net.Conn
	back func() error
}

func (b *borrowed) Close() error {
	return errors.Join(b.Conn.Close(), b.back())
}
