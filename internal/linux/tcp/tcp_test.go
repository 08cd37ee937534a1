package tcp

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// A pull over the loopback waited for bbr's timers: 2 GB/s where 5 were to be had.
func TestLocalConnectionsHurry(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := Listener{ln}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if cerr := raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if name != unpaced {
		t.Errorf("the congestion control is %q", name)
	}
}
