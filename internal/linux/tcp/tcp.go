// Package tcp tells the kernel how to treat connections.
//
// It owns nothing. It promises that a connection works as it did where the kernel does not listen.
package tcp

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unpaced is the congestion control that every kernel has, and lets everybody use.
const unpaced = "reno"

// Hurry says that there is no network to be careful with, for a connection that stays on this host. Where the host's congestion control paces what it sends (bbr, which many
// set for the sake of the internet), each piece would wait for a timer: a pull over the loopback takes twice the time and the processor.
func Hurry(conn syscall.RawConn) {
	// What cannot be had costs time only.
	_ = conn.Control(func(fd uintptr) { _ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, unpaced) })
}

// Listener accepts connections, and hurries those that come from this host.
type Listener struct{ *net.TCPListener }

// Accept waits for the next connection; it is a [net.TCPConn].
func (l Listener) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	to, ok1 := conn.RemoteAddr().(*net.TCPAddr)
	from, ok2 := conn.LocalAddr().(*net.TCPAddr)
	if ok1 && ok2 && to.IP.Equal(from.IP) {
		if raw, err := conn.SyscallConn(); err == nil {
			Hurry(raw)
		}
	}
	return conn, nil
}
