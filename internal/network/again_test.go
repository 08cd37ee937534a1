package network

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A container that was restarted quickly got another address, because its old one was still held by an interface on its way out, or a ready namespace had taken it
// meanwhile; whoever had looked it up before talked to nobody.
func TestRestartKeepsTheAddress(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.Settle(bg))
	w.network(t, Network{Name: "blue", EnableIPv4: true, EnableIPv6: true, IPAM: poolsOf("10.233.20.0/24")})
	for _, nw := range []string{"bridge", "blue"} {
		other := w.join(t, JoinRequest{Owner: "other" + nw, Name: "other", Endpoints: on(nw)})
		req := JoinRequest{Owner: "a" + nw, Name: "a", Endpoints: on(nw)}
		var first Endpoint
		for i := range 6 {
			sb, err := w.Join(bg, req)
			check(t, err)
			ep := sb.Endpoints[0]
			if i == 0 {
				first = ep
			}
			if ep.IPv4 != first.IPv4 || ep.IPv6 != first.IPv6 || ep.MAC != first.MAC {
				t.Errorf("%s, start %d: %v %v %s, before %v %v %s", nw, i, ep.IPv4, ep.IPv6, ep.MAC, first.IPv4, first.IPv6, first.MAC)
			}
			name := fmt.Sprint("a", i)
			serve(t, sb.NS, name, 80)
			wantPrefix(t, "from another container", ask(t, other.NS, "tcp", ep.IPv4.Addr().String()+":80"), name)
			check(t, sb.NS.Close())
			check(t, w.Leave(bg, req.Owner))
			if i%2 == 1 { // long enough for the address to be free, and perhaps taken by a ready namespace
				w.reap.force(netip.Addr{})
				until(t, "the pool is full again", func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					return len(w.pool.bridge) == w.opt.withDefaults().PoolSize
				})
			}
		}
		// Somebody who really has it keeps it.
		if nw == "blue" {
			thief := w.join(t, JoinRequest{Owner: "thief", Name: "thief", Endpoints: []EndpointRequest{{Network: nw, IPv4: first.IPv4.Addr()}}})
			sb := w.join(t, req)
			if sb.Endpoints[0].IPv4 == thief.Endpoints[0].IPv4 {
				t.Errorf("%s: address %v given out twice", nw, first.IPv4)
			}
		}
	}
}

// An address whose last owner had a hardware address of its own choice is known by that to the neighbours, for up to a minute. Who has it now tells them.
func TestNeighboursLearnOfAnotherHardwareAddress(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.Settle(bg))
	w.network(t, Network{Name: "blue", IPAM: poolsOf("10.233.20.0/24")})
	asker := w.join(t, JoinRequest{Owner: "asker", Name: "asker", Endpoints: on("blue")})
	var last Endpoint
	for i, mac := range []string{"", "02:aa:bb:cc:dd:ee", "", "02:aa:bb:cc:dd:ef"} {
		er := EndpointRequest{Network: "blue", MAC: mac}
		if i > 0 {
			er.IPv4 = last.IPv4.Addr()
		}
		req := JoinRequest{Owner: fmt.Sprint("c", i), Name: "c", Endpoints: []EndpointRequest{er}}
		sb, err := w.Join(bg, req)
		check(t, err)
		last = sb.Endpoints[0]
		if i > 0 {
			for where, ns := range map[string]*os.File{"container": asker.NS, "host": nil} {
				eventually(t, "what the "+where+" knows", last.MAC, func() string { return neighbour(t, ns, last.IPv4.Addr()) })
			}
		}
		serve(t, sb.NS, "c", 80)
		for _, ns := range []*os.File{asker.NS, nil} {
			wantPrefix(t, "answer", ask(t, ns, "tcp", last.IPv4.Addr().String()+":80"), "c")
		}
		check(t, sb.NS.Close())
		check(t, w.Leave(bg, req.Owner))
	}
}

// neighbour is the hardware address by which an address is known, without asking for it.
func neighbour(tb testing.TB, ns *os.File, a netip.Addr) (mac string) {
	tb.Helper()
	in(tb, ns, func() {
		out, err := exec.Command("ip", "neigh", "show", a.String()).Output()
		check(tb, err)
		if f := strings.Fields(string(out)); len(f) > 4 {
			mac = f[4]
		}
	})
	return mac
}
