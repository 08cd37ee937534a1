package portproxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sender is who sent a packet, and to which of the host's addresses: an answer from another one is none to it.
type sender struct {
	from  netip.AddrPort
	local netip.Addr
}

// TellLocal has the kernel tell with each packet of a socket which address of the host it was for: the socket may be bound to all of them. It counts for packets that come from then on, so it belongs where a socket
// that will be handed over is made. family is unix.AF_INET or AF_INET6.
func TellLocal(fd, family int) error {
	if family == unix.AF_INET6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// localOf reads it; the zero Addr where there is none.
func localOf(control []byte) netip.Addr {
	for len(control) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return netip.Addr{}
		}
		control = rest
		switch { // struct in_pktinfo: interface, address to answer from, address; struct in6_pktinfo: address, interface
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= 8:
			return netip.AddrFrom4([4]byte(data[4:8]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			return netip.AddrFrom16([16]byte(data[:16]))
		}
	}
	return netip.Addr{}
}

// answerFrom is the control message that has a packet leave with an address.
func answerFrom(a netip.Addr) []byte {
	switch {
	case a.IsUnspecified(): // a packet from before TellLocal
	case a.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()})
	case a.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a.As16()})
	}
	return nil
}

// packets passes udp on: each sender gets a socket of its own, so that answers find back.
func packets(pc *net.UDPConn, to string) {
	var mu sync.Mutex
	senders := map[sender]net.Conn{}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, up := range senders {
			_ = up.Close()
		}
	}()
	buf, control := make([]byte, maxPacket), make([]byte, 256)
	for {
		n, got, _, from, err := pc.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		key := sender{from, localOf(control[:got])}
		mu.Lock()
		up, known := senders[key]
		full := len(senders) >= maxSenders
		mu.Unlock()
		if !known {
			if full {
				continue
			}
			if up, err = net.Dial("udp", to); err != nil {
				continue
			}
			mu.Lock()
			senders[key] = up
			mu.Unlock()
			go func() {
				back(pc, key, up)
				mu.Lock()
				delete(senders, key)
				mu.Unlock()
				_ = up.Close()
			}()
		}
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = up.Write(buf[:n]) // a packet that cannot be passed on is lost, as packets are
	}
}

// back carries answers to one sender until nothing was said for a while.
func back(pc *net.UDPConn, to sender, up net.Conn) {
	buf, control := make([]byte, maxPacket), answerFrom(to.local)
	for {
		n, err := up.Read(buf)
		if errors.Is(err, syscall.ECONNREFUSED) {
			continue // the container does not listen yet
		}
		if err != nil {
			return
		}
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		if _, _, err := pc.WriteMsgUDPAddrPort(buf[:n], control, to.from); err != nil {
			return
		}
	}
}
