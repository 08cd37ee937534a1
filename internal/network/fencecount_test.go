package network

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

// What a list lets through and drops is counted, also across engines; the next one with the address begins at nothing.
func TestEgressCounts(t *testing.T) {
	w := egressWorld(t)
	w.network(t, Network{Name: "blue", Options: map[string]string{OptionEgress: "203.0.113.2:80"}})
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue"), Egress: "203.0.113.2:80-81"}
	a, err := w.Join(bg, req)
	check(t, err)
	defer a.NS.Close()
	pid := process(t, a.NS)
	w.join(t, JoinRequest{Owner: "b", Name: "b"})
	nw, err := w.Get(bg, "blue")
	check(t, err)
	counts := func() (EgressCount, EgressCount) {
		t.Helper()
		owners, nets, err := w.EgressCounts(bg)
		check(t, err)
		if len(owners) != 1 || len(nets) != 1 {
			t.Fatalf("counts of %v and %v", owners, nets)
		}
		return owners["a"], nets[nw.ID]
	}
	for range 3 {
		wantReach(t, a.NS, []string{"tcp 203.0.113.2:80"}, nil)
	}
	wantReach(t, a.NS, nil, []string{"udp 203.0.113.2:81", "udp 198.51.100.7:80"})
	// Nor does it get out with an address that is not its own: that is counted for itself.
	mac, err := net.ParseMAC(a.Endpoints[0].MAC)
	check(t, err)
	send(t, a.NS, frame(mac, mac, 0x0800, datagram(netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("203.0.113.2"), 81, "x")))
	// The network's list is asked first, and drops both.
	ctr, onNet := counts()
	if ctr.Spoofed.Packets != 1 {
		t.Errorf("spoofed %+v", ctr.Spoofed)
	}
	if onNet.Allowed.Packets != 3 || onNet.Dropped.Packets != 2 || onNet.Dropped.Bytes != 2*29 || ctr.Allowed.Packets != 3 || ctr.Dropped.Packets != 0 || ctr.Allowed.Bytes != onNet.Allowed.Bytes {
		t.Errorf("container %+v, network %+v", ctr, onNet)
	}
	w.crash(t)
	w.open(t)
	check(t, w.Restore(bg, req, *a, pid))
	w.join(t, JoinRequest{Owner: "b", Name: "b"})
	check(t, w.Settle(bg))
	if again, andNet := counts(); again != ctr || andNet != onNet {
		t.Errorf("with the next engine: container %+v, network %+v", again, andNet)
	}
	if list := nftList(t, "set", "inet", "cortentest", "netdenied"); !strings.Contains(list, "counter packets 2 bytes 58") {
		t.Errorf("the kernel counts %s", list)
	}
	check(t, w.Leave(bg, "a"))
	a, err = w.Join(bg, req)
	check(t, err)
	defer a.NS.Close()
	if ctr, _ := counts(); ctr != (EgressCount{}) {
		t.Errorf("counted already: %+v", ctr)
	}
	check(t, w.Leave(bg, "a"))
}
