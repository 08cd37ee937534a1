package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// send puts frames on eth0 of a namespace as they are.
func send(tb testing.TB, ns *os.File, frames ...[]byte) {
	tb.Helper()
	in(tb, ns, func() {
		eth, err := net.InterfaceByName("eth0")
		check(tb, err)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		check(tb, err)
		defer unix.Close(fd)
		for _, f := range frames {
			check(tb, unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: eth.Index, Halen: 6}))
		}
	})
}

func frame(to, from net.HardwareAddr, ether uint16, parts ...[]byte) []byte {
	p := append(append([]byte{}, to...), from...)
	p = binary.BigEndian.AppendUint16(p, ether)
	for _, part := range parts {
		p = append(p, part...)
	}
	return p
}

func sum(parts ...[]byte) uint16 {
	var n uint32
	for _, p := range parts {
		for i := 0; i+1 < len(p); i += 2 {
			n += uint32(binary.BigEndian.Uint16(p[i:]))
		}
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}

// datagram is an IP packet with a udp datagram; without a checksum, for IPv4.
func datagram(from, to netip.Addr, port uint16, text string) []byte {
	udp := make([]byte, 8)
	binary.BigEndian.PutUint16(udp, 4444)
	binary.BigEndian.PutUint16(udp[2:], port)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(text)))
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(text)))
	copy(ip[12:], from.AsSlice())
	copy(ip[16:], to.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], sum(ip))
	return append(append(ip, udp...), text...)
}

// arp says that an address is at a hardware address.
func arp(mac net.HardwareAddr, addr, to netip.Addr) []byte {
	p := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac...)
	p = append(append(p, addr.AsSlice()...), make([]byte, 6)...)
	return append(p, to.AsSlice()...)
}

// advert is a neighbour advertisement: from says that target is at mac.
func advert(from, to, target netip.Addr, mac net.HardwareAddr) []byte {
	icmp := append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, target.AsSlice()...)
	icmp = append(append(icmp, 2, 1), mac...)
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, 0, 0, byte(len(icmp)), 0, 0, 0, 58)
	binary.BigEndian.PutUint16(icmp[2:], sum(pseudo, icmp))
	ip := make([]byte, 8, 40+len(icmp))
	ip[0], ip[5], ip[6], ip[7] = 0x60, byte(len(icmp)), 58, 255
	return append(append(append(ip, from.AsSlice()...), to.AsSlice()...), icmp...)
}

// heard listens on a udp port and tells from whom and what came, one by one.
func heard(tb testing.TB, ns *os.File, port int) <-chan string {
	tb.Helper()
	all := make(chan string, 100)
	packets(tb, ns, "udp4", fmt.Sprintf(":%d", port), func(p []byte, from net.Addr) []byte {
		host, _, _ := net.SplitHostPort(from.String())
		all <- host + " " + string(p)
		return nil
	})
	return all
}

// A container with NET_RAW could send with the address of a neighbour that has no list, and be judged as that one; or tell the others that it is the neighbour, and use its connections.
func TestNobodyPassesForANeighbour(t *testing.T) {
	w := egressWorld(t)
	w.network(t, Network{Name: "blue", EnableIPv4: true, EnableIPv6: true, Options: map[string]string{optMasq: "false"}})
	serve(t, nil, "host", 8080)
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue"), Egress: "203.0.113.2:7001/udp"})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue")})
	c := w.join(t, JoinRequest{Owner: "c", Name: "c", Endpoints: on("blue")})
	serve(t, b.NS, "b", 80)
	epA, epB, epC := a.Endpoints[0], b.Endpoints[0], c.Endpoints[0]
	nw, err := w.Get(bg, "blue")
	check(t, err)
	br := "br-" + nw.ID[:12]
	bridge, err := net.InterfaceByName(br)
	check(t, err)
	outside := netip.MustParseAddr("203.0.113.2")
	got, allowed := heard(t, w.outside, 7000), heard(t, w.outside, 7001)
	addrB, addrB6 := epB.IPv4.Addr(), epB.IPv6.Addr()

	// All that c, which has no list, sends comes through; what a sends so does not.
	lies := func(ep Endpoint, name string) [][]byte {
		to, mac := bridge.HardwareAddr, ep.hardware()
		return [][]byte{
			frame(to, mac, 0x0800, datagram(addrB, outside, 7000, name+" with its address")),
			frame(to, epB.hardware(), 0x0800, datagram(addrB, outside, 7000, name+" with its addresses")),
			frame(to, mac, 0x8100, []byte{0, 5, 8, 0}, datagram(addrB, outside, 7000, name+" in a vlan")),
			frame(to, mac, 0x0806, arp(mac, addrB, epB.Gateway4)),
			frame(to, mac, 0x86dd, advert(ep.IPv6.Addr(), epB.Gateway6, addrB6, mac)),
		}
	}
	neighbour := func(addr netip.Addr) string {
		out, err := exec.Command("ip", "neigh", "show", addr.String(), "dev", br).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	home := func(sb *Sandbox) { // so that everybody knows who is where
		wantPrefix(t, "to the host", ask(t, sb.NS, "tcp", sb.Endpoints[0].Gateway4.String()+":8080"), "host")
		wantPrefix(t, "to the host", ask(t, sb.NS, "tcp", "["+sb.Endpoints[0].Gateway6.String()+"]:8080"), "host")
	}
	home(b)
	send(t, a.NS, lies(epA, "a")...)
	send(t, a.NS, frame(bridge.HardwareAddr, epA.hardware(), 0x0800, datagram(epA.IPv4.Addr(), outside, 7001, "a itself")))
	select {
	case said := <-allowed: // sent last, so that what was sent before would be there
		if said != epA.IPv4.Addr().String()+" a itself" {
			t.Errorf("from a, as itself: %s", said)
		}
	case <-time.After(patience):
		t.Fatal("what a may send does not get through")
	}
	for _, addr := range []netip.Addr{addrB, addrB6} {
		if n := neighbour(addr); strings.Contains(n, epA.MAC) || !strings.Contains(n, epB.MAC) {
			t.Errorf("the host believes of %s: %s", addr, n)
		}
	}
	out, err := exec.Command("nft", "list", "set", "bridge", "cortentest", "strays").CombinedOutput()
	if want := fmt.Sprintf("%q counter packets 5 ", w.linkName(epA)); err != nil || !strings.Contains(string(out), want) {
		t.Errorf("want %s, got %s %v", want, out, err)
	}
	send(t, c.NS, lies(epC, "c")...)
	for _, want := range []string{"c with its address", "c with its addresses"} {
		select {
		case said := <-got:
			if said != addrB.String()+" "+want {
				t.Errorf("got %q, want %q", said, want)
			}
		case <-time.After(patience):
			t.Fatalf("%q did not come", want)
		}
	}
	eventually(t, "the host believes c", epC.MAC, func() string { // within a second after another answer it does not
		send(t, c.NS, lies(epC, "c")[3:]...)
		if n := neighbour(addrB); strings.Contains(n, epC.MAC) {
			return epC.MAC
		}
		return ""
	})

	// The host at its link-local address is not in any list.
	ll := ""
	addrs, err := bridge.Addrs()
	check(t, err)
	for _, a := range addrs {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.To4() == nil && ip.IsLinkLocalUnicast() {
			ll = ip.String()
		}
	}
	if ll == "" {
		t.Fatalf("the bridge has %v", addrs)
	}
	if got := knock(t, a.NS, "tcp", "["+ll+"%eth0]:8080"); !strings.HasPrefix(got, "!") {
		t.Errorf("from a to the host's link-local address: %s", got)
	}
	wantPrefix(t, "from c to it", ask(t, c.NS, "tcp", "["+ll+"%eth0]:8080"), "host")
	check(t, exec.Command("ip", "neigh", "flush", "dev", br).Run())
	home(b)
	for _, to := range []string{addrB.String(), "[" + addrB6.String() + "]"} {
		wantPrefix(t, "within the network", ask(t, a.NS, "tcp", to+":80"), "b ")
	}
}

// The table of the bridge family is there only for those who need it, and comes back after a flush.
func TestPortGuardComesAndGoes(t *testing.T) {
	w := egressWorld(t)
	tables := func() string {
		out, err := exec.Command("nft", "list", "tables").CombinedOutput()
		check(t, err)
		if strings.Contains(string(out), "table bridge cortentest") {
			return "there"
		}
		return "not there"
	}
	ports := func() string {
		out, err := exec.Command("nft", "list", "set", "bridge", "cortentest", "ports").CombinedOutput()
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(strings.Count(string(out), `"`) / 2)
	}
	w.network(t, Network{Name: "shut", Options: map[string]string{OptionEgress: "none"}})
	w.network(t, Network{Name: "blue"})
	n := w.join(t, JoinRequest{Owner: "n", Name: "n", Endpoints: on("shut")})
	if got := tables(); got != "not there" {
		t.Errorf("no container has a list, and the table is %s", got)
	}
	req := JoinRequest{Owner: "a", Name: "a", Egress: "none"}
	a, err := w.Join(bg, req)
	check(t, err)
	defer a.NS.Close()
	pid := process(t, a.NS)
	_, err = w.Connect(bg, "a", pid, EndpointRequest{Network: "blue"})
	check(t, err)
	b, err := w.Join(bg, JoinRequest{Owner: "b", Name: "b", Egress: "203.0.113.2"})
	check(t, err)
	defer b.NS.Close()
	wantPrefix(t, "ports", ports(), "3")
	check(t, w.Disconnect(bg, "a", pid, "blue"))
	wantPrefix(t, "ports, after a disconnect", ports(), "2")
	check(t, exec.Command("nft", "delete", "table", "bridge", "cortentest").Run())
	eventually(t, "ports, after a flush", "2", ports)
	check(t, w.Leave(bg, "b"))
	wantPrefix(t, "ports, after one left", ports(), "1")
	w.crash(t)
	wantPrefix(t, "ports, without an engine", ports(), "1")
	w.open(t)
	check(t, w.Restore(bg, JoinRequest{Owner: "n", Name: "n", Endpoints: on("shut")}, *n, process(t, n.NS)))
	check(t, w.Restore(bg, req, *a, pid))
	check(t, w.Settle(bg))
	wantPrefix(t, "ports, with the next engine", ports(), "1")
	w.crash(t)
	w.open(t)
	check(t, w.Restore(bg, JoinRequest{Owner: "n", Name: "n", Endpoints: on("shut")}, *n, process(t, n.NS)))
	check(t, w.Settle(bg))
	if got := tables(); got != "not there" {
		t.Errorf("a ended while no engine ran, and the table is %s", got)
	}
}
