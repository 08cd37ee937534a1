package portproxy

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A socket on all addresses of a host answers with the one that leads to the asker, which need not be the one that was asked; and who asked another one takes no notice.
func TestAnswersFromTheAddressThatWasAsked(t *testing.T) {
	target, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := target.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if _, err := target.WriteToUDPAddrPort(buf[:n], from); err != nil {
				return
			}
		}
	}()
	for network, ask := range map[string][]string{"udp4": {"127.0.0.1", "127.9.9.9"}, "udp6": {"::1"}} {
		front, err := net.ListenPacket(network, ":0")
		if err != nil {
			t.Skip(err)
		}
		f, err := front.(*net.UDPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		if rc, err := front.(*net.UDPConn).SyscallConn(); err != nil {
			t.Fatal(err)
		} else if err := rc.Control(func(fd uintptr) {
			if err := TellLocal(int(fd), map[string]int{"udp4": unix.AF_INET, "udp6": unix.AF_INET6}[network]); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		p := &proxy{ports: map[string]*port{}}
		if err := p.add(Request{Op: "add", Key: "udp/x", To: target.LocalAddr().String()}, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		port := front.LocalAddr().(*net.UDPAddr).Port
		front.Close()
		for _, addr := range ask {
			c, err := net.Dial(network, netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)).String())
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(c, addr)
			buf := make([]byte, 100)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != addr {
				t.Errorf("%s: %q %v", addr, buf[:n], err)
			}
			c.Close()
		}
		if err := p.ports["udp/x"].close(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzLocalOf(f *testing.F) {
	f.Add(answerFrom(netip.MustParseAddr("192.0.2.1")))
	f.Add(answerFrom(netip.MustParseAddr("2001:db8::1")))
	f.Fuzz(func(t *testing.T, control []byte) { localOf(control) })
}
