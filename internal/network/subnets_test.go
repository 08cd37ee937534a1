package network

import (
	"net/netip"
	"strings"
	"testing"

	"corten.dev/corten/internal/linux/netlink"
)

// Once more than one subnet of a family was refused for every driver. Docker refuses it for bridges alone: networks of plugins, and those on a parent, have as many as their users name, an endpoint is
// of the one that its address is of, else of the first that has one left, and its gateway is that of its subnet.
func TestSeveralSubnets(t *testing.T) {
	w := newPlugWorld(t)
	two := []Pool{
		{Subnet: netip.MustParsePrefix("10.233.80.0/30"), Gateway: netip.MustParseAddr("10.233.80.2")},
		{Subnet: netip.MustParsePrefix("10.233.81.0/24"), Gateway: netip.MustParseAddr("10.233.81.9"), Aux: map[string]netip.Addr{"kept": netip.MustParseAddr("10.233.81.1")}},
	}
	for _, nw := range []Network{{Name: "theirs", Driver: "own", IPAM: IPAM{Driver: "own", Pools: two}}, {Name: "ours", Driver: "own", IPAM: IPAM{Pools: two}}} {
		_, err := w.Create(bg, nw)
		check(t, err)
		calls := w.p.Calls("NetworkDriver.CreateNetwork")
		if last := calls[len(calls)-1]; !strings.Contains(last, `"Pool":"10.233.80.0/30","Gateway":"10.233.80.2/30"`) || !strings.Contains(last, `"Pool":"10.233.81.0/24","Gateway":"10.233.81.9/24","AuxAddresses":{"kept":"10.233.81.1/24"}`) {
			t.Errorf("%s: the plugin was told %s", nw.Name, last)
		}
		a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on(nw.Name)})
		b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: []EndpointRequest{{Network: nw.Name, IPv4: netip.MustParseAddr("10.233.81.77")}}})
		for sb, want := range map[*Sandbox]string{a: "10.233.80.1/30", b: "10.233.81.77/24"} {
			if got := command(t, sb.NS, "ip", "-o", "-4", "addr", "show", "eth0"); !strings.Contains(got, "inet "+want) {
				t.Errorf("%s: %s, want %s", nw.Name, got, want)
			}
		}
		if nw.IPAM.Driver == "" { // the first one is full; a plugin says so itself
			c := w.join(t, JoinRequest{Owner: "c", Name: "c", Endpoints: on(nw.Name)})
			if got := c.Endpoints[0].IPv4.String(); got != "10.233.81.2/24" {
				t.Errorf("it has %s", got)
			}
			check(t, w.Leave(bg, "c"))
			if _, err := w.Create(bg, Network{Name: "x", IPAM: poolsOf("10.233.81.128/25")}); err == nil || !strings.Contains(err.Error(), "Pool overlaps") {
				t.Errorf("the second subnet once more: %v", err)
			}
		}
		if _, err := w.Join(bg, JoinRequest{Owner: "d", Name: "d", Endpoints: []EndpointRequest{{Network: nw.Name, IPv4: netip.MustParseAddr("10.233.82.7")}}}); err == nil || !strings.Contains(err.Error(), "does not belong to any of this network's subnets") {
			t.Errorf("%s: an address of no subnet: %v", nw.Name, err)
		}
		check(t, w.Leave(bg, "a"))
		check(t, w.Leave(bg, "b"))
		check(t, w.Remove(bg, nw.Name))
	}
	if _, err := w.Create(bg, Network{Name: "x", Driver: "own", IPAM: poolsOf("10.233.80.0/24", "10.233.80.0/25")}); err == nil || !strings.Contains(err.Error(), "Pool overlaps") {
		t.Errorf("subnets that overlap: %v", err)
	}
}

// A network without any address is made of plugins' and parents' networks with --ipv4=false, for those who bring addresses of their own (DHCP); and --ipam-driver null has a pool for either family.
func TestNoAddresses(t *testing.T) {
	w := newPlugWorld(t)
	off := map[string]string{optIPv4: "false", "gateway": "off"}
	w.network(t, Network{Name: "bare", Driver: "own", EnableIPv4: true, Options: off})
	w.network(t, Network{Name: "null", Driver: "own", EnableIPv4: true, EnableIPv6: true, Options: map[string]string{"gateway": "off"}, IPAM: IPAM{Driver: "null"}})
	w.network(t, Network{Name: "null6", Driver: "own", EnableIPv6: true, Options: off, IPAM: IPAM{Driver: "null"}})
	w.network(t, Network{Name: "mixed", EnableIPv6: true, Options: map[string]string{optIPv4: "false"}, IPAM: poolsOf("10.233.83.0/24", "fd00:233:83::/64")})
	for name, want := range map[string]string{"bare": "", "null": "0.0.0.0/0 ::/0", "null6": "::/0", "mixed": "fd00:233:83::/64"} {
		nw, err := w.Get(bg, name)
		check(t, err)
		var got []string
		for _, p := range nw.IPAM.Pools {
			got = append(got, p.Subnet.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
		if name == "mixed" {
			continue
		}
		sb := w.join(t, JoinRequest{Owner: name, Name: name, Endpoints: on(name)})
		if out := command(t, sb.NS, "ip", "-o", "addr", "show", "eth0"); strings.Contains(out, "inet ") || strings.Contains(out, "scope global") {
			t.Errorf("%s: %s", name, out)
		}
		if link := linkIn(t, sb.NS, "eth0"); link.MAC.String() != sb.Endpoints[0].MAC {
			t.Errorf("%s: %+v, want %s", name, link, sb.Endpoints[0].MAC)
		}
	}
	if all := w.p.Calls("IpamDriver."); len(all) > 0 {
		t.Errorf("its address manager was asked: %q", all)
	}
	if _, err := w.Create(bg, Network{Name: "x", Options: map[string]string{optIPv4: "false"}}); err == nil || err.Error() != "IPv4 or IPv6 must be enabled" {
		t.Errorf("a bridge: %v", err)
	}
}

// A driver that says so needs no gateway: its address manager is not asked for one, unless a user names one.
func TestGatewayNotNeeded(t *testing.T) {
	w := newPlugWorld(t, "-nogw")
	for _, ipam := range []string{"own", ""} {
		w.network(t, Network{Name: "gw-" + ipam, Driver: "own", EnableIPv4: true, EnableIPv6: true, Options: map[string]string{"gateway": "off"}, IPAM: IPAM{Driver: ipam}})
		nw, err := w.Get(bg, "gw-"+ipam)
		check(t, err)
		if p := nw.IPAM.Pools; len(p) != 2 || p[0].Gateway.IsValid() || !p[1].Gateway.IsValid() {
			t.Errorf("%q: pools %+v", ipam, p)
		}
	}
	if calls := w.p.Calls("NetworkDriver.GwAllocCheck"); len(calls) != 2 || !strings.Contains(calls[0], `"com.docker.network.enable_ipv6":true`) || !strings.Contains(calls[0], `"com.docker.network.generic":{"gateway":"off"}`) {
		t.Errorf("it was asked %q", calls)
	}
	gateways := 0
	for _, call := range w.p.Calls("IpamDriver.RequestAddress") {
		if strings.Contains(call, "com.docker.network.gateway") {
			gateways++
		}
	}
	if gateways != 1 {
		t.Errorf("%d gateways asked for, want that of IPv6: %q", gateways, w.p.Calls("IpamDriver.RequestAddress"))
	}
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("gw-own")})
	if out := command(t, a.NS, "ip", "-4", "route"); strings.Contains(out, "default") {
		t.Errorf("routes: %s", out)
	}
	nw := w.network(t, Network{Name: "named", Driver: "own", IPAM: IPAM{Driver: "own", Pools: []Pool{{Subnet: netip.MustParsePrefix("10.233.84.0/24"), Gateway: netip.MustParseAddr("10.233.84.7")}}}})
	if nw.IPAM.Pools[0].Gateway != netip.MustParseAddr("10.233.84.7") {
		t.Errorf("pool %+v", nw.IPAM.Pools[0])
	}
}

// Networks on a parent: several subnets, each with its gateway, as a LAN may have; and none at all, for containers that ask the LAN themselves for an address.
func TestSubnetsOnParent(t *testing.T) {
	w := newWorld(t, nil)
	w.lan(t, "eth0", "198.51.100.1/24")
	w.lan(t, "eth0", "192.0.2.9/24")
	w.network(t, Network{Name: "lan", Driver: driverMacvlan, Options: map[string]string{optParent: "up0"}, IPAM: IPAM{Pools: []Pool{
		{Subnet: netip.MustParsePrefix("198.51.100.0/24"), Gateway: netip.MustParseAddr("198.51.100.1")}, {Subnet: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("192.0.2.9")}}}})
	w.network(t, Network{Name: "dhcp", Driver: driverMacvlan, Options: map[string]string{optParent: "up0", optIPv4: "false"}, IPAM: IPAM{Driver: ipamNull}})
	serve(t, w.outside, "outside", 80)
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("lan")})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: []EndpointRequest{{Network: "lan", IPv4: netip.MustParseAddr("192.0.2.77")}}})
	wantPrefix(t, "of the first subnet, through its gateway", ask(t, a.NS, "tcp", "203.0.113.2:80"), "outside 198.51.100.2")
	wantPrefix(t, "of the second one", ask(t, b.NS, "tcp", "203.0.113.2:80"), "outside 192.0.2.77")
	if out := command(t, b.NS, "ip", "route"); !strings.Contains(out, "default via 192.0.2.9 dev eth0") {
		t.Errorf("routes: %s", out)
	}
	c := w.join(t, JoinRequest{Owner: "c", Name: "c", Endpoints: on("dhcp")})
	if out := command(t, c.NS, "ip", "-o", "addr", "show", "eth0"); strings.Contains(out, "inet") {
		t.Errorf("addresses: %s", out)
	}
	check(t, w.inside(c.NS, func(in *netlink.Conn) error { // as a client of DHCP does
		link, err := in.LinkByName("eth0")
		if err != nil {
			return err
		}
		var batch netlink.Batch
		batch.AddAddr(link.Index, netip.MustParsePrefix("198.51.100.99/24"))
		return in.Do(&batch)
	}))
	wantPrefix(t, "with an address of its own", ask(t, c.NS, "tcp", "198.51.100.1:80"), "outside 198.51.100.99")
}
