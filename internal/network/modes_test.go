package network

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// command is what a program prints, in the namespace.
func command(tb testing.TB, ns *os.File, argv ...string) string {
	tb.Helper()
	var out []byte
	in(tb, ns, func() { out, _ = exec.Command(argv[0], argv[1:]...).CombinedOutput() }) // what it says is looked at
	return string(out)
}

func nftList(tb testing.TB, what ...string) string {
	tb.Helper()
	return command(tb, nil, append([]string{"nft", "list"}, what...)...)
}

func poolsOf(list ...string) (ipam IPAM) {
	for _, s := range list {
		ipam.Pools = append(ipam.Pools, Pool{Subnet: netip.MustParsePrefix(s)})
	}
	return ipam
}

func TestRoutedNetworks(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "routed", EnableIPv4: true, EnableIPv6: true, IPAM: poolsOf("10.233.1.0/24", "fd00:233:1::/64"), Options: map[string]string{optMode4: "routed", optMode6: "routed"}})
	w.network(t, Network{Name: "other"})
	web := w.join(t, JoinRequest{Owner: "web", Name: "web", Endpoints: on("routed"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}}})
	other := w.join(t, JoinRequest{Owner: "other", Name: "other", Endpoints: on("other")})
	for _, p := range web.Ports {
		if p.HostPort != 0 {
			t.Errorf("a routed network has a port of the host: %+v", p)
		}
	}
	serve(t, web.NS, "web", 80)
	serve(t, web.NS, "web", 81)
	serve(t, w.outside, "outside", 9000)
	for i, ip := range []string{web.Endpoints[0].IPv4.Addr().String(), "[" + web.Endpoints[0].IPv6.Addr().String() + "]"} {
		wantPrefix(t, "published, from outside", ask(t, w.outside, "tcp", ip+":80"), "web "+[]string{"203.0.113.2", "2001:db8::2"}[i])
		wantPrefix(t, "published, from another network", ask(t, other.NS, "tcp", []string{ip + ":80", "10.233.1.2:80"}[i]), "web")
		wantPrefix(t, "not published", knock(t, w.outside, "tcp", ip+":81"), "!")
	}
	wantPrefix(t, "no port of the host", knock(t, w.outside, "tcp", "203.0.113.1:8080"), "!")
	wantPrefix(t, "leaves with its own address", ask(t, web.NS, "tcp", "203.0.113.2:9000"), "outside "+web.Endpoints[0].IPv4.Addr().String())
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("no ping here")
	}
	if out := command(t, w.outside, "busybox", "ping", "-c1", "-W20", web.Endpoints[0].IPv4.Addr().String()); !strings.Contains(out, " 0% packet loss") {
		t.Errorf("echo request: %s", out)
	}
}

func TestUnprotectedAndTrusted(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "open", Options: map[string]string{optMode4: "nat-unprotected"}})
	w.network(t, Network{Name: "trusting", Options: map[string]string{optTrusted: "up0:up9"}})
	w.network(t, Network{Name: "plain"})
	ports := func(host uint16) []Port { return []Port{{Proto: "tcp", ContainerPort: 80, HostPort: host}} }
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("open"), Ports: ports(8080)})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("trusting"), Ports: ports(8081)})
	c := w.join(t, JoinRequest{Owner: "c", Name: "c", Endpoints: on("plain"), Ports: ports(8082)})
	for _, sb := range []*Sandbox{a, b, c} {
		serve(t, sb.NS, sb.Owner, 80)
		serve(t, sb.NS, sb.Owner, 81)
	}
	at := func(sb *Sandbox, port int) string { return fmt.Sprintf("%s:%d", sb.Endpoints[0].IPv4.Addr(), port) }
	wantPrefix(t, "open, any port", ask(t, w.outside, "tcp", at(a, 81)), "a 203.0.113.2")
	wantPrefix(t, "open, by the host", ask(t, w.outside, "tcp", "203.0.113.1:8080"), "a")
	wantPrefix(t, "open, not for other networks", knock(t, c.NS, "tcp", at(a, 81)), "!")
	wantPrefix(t, "trusted, published port", ask(t, w.outside, "tcp", at(b, 80)), "b")
	wantPrefix(t, "trusted, other port", knock(t, w.outside, "tcp", at(b, 81)), "!")
	wantPrefix(t, "trusted, not other networks", knock(t, c.NS, "tcp", at(b, 80)), "!")
	wantPrefix(t, "plain, published port at the container's address", knock(t, w.outside, "tcp", at(c, 80)), "!")
}

func TestIsolatedAndInhibited(t *testing.T) {
	w := newWorld(t, nil)
	_, err := w.Create(bg, Network{Name: "x", Options: map[string]string{optMode4: "isolated"}})
	if err == nil || !strings.Contains(err.Error(), "can only be used for an internal network") {
		t.Errorf("isolated, not internal: %v", err)
	}
	iso := w.network(t, Network{Name: "iso", Internal: true, EnableIPv4: true, EnableIPv6: true, Options: map[string]string{optMode4: "isolated", optMode6: "isolated", optName: "ctiso"}})
	w.network(t, Network{Name: "quiet", IPAM: IPAM{Pools: []Pool{{Subnet: netip.MustParsePrefix("10.233.2.0/24"), Gateway: netip.MustParseAddr("10.233.2.254")}}},
		Options: map[string]string{optInhibit: "true", optName: "ctquiet"}})
	for _, br := range []string{"ctiso", "ctquiet"} {
		if out := command(t, nil, "ip", "-o", "address", "show", "dev", br, "scope", "global"); out != "" {
			t.Errorf("the host has an address on %s: %s", br, out)
		}
	}
	if iso.IPAM.Pools[0].Gateway.IsValid() || iso.IPAM.Pools[1].Gateway.IsValid() {
		t.Errorf("gateways %+v", iso.IPAM.Pools)
	}
	a, b := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("iso")}), w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("iso")})
	serve(t, b.NS, "b", 80)
	wantPrefix(t, "within", ask(t, a.NS, "tcp", b.Endpoints[0].IPv4.Addr().String()+":80"), "b")
	c := w.join(t, JoinRequest{Owner: "c", Name: "c", Endpoints: on("quiet")})
	if out := command(t, c.NS, "ip", "route"); !strings.Contains(out, "default via 10.233.2.254") {
		t.Errorf("routes by a gateway that is not the host: %s", out)
	}
	pid := process(t, a.NS)
	w.crash(t)
	w.open(t)
	check(t, w.Restore(bg, JoinRequest{Owner: "a", Name: "a", Endpoints: on("iso")}, *a, pid))
	check(t, w.Restore(bg, JoinRequest{Owner: "b", Name: "b", Endpoints: on("iso")}, *b, process(t, b.NS)))
	check(t, w.Restore(bg, JoinRequest{Owner: "c", Name: "c", Endpoints: on("quiet")}, *c, process(t, c.NS)))
	check(t, w.Settle(bg))
}

func TestSourceAddressAndEndpointOptions(t *testing.T) {
	w := newWorld(t, nil)
	command(t, nil, "ip", "address", "add", "203.0.113.77/24", "dev", "up0")
	w.network(t, Network{Name: "snat", Options: map[string]string{optSNAT4: "203.0.113.77", optPrefix: "lan"}})
	w.network(t, Network{Name: "plain"})
	ll := netip.MustParseAddr("169.254.7.9")
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: []EndpointRequest{
		{Network: "snat", Priority: 1, LinkLocal: []netip.Addr{ll}, Options: map[string]string{optSysctls: "net.ipv4.conf.IFNAME.log_martians=1,net.ipv4.conf.IFNAME.route_localnet=1"}},
		{Network: "plain", Options: map[string]string{optIfName: "eth5"}}}})
	if a.Endpoints[0].Interface != "lan0" || a.Endpoints[1].Interface != "eth5" {
		t.Errorf("interfaces %+v", a.Endpoints)
	}
	serve(t, w.outside, "outside", 9000)
	wantPrefix(t, "to the outside", ask(t, a.NS, "tcp", "203.0.113.2:9000"), "outside 203.0.113.77")
	if out := command(t, a.NS, "ip", "-o", "address", "show", "dev", "lan0"); !strings.Contains(out, "169.254.7.9/16") {
		t.Errorf("link-local address: %s", out)
	}
	if out := command(t, a.NS, "cat", "/proc/sys/net/ipv4/conf/lan0/log_martians", "/proc/sys/net/ipv4/conf/lan0/route_localnet", "/proc/sys/net/ipv4/conf/eth5/route_localnet"); out != "1\n1\n0\n" {
		t.Errorf("settings: %q", out)
	}
	for bad, want := range map[string]string{
		"net.ipv4.ip_forward=1": "must be a setting of the interface", "net.ipv4.conf.eth0.forwarding=1": "must be a setting of the interface", "net.ipv4.conf.IFNAME.nosuch=1": "nosuch",
		"net.ipv4.conf.IFNAME.../../x=1": "not a name of a setting",
	} {
		_, err := w.Join(bg, JoinRequest{Owner: "bad", Endpoints: []EndpointRequest{{Network: "plain", Options: map[string]string{optSysctls: bad}}}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	_, err := w.Join(bg, JoinRequest{Owner: "bad", Endpoints: []EndpointRequest{{Network: "plain", Options: map[string]string{optIfName: "x0"}}, {Network: "snat", Options: map[string]string{optIfName: "x0"}}}})
	if err == nil || !strings.Contains(err.Error(), "interface name x0 is taken") {
		t.Errorf("one name twice: %v", err)
	}
}

// --link on a default bridge whose containers do not reach each other opens the other's ports, and nothing else; when the other starts again at another address, the way follows.
func TestLinksOpenPorts(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.NoICC = true })
	db := w.join(t, JoinRequest{Owner: "db", Name: "db"})
	reqA := JoinRequest{Owner: "a", Name: "a", Openings: []Opening{{Owner: "db", Ports: []Port{{Proto: "tcp", ContainerPort: 80}, {Proto: "udp", ContainerPort: 80}}}}}
	a := w.join(t, reqA)
	b := w.join(t, JoinRequest{Owner: "b", Name: "b"})
	serve(t, db.NS, "db", 80)
	serve(t, db.NS, "db", 81)
	at := db.Endpoints[0].IPv4.Addr().String()
	for _, proto := range []string{"tcp", "udp"} {
		wantPrefix(t, "linked "+proto, ask(t, a.NS, proto, at+":80"), "db")
		wantPrefix(t, "other port "+proto, knock(t, a.NS, proto, at+":81"), "!")
		wantPrefix(t, "not linked "+proto, knock(t, b.NS, proto, at+":80"), "!")
	}
	serve(t, a.NS, "a", 80)
	wantPrefix(t, "the way back", knock(t, db.NS, "tcp", a.Endpoints[0].IPv4.Addr().String()+":80"), "!")
	pid := process(t, a.NS)
	w.crash(t)
	wantPrefix(t, "while the engine is away", ask(t, a.NS, "tcp", at+":80"), "db")
	w.open(t)
	check(t, w.Restore(bg, reqA, *a, pid))
	check(t, w.Restore(bg, JoinRequest{Owner: "db", Name: "db"}, *db, process(t, db.NS)))
	check(t, w.Restore(bg, JoinRequest{Owner: "b", Name: "b"}, *b, process(t, b.NS)))
	check(t, w.Settle(bg))
	wantPrefix(t, "after restore", ask(t, a.NS, "tcp", at+":80"), "db")
	check(t, w.Leave(bg, "db"))
	if out := nftList(t, "set", "inet", w.opt.Table, setLinks); strings.Contains(out, at) {
		t.Errorf("the way to who left is open: %s", out)
	}
}

func TestLinksOnNetworks(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "blue"})
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: []EndpointRequest{{Network: "blue", Links: map[string]string{"Store": "DB"}}}})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue")})
	db := w.join(t, JoinRequest{Owner: "db", Name: "db", Endpoints: on("blue")}) // later
	want := "Success " + db.Endpoints[0].IPv4.Addr().String()
	wantPrefix(t, "linked", lookup(t, a.NS, "udp", "store", dnsmessage.TypeA), want)
	if got := lookup(t, b.NS, "udp", "store", dnsmessage.TypeA); strings.HasPrefix(got, "Success 1") {
		t.Errorf("an alias of a's link is known to b: %s", got)
	}
	check(t, w.Rename(bg, "a", "aa"))
	wantPrefix(t, "after a new name", lookup(t, a.NS, "udp", "store", dnsmessage.TypeA), want)
}

func TestConfigurationOnly(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "cfg", ConfigOnly: true, EnableIPv4: true, IPAM: poolsOf("10.233.9.0/24"), Labels: map[string]string{"a": "b"}, Options: map[string]string{optMTU: "1400"}})
	made, err := w.Create(bg, Network{Name: "of", ConfigFrom: "cfg", EnableIPv4: true})
	check(t, err)
	if p := made.IPAM.Pools; len(p) != 1 || p[0].Subnet.String() != "10.233.9.0/24" || !p[0].Gateway.IsValid() || made.Labels["a"] != "b" || made.Driver != nameBridge || made.Options[optMTU] != "1400" {
		t.Errorf("made %+v", made)
	}
	refuse := func(want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	refuse(`configuration network "cfg" is in use`, w.Remove(bg, "cfg"))
	_, err = w.Join(bg, JoinRequest{Owner: "a", Endpoints: on("cfg")})
	refuse("cannot create endpoint on configuration-only network", err)
	for want, nw := range map[string]Network{
		`configuration network "bridge" does not exist`:                    {ConfigFrom: "bridge"},
		"user specified configurations are not supported":                  {ConfigFrom: "cfg", Labels: map[string]string{"x": "y"}},
		"network driver options are not supported":                         {ConfigFrom: "cfg", Options: map[string]string{optMTU: "1500"}},
		"configuration network cannot depend on another":                   {ConfigFrom: "cfg", ConfigOnly: true},
		"configuration network can only contain network specific fields":   {ConfigOnly: true, Internal: true},
		"Pool overlaps with other one on this address space":               {ConfigFrom: "cfg"},
		"network with name cfg already exists":                             {Name: "cfg", ConfigOnly: true},
		"invalid subnet 10.233.9.1/24: it should be 10.233.9.0/24":         {ConfigOnly: true, IPAM: poolsOf("10.233.9.1/24")},
		"failed to parse com.docker.network.enable_ipv6 value: x":          {Options: map[string]string{optIPv6: "x"}},
		"IPv4 or IPv6 must be enabled":                                     {Options: map[string]string{optIPv4: "false"}},
		"not the beginning of a name of an interface":                      {Options: map[string]string{optPrefix: "much-too-long"}},
		"unknown gateway mode":                                             {Options: map[string]string{optMode6: "x"}},
		"not names of interfaces":                                          {Options: map[string]string{optTrusted: "a::b"}},
		"not an IPv4 address":                                              {Options: map[string]string{optSNAT4: "fd00::1"}},
		"com.docker.network.nosuch value: 1 (not supported by driver brid": {Options: map[string]string{"com.docker.network.nosuch": "1"}},
	} {
		if nw.Name == "" {
			nw.Name = "x"
		}
		_, err := w.Create(bg, nw)
		refuse(want, err)
	}
	w.crash(t)
	w.open(t)
	check(t, w.Settle(bg))
	check(t, w.Remove(bg, "of"))
}

// Docker's pools end after 31 networks, and they were taken from the main routing table only: a VPN that keeps its routes in a table of its own lost them to a new network.
func TestSubnetsAvoidAllTables(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.BIP = netip.MustParsePrefix("10.233.0.1/24")
		o.Pools = []PoolRange{{netip.MustParsePrefix("10.234.0.0/22"), 24}, {netip.MustParsePrefix("fd00:234::/62"), 64}}
		o.DriverOptions = map[string]map[string]string{"bridge": {optMTU: "1300", optIPv6: "true"}}
	})
	command(t, nil, "ip", "route", "add", "10.234.0.0/24", "dev", "up0", "table", "51820")
	command(t, nil, "ip", "route", "add", "blackhole", "10.234.1.128/25", "table", "99")
	command(t, nil, "ip", "-6", "route", "add", "fd00:234::/64", "dev", "up0", "table", "51820")
	t.Cleanup(func() { command(t, nil, "ip", "route", "flush", "table", "99") })
	for i, want := range []string{"10.234.2.0/24 fd00:234:0:1::/64", "10.234.3.0/24 fd00:234:0:2::/64"} {
		nw := w.network(t, Network{Name: fmt.Sprintf("n%d", i)})
		if got := nw.IPAM.Pools[0].Subnet.String() + " " + nw.IPAM.Pools[1].Subnet.String(); got != want || nw.Options[optMTU] != "1300" || !nw.EnableIPv6 {
			t.Errorf("made %+v, want %s", nw, want)
		}
	}
	if _, err := w.Create(bg, Network{Name: "more"}); err == nil || !strings.Contains(err.Error(), "fully subnetted") {
		t.Errorf("a fifth: %v", err)
	}
	if nw := w.network(t, Network{Name: "four", EnableIPv4: true, Options: map[string]string{optIPv6: "false"}, IPAM: poolsOf("10.235.0.0/24")}); nw.EnableIPv6 || nw.Options[optIPv6] != "" {
		t.Errorf("IPv6 by the engine's settings, though the network says no: %+v", nw)
	}
}

func TestManyNetworks(t *testing.T) {
	o := Options{}.withDefaults()
	var taken []netip.Prefix
	for range 200 {
		p, err := freeSubnet(ofFamily(o.Pools, true), taken)
		check(t, err)
		taken = append(taken, p)
	}
	if taken[30].String() != "192.168.240.0/20" || taken[31].String() != "10.224.0.0/24" {
		t.Errorf("%v", taken[28:33])
	}
}

func TestRangesAreOneElement(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.PortProxy = []string{"/proc/self/exe", "portproxy"} })
	var list []Port
	for p := range 10000 {
		list = append(list, Port{Proto: "udp", ContainerPort: uint16(20000 + p), HostPort: uint16(20000 + p)})
	}
	for p := range 20 {
		list = append(list, Port{Proto: "tcp", ContainerPort: uint16(7000 + p), HostPort: uint16(7000 + p), HostIP: netip.MustParseAddr("203.0.113.1")})
	}
	runs := Runs(append(list, Port{Proto: "tcp", ContainerPort: 80, HostPort: 7100}, Port{Proto: "tcp", ContainerPort: 81, HostPort: 7101}))
	if len(runs) != 4 {
		t.Fatalf("runs %+v", runs)
	}
	req := JoinRequest{Owner: "media", Name: "media", Ports: runs}
	media := w.join(t, req)
	if len(media.Ports) != 6 || len(w.boxes["media"].bindings) > 6 {
		t.Errorf("ports %+v", media.Ports)
	}
	serve(t, media.NS, "media", 20000)
	serve(t, media.NS, "media", 29999)
	serve(t, media.NS, "media", 7019)
	serve(t, media.NS, "media", 81)
	for _, addr := range []string{"203.0.113.1:20000", "203.0.113.1:29999"} {
		wantPrefix(t, "udp "+addr, ask(t, w.outside, "udp", addr), "media")
	}
	wantPrefix(t, "tcp", ask(t, w.outside, "tcp", "203.0.113.1:7019"), "media 203.0.113.2")
	wantPrefix(t, "a single one", ask(t, w.outside, "tcp", "203.0.113.1:7101"), "media")
	wantPrefix(t, "on loopback", ask(t, nil, "udp", "127.0.0.1:29999"), "media")
	if out := nftList(t, "map", "inet", w.opt.Table, setAny4+ranged); !regexp.MustCompile(`elements = \{ (udp|17) \. 20000-29999 : ` + media.Endpoints[0].IPv4.Addr().String() + ` \}`).MatchString(out) {
		t.Errorf("map: %s", out)
	}
	if out := nftList(t, "map", "inet", w.opt.Table, setAny4); strings.Contains(out, "20000") {
		t.Errorf("map: %s", out)
	}
	for _, p := range []Port{{Proto: "udp", ContainerPort: 1, HostPort: 25000}, {Proto: "udp", ContainerPort: 19990, HostPort: 19990, Count: 20}, {Proto: "tcp", ContainerPort: 1, HostPort: 7010}} {
		_, err := w.Join(bg, JoinRequest{Owner: "second", Name: "second", Ports: []Port{p}})
		if err == nil || !strings.Contains(err.Error(), "port is already allocated") {
			t.Errorf("%+v: %v", p, err)
		}
	}
	fds := func() int { d, _ := os.ReadDir("/proc/self/fd"); return len(d) }
	if n := fds(); n > 300 {
		t.Errorf("%d descriptors are open", n)
	}
	w.crash(t)
	wantPrefix(t, "while the engine is away", ask(t, w.outside, "udp", "203.0.113.1:23456"), "")
	w.open(t)
	check(t, w.Restore(bg, req, *media, process(t, media.NS)))
	check(t, w.Settle(bg))
	wantPrefix(t, "after restore", ask(t, w.outside, "udp", "203.0.113.1:20000"), "media")
	check(t, w.Leave(bg, "media"))
	if out := nftList(t, "map", "inet", w.opt.Table, setAny4+ranged); strings.Contains(out, "elements") {
		t.Errorf("left over: %s", out)
	}
}

// A range whose numbers are others in the container is one element, too, upwards and downwards, and each port comes to its own.
func TestShiftedRangesAreOneElement(t *testing.T) {
	for _, c := range []struct{ host, ctr, n int }{{8000, 9000, 1000}, {9000, 8000, 1000}, {40001, 30000, 20000}, {1, 2, 65534}, {50000, 40000, 1000}, {65000, 1, 500}, {60000, 59990, 20}} {
		p := Port{Proto: "tcp", HostPort: uint16(c.host), ContainerPort: uint16(c.ctr), Count: uint16(c.n)}
		first, last, ok := p.window()
		for i := range c.n {
			if size := int(last) - int(first) + 1; !ok || int(first)+(c.host+i)%size != c.ctr+i {
				t.Fatalf("%+v: window %d-%d %v: port %d", c, first, last, ok, i)
			}
		}
	}
	if all := inRuns([]Port{{Proto: "tcp", HostPort: 2, ContainerPort: 1, Count: 65534}}); len(all) != 65534 { // no window leaves room for so many
		t.Errorf("nearly all ports: %d elements", len(all))
	}
	w := newWorld(t, func(o *Options) { o.PortProxy = []string{"/proc/self/exe", "portproxy"} })
	w.network(t, Network{Name: "six", EnableIPv4: true, EnableIPv6: true})
	var list []Port
	for i := range 1000 {
		list = append(list, Port{Proto: "tcp", HostPort: uint16(8000 + i), ContainerPort: uint16(9000 + i)}, Port{Proto: "udp", HostPort: uint16(9003 + i), ContainerPort: uint16(8000 + i)})
	}
	for i := range 20 {
		list = append(list, Port{Proto: "tcp", HostPort: uint16(7000 + i), ContainerPort: uint16(6000 + i), HostIP: netip.MustParseAddr("203.0.113.1")})
	}
	runs := Runs(list)
	if len(runs) != 3 {
		t.Fatalf("runs %+v", runs)
	}
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("six"), Ports: runs})
	for ctr, host := range map[int]string{9000: "203.0.113.1:8000", 9999: "[2001:db8::1]:8999", 6019: "203.0.113.1:7019"} {
		serve(t, a.NS, fmt.Sprint(ctr), ctr)
		wantPrefix(t, "tcp "+host, ask(t, w.outside, "tcp", host), fmt.Sprint(ctr))
	}
	for ctr, host := range map[int]string{8000: "203.0.113.1:9003", 8999: "[2001:db8::1]:10002", 8777: "203.0.113.1:9780"} {
		serve(t, a.NS, fmt.Sprint(ctr), ctr)
		wantPrefix(t, "udp "+host, ask(t, w.outside, "udp", host), fmt.Sprint(ctr))
	}
	serve(t, a.NS, "6001", 6001)
	wantPrefix(t, "on the host", ask(t, nil, "tcp", "203.0.113.1:7001"), "6001")
	wantPrefix(t, "on the host's loopback", ask(t, nil, "tcp", "127.0.0.1:8000"), "9000")
	if out := nftList(t, "map", "inet", w.opt.Table, setAny4+shifted); strings.Count(out, " : ") != 3 || !strings.Contains(out, "8000-8999") { // its type, and two
		t.Errorf("map: %s", out)
	}
	for _, set := range []string{setAny4, setAny6, setAny4 + ranged} {
		if out := nftList(t, "map", "inet", w.opt.Table, set); strings.Contains(out, "elements") {
			t.Errorf("map: %s", out)
		}
	}
	if out, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil || strings.Contains(string(out), "Error") {
		t.Errorf("nft cannot read the rules: %v: %.200s", err, out)
	}
	check(t, w.SetPorts(bg, "a", Runs(list[:200])))
	wantPrefix(t, "a range that was cut", ask(t, w.outside, "tcp", "203.0.113.1:8000"), "9000")
	if got := knock(t, w.outside, "tcp", "203.0.113.1:8999"); !strings.HasPrefix(got, "!") {
		t.Errorf("what was cut off: %s", got)
	}
}

// A port of a long range that a process of the host listens on is found, though no socket is kept for it.
func TestRangesMeetTheHost(t *testing.T) {
	w := newWorld(t, nil)
	serve(t, nil, "host", 24567)
	for _, proto := range []string{"udp", "tcp"} {
		_, err := w.Join(bg, JoinRequest{Owner: "media", Name: "media", Ports: []Port{{Proto: proto, ContainerPort: 20000, HostPort: 20000, Count: 10000}}})
		if err == nil || !strings.Contains(err.Error(), ":24567/"+proto) || !strings.Contains(err.Error(), unix.EADDRINUSE.Error()) {
			t.Errorf("%s: %v", proto, err)
		}
	}
	if out := nftList(t, "table", "inet", w.opt.Table); strings.Contains(out, "20000") {
		t.Errorf("left over: %s", out)
	}
}

func BenchmarkWideRange(b *testing.B) {
	w := newWorld(b, nil)
	for b.Loop() {
		_, err := w.Join(bg, JoinRequest{Owner: "media", Name: "media", Ports: []Port{{Proto: "udp", ContainerPort: 20000, HostPort: 20000, Count: 10000}}})
		check(b, err)
		check(b, w.Leave(bg, "media"))
	}
}

func FuzzRuns(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, p []byte) {
		var list []Port
		for i := 0; i+2 < len(p); i += 3 {
			port := uint16(p[i+1])<<8 | uint16(p[i])&0x0f
			one := Port{Proto: []string{"tcp", "udp"}[p[i]>>7], ContainerPort: port, HostPort: port}
			if p[i+2]&1 == 1 {
				one.HostPort++
			}
			list = append(list, one)
		}
		n := 0
		for one := range Each(Runs(list)) {
			n++
			if one.Count != 0 {
				t.Errorf("%+v", one)
			}
		}
		if n != len(list) {
			t.Errorf("%d ports became %d", len(list), n)
		}
	})
}

func FuzzOptions(f *testing.F) {
	f.Add(optMode4, "routed")
	f.Add(optSysctls, "net.ipv4.conf.IFNAME.forwarding=1")
	f.Add(optTrusted, "eth0:eth1")
	f.Fuzz(func(t *testing.T, key, val string) {
		nw := &network{rec: Network{ID: strings.Repeat("a", 64), Driver: nameBridge, Options: map[string]string{key: val}}}
		if nw.readOptions() == nil {
			_ = bridgeElements(nw)
		}
		var ep Endpoint
		if ep.readOptions(map[string]string{key: val}, false) == nil {
			for _, s := range ep.sysctls {
				if parts := strings.Split(s.path, "/"); len(parts) != 5 || strings.Contains(s.path, "..") {
					t.Errorf("path %q", s.path)
				}
			}
		}
	})
}
