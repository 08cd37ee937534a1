package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/network/remote"
	"corten.dev/corten/internal/plugin"
	"corten.dev/corten/internal/plugin/plugintest"
	"golang.org/x/net/dns/dnsmessage"
)

// plugWorld is a world with a plugin "own" for networks and addresses, which is a process of its own.
type plugWorld struct {
	*world
	p *plugintest.Network
}

func newPlugWorld(t *testing.T, flags ...string) plugWorld {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "np") // the paths of sockets are short
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := plugintest.StartNetwork(t, plugintest.Build(t, "network"), filepath.Join(dir, "own.sock"), flags...)
	w := newWorld(t, func(o *Options) {
		o.Plugins = remote.Plugins{Set: plugin.New(plugin.Options{Folders: []string{dir}, Wait: 500 * time.Millisecond, Look: -1}), Limit: 2 * time.Second}
	})
	check(t, w.Settle(bg))
	t.Cleanup(func() { // before the room is closed
		until(t, "the plugin has nothing", func() bool {
			s := p.State()
			return len(s.Networks)+len(s.Endpoints)+len(s.Pools) == 0
		})
		w.nothingHeld(t)
	})
	return plugWorld{w, p}
}

// nothingHeld waits until nothing of what plugins hold is left on the host: a record goes a moment after the plugin said that it has nothing.
func (w *world) nothingHeld(t *testing.T) {
	t.Helper()
	for _, dir := range []string{w.heldDir(), w.keyDir()} {
		until(t, "nothing is left in "+dir, func() bool {
			left, _ := os.ReadDir(dir)
			return len(left) == 0
		})
	}
}

func (w plugWorld) plugged(t *testing.T, name string, options ...string) Network {
	t.Helper()
	nw := Network{Name: name, Driver: "own", IPAM: IPAM{Driver: "own"}, Options: map[string]string{}}
	for _, o := range options {
		key, val, _ := strings.Cut(o, "=")
		nw.Options[key] = val
	}
	nw.EnableIPv4 = true
	nw.EnableIPv6 = nw.Options["six"] != ""
	return w.network(t, nw)
}

// linkIn asks the kernel for an interface of a namespace; the zero Link is none.
func linkIn(t *testing.T, ns *os.File, name string) (link netlink.Link) {
	t.Helper()
	in(t, ns, func() {
		c, err := netlink.Dial(0)
		check(t, err)
		defer c.Close()
		link, _ = c.LinkByName(name)
	})
	return link
}

// A network whose driver and addresses are a plugin's: its interfaces are moved into containers, with the plugin's addresses and gateway; containers find each other by name; the plugin is told which
// endpoint is the way out, with its ports; and in the end it has nothing any more.
func TestPluggedNetwork(t *testing.T) {
	w := newPlugWorld(t)
	nw := w.plugged(t, "blue", "key=1")
	pool := nw.IPAM.Pools[0]
	if !pool.Subnet.IsValid() || !pool.Chosen || pool.Gateway != pool.Subnet.Addr().Next() || nw.IPAM.Driver != "own" {
		t.Errorf("the pool is %+v", pool)
	}
	a := w.join(t, JoinRequest{Owner: "aaaaaaaaaaaaa", Name: "a", Endpoints: on("blue"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}}, Exposed: []Port{{Proto: "udp", ContainerPort: 53}}})
	b := w.join(t, JoinRequest{Owner: "bbbbbbbbbbbbb", Name: "b", Endpoints: []EndpointRequest{{Network: "blue", MAC: "02:12:34:56:78:9a"}}})
	epA, epB := a.Endpoints[0], b.Endpoints[0]
	serve(t, b.NS, "b", 80)
	wantPrefix(t, "from the other", ask(t, a.NS, "tcp", epB.IPv4.Addr().String()+":80"), "b")
	wantPrefix(t, "by name", lookup(t, a.NS, "udp", "b", dnsmessage.TypeA), "Success "+epB.IPv4.Addr().String())
	for sb, ep := range map[*Sandbox]Endpoint{a: epA, b: epB} {
		link := linkIn(t, sb.NS, "eth0")
		if ep.Interface != "eth0" || link.MAC.String() != ep.MAC || ep.Gateway4 != pool.Gateway || ep.IPv4.Bits() != pool.Subnet.Bits() {
			t.Errorf("endpoint %+v, link %+v", ep, link)
		}
		if out := command(t, sb.NS, "ip", "route"); !strings.Contains(out, "default via "+pool.Gateway.String()+" dev eth0") {
			t.Errorf("routes: %s", out)
		}
	}
	if epB.MAC != "02:12:34:56:78:9a" {
		t.Errorf("hardware address %s", epB.MAC)
	}
	s := w.p.State()
	if len(s.Endpoints) != 2 || !s.Endpoints[epA.ID].Joined || !s.Endpoints[epA.ID].Open {
		t.Errorf("the plugin has %+v", s)
	}
	calls := strings.Join(w.p.Calls("NetworkDriver.ProgramExternalConnectivity"), "")
	for _, part := range []string{`"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]`, `{"Proto":17,"Port":53}`} {
		if !strings.Contains(calls, part) {
			t.Errorf("the plugin was told %s, want %s", calls, part)
		}
	}
	if err := w.Remove(bg, "blue"); !errors.Is(err, errs.Forbidden) {
		t.Errorf("remove a network in use: %v", err)
	}
	check(t, w.Leave(bg, "bbbbbbbbbbbbb"))
	if s := w.p.State(); len(s.Endpoints) != 1 || len(s.Addresses()) != 2 {
		t.Errorf("after one left the plugin has %+v", s)
	}
	if link := linkIn(t, nil, s.Endpoints[epB.ID].Peer); link.Name != "" {
		t.Errorf("%s is there yet", link.Name)
	}
	if _, err := w.Join(bg, JoinRequest{Owner: "c", Name: "c", Endpoints: []EndpointRequest{{Network: "blue", IPv4: pool.Subnet.Addr().Next().Next().Next()}}}); err == nil || !strings.Contains(err.Error(), "user configured subnets") {
		t.Errorf("an address of a subnet that nobody named: %v", err)
	}
}

// Subnets, ranges, gateways and kept addresses that a user names are asked for, and addresses of containers as well.
func TestPluggedAddresses(t *testing.T) {
	w := newPlugWorld(t, "-mac")
	pool := Pool{Subnet: netip.MustParsePrefix("10.233.70.0/24"), Range: netip.MustParsePrefix("10.233.70.128/25"), Gateway: netip.MustParseAddr("10.233.70.9"), Aux: map[string]netip.Addr{"kept": netip.MustParseAddr("10.233.70.7")}}
	w.network(t, Network{Name: "blue", Driver: "own", IPAM: IPAM{Driver: "own", Options: map[string]string{"speed": "high"}, Pools: []Pool{pool}}})
	if got := w.p.Calls("IpamDriver.RequestPool"); !slices.Contains(got, `IpamDriver.RequestPool {"AddressSpace":"here","Pool":"10.233.70.0/24","SubPool":"10.233.70.128/25","Options":{"speed":"high"},"V6":false}`) {
		t.Errorf("asked for %q", got)
	}
	want := netip.MustParseAddr("10.233.70.77")
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: []EndpointRequest{{Network: "blue", IPv4: want}}})
	if a.Endpoints[0].IPv4.Addr() != want {
		t.Errorf("it has %s", a.Endpoints[0].IPv4)
	}
	if mac := linkIn(t, a.NS, "eth0").MAC.String(); !strings.Contains(strings.Join(w.p.Calls("IpamDriver.RequestAddress"), ""), `"com.docker.network.endpoint.macaddress":"`+mac+`"`) {
		t.Errorf("the address was asked for without %s: %q", mac, w.p.Calls("IpamDriver.RequestAddress"))
	}
	if _, err := w.Join(bg, JoinRequest{Owner: "b", Name: "b", Endpoints: []EndpointRequest{{Network: "blue", IPv4: want}}}); err == nil || !strings.Contains(err.Error(), "the address 10.233.70.77 is taken") {
		t.Errorf("an address twice: %v", err)
	}
	if _, err := w.Create(bg, Network{Name: "again", Driver: "own", IPAM: IPAM{Driver: "own", Pools: []Pool{pool}}}); err == nil || !strings.Contains(err.Error(), "the pool 10.233.70.0/24 is taken") {
		t.Errorf("a pool twice: %v", err)
	}

	// The plugin's addresses on our own kind of network, and ours on the plugin's.
	w.network(t, Network{Name: "mixed", IPAM: IPAM{Driver: "own"}})
	w.network(t, Network{Name: "other", Driver: "own", IPAM: poolsOf("10.233.71.0/24")})
	w.network(t, Network{Name: "bare", Driver: "own", IPAM: IPAM{Driver: "null"}, Options: map[string]string{"gateway": "off"}})
	m := w.join(t, JoinRequest{Owner: "m", Name: "m", Endpoints: on("mixed"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8085}}})
	serve(t, m.NS, "m", 80)
	wantPrefix(t, "a published port", ask(t, w.outside, "tcp", "203.0.113.1:8085"), "m")
	o := w.join(t, JoinRequest{Owner: "o", Name: "o", Endpoints: on("other")})
	if got := o.Endpoints[0].IPv4.String(); got != "10.233.71.2/24" {
		t.Errorf("it has %s", got)
	}
	bare := w.join(t, JoinRequest{Owner: "bare", Name: "bare", Endpoints: on("bare")})
	if ep := bare.Endpoints[0]; ep.IPv4.IsValid() || linkIn(t, bare.NS, "eth0").MAC.String() != ep.MAC || len(bare.Endpoints) != 1 {
		t.Errorf("without addresses: %+v", bare.Endpoints)
	}
	for _, nw := range []Network{{Name: "x", IPAM: IPAM{Driver: "null"}}, {Name: "x", Driver: "own", IPAM: IPAM{Driver: "null", Pools: poolsOf("10.233.72.0/24").Pools}}, {Name: "x", IPAM: IPAM{Driver: "nosuch"}}, {Name: "x", Driver: "nosuch"}} {
		if _, err := w.Create(bg, nw); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", nw, err)
		}
	}
}

// Names by the plugin's prefix, static routes, IPv6, hardware addresses of the plugin's choice, endpoints without an interface.
func TestPluggedInterfaces(t *testing.T) {
	w := newPlugWorld(t)
	w.plugged(t, "blue", "six=1", "prefix=net", "mac=own", "gateway=off", "routes=10.99.1.0/24@10.99.2.1,10.99.2.0/24")
	w.plugged(t, "red", "noif=1", "gateway=off")
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("red", "blue")})
	if ep := a.Endpoints[0]; ep.Interface != "" {
		t.Errorf("no interface: %+v", ep)
	}
	ep := a.Endpoints[1]
	link := linkIn(t, a.NS, "net0")
	if ep.Interface != "net0" || !strings.HasPrefix(ep.MAC, "02:aa:") || link.MAC.String() != ep.MAC || !ep.IPv6.IsValid() {
		t.Errorf("endpoint %+v, link %+v", ep, link)
	}
	routes := command(t, a.NS, "ip", "route")
	for _, want := range []string{"10.99.1.0/24 via 10.99.2.1 dev net0", "10.99.2.0/24 dev net0"} {
		if !strings.Contains(routes, want) || strings.Contains(routes, "default") {
			t.Errorf("routes: %s", routes)
		}
	}
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue")})
	serve(t, b.NS, "b", 80)
	wantPrefix(t, "by IPv6", ask(t, a.NS, "tcp", "["+b.Endpoints[0].IPv6.Addr().String()+"]:80"), "b")
	pid := process(t, b.NS)
	if _, err := w.Connect(bg, "b", pid, EndpointRequest{Network: "red"}); err != nil {
		t.Error(err)
	}
	check(t, w.Disconnect(bg, "b", pid, "red"))
}

// A driver that gives no gateway leaves the way out to the engine: a bridge network, as Docker's, which published ports lead to. It goes when another network leads out, and comes back.
func TestWayOut(t *testing.T) {
	w := newPlugWorld(t)
	w.plugged(t, "blue", "gateway=none")
	w.network(t, Network{Name: "green"})
	t.Cleanup(func() { check(t, w.Remove(bg, nameWayOut)) })
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8086}}})
	serve(t, a.NS, "a", 80)
	serve(t, w.outside, "outside", 81)
	wantPrefix(t, "a published port", ask(t, w.outside, "tcp", "203.0.113.1:8086"), "a")
	wantPrefix(t, "the way out", ask(t, a.NS, "tcp", "203.0.113.2:81"), "outside 203.0.113.1")
	if len(a.Endpoints) != 2 || !a.Endpoints[1].WayOut || a.Endpoints[1].Interface != "eth1" || a.Endpoints[1].Network != nameWayOut {
		t.Fatalf("endpoints %+v", a.Endpoints)
	}
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue")})
	wantPrefix(t, "containers there do not meet", knock(t, b.NS, "tcp", a.Endpoints[1].IPv4.Addr().String()+":80"), "!")
	wantPrefix(t, "but on their own network", ask(t, b.NS, "tcp", a.Endpoints[0].IPv4.Addr().String()+":80"), "a")

	pid := process(t, a.NS)
	_, err := w.Connect(bg, "a", pid, EndpointRequest{Network: "green"})
	check(t, err)
	sb, _ := w.Sandbox("a")
	if slices.ContainsFunc(sb.Endpoints, func(ep Endpoint) bool { return ep.WayOut }) || linkIn(t, a.NS, "eth1").Name != "" {
		t.Errorf("two ways out: %+v", sb.Endpoints)
	}
	wantPrefix(t, "a published port by the other network", ask(t, w.outside, "tcp", "203.0.113.1:8086"), "a")
	check(t, w.Disconnect(bg, "a", pid, "green"))
	wantPrefix(t, "the way out again", ask(t, a.NS, "tcp", "203.0.113.2:81"), "outside 203.0.113.1")
	wantPrefix(t, "and the published port", ask(t, w.outside, "tcp", "203.0.113.1:8086"), "a")

	// Live: off the plugin's network and on again.
	check(t, w.Disconnect(bg, "a", pid, "blue"))
	if out := command(t, a.NS, "ip", "-o", "link"); strings.Contains(out, "eth") {
		t.Errorf("links: %s", out)
	}
	if n := len(w.p.State().Endpoints); n != 1 {
		t.Errorf("%d endpoints", n)
	}
	_, err = w.Connect(bg, "a", pid, EndpointRequest{Network: "blue"})
	check(t, err)
	wantPrefix(t, "on again", ask(t, b.NS, "tcp", addressOn(t, w.world, "a", "blue")+":80"), "a")
	wantPrefix(t, "with the published port", ask(t, w.outside, "tcp", "203.0.113.1:8086"), "a")
}

func addressOn(t *testing.T, w *world, owner, network string) string {
	t.Helper()
	sb, _ := w.Sandbox(owner)
	for _, ep := range sb.Endpoints {
		if ep.Network == network {
			return ep.IPv4.Addr().String()
		}
	}
	t.Fatalf("%s is not on %s", owner, network)
	return ""
}

// Whatever a plugin does, who asked gets an error that names it, within the time; nothing of the attempt is left, and other networks go on meanwhile.
func TestBadPlugin(t *testing.T) {
	w := newPlugWorld(t)
	w.plugged(t, "blue")
	w.network(t, Network{Name: "green"})
	for _, c := range []struct{ bad, want string }{
		{`IpamDriver.RequestAddress {"Address": "192.0.2.7/24"}`, "plugin own: IpamDriver.RequestAddress: the address 192.0.2.7/24 is not in the pool"},
		{`IpamDriver.RequestAddress {"Address": ""}`, "plugin own: IpamDriver.RequestAddress: no address returned"},
		{`IpamDriver.RequestAddress {"Error": "we are full"}`, "remote: we are full"},
		{`IpamDriver.RequestAddress never`, "plugin own: IpamDriver.RequestAddress: no answer within 2s"},
		{`NetworkDriver.CreateEndpoint json`, "plugin own: NetworkDriver.CreateEndpoint: an answer that makes no sense"},
		{`NetworkDriver.CreateEndpoint {"Err": "not\nfor you"}`, "remote: not for you"},
		{`NetworkDriver.CreateEndpoint {"Interface": {"Address": "10.9.9.9/24"}}`, "plugin own: NetworkDriver.CreateEndpoint: driver modified interface address"},
		{`NetworkDriver.CreateEndpoint {"Interface": {"MacAddress": "ff:ff:ff:ff:ff:ff"}}`, "is no hardware address"},
		{`NetworkDriver.CreateEndpoint never`, "plugin own: NetworkDriver.CreateEndpoint: no answer within 2s"},
		{`NetworkDriver.CreateEndpoint huge`, "bytes"},
		{`NetworkDriver.CreateEndpoint status`, "NetworkDriver.CreateEndpoint: come back later"},
		{`NetworkDriver.Join {"InterfaceName": {"SrcName": "../../etc", "DstPrefix": "eth"}}`, "plugin own: NetworkDriver.Join: InterfaceName.SrcName: \"../../etc\" is no name of an interface"},
		{`NetworkDriver.Join {"InterfaceName": {"SrcName": "nosuch", "DstPrefix": "eth"}}`, "plugin own: NetworkDriver.Join: there is no interface \"nosuch\" on the host"},
		{`NetworkDriver.Join {"InterfaceName": {"SrcName": "lo", "DstPrefix": "eth"}}`, "is no name of an interface"},
		{`NetworkDriver.Join {"InterfaceName": {"SrcName": "ct0", "DstPrefix": "eth"}}`, "the interface \"ct0\" belongs to another network"},
		{`NetworkDriver.Join {"InterfaceName": {"SrcName": "x", "DstPrefix": "e/t"}}`, "DstPrefix"},
		{`NetworkDriver.Join {"Gateway": "nowhere"}`, "plugin own: NetworkDriver.Join: Gateway: \"nowhere\" is no address of a gateway"},
		{`NetworkDriver.Join {"StaticRoutes": [{"Destination": "10.0.0.0/8", "RouteType": 7}]}`, "StaticRoutes[0]: the type 7 is neither"},
		{`NetworkDriver.Join close`, "plugin own: NetworkDriver.Join: the connection broke before the answer"},
		{`NetworkDriver.ProgramExternalConnectivity {"Err": "no way out"}`, "driver failed programming external connectivity on endpoint bad"},
	} {
		w.p.Bad(c.bad)
		got := make(chan error)
		go func() {
			_, err := w.Join(bg, JoinRequest{Owner: "bad", Name: "bad", Endpoints: on("blue")})
			got <- err
		}()
		if strings.HasSuffix(c.bad, "never") { // nobody else waits
			sb, err := w.Join(bg, JoinRequest{Owner: "good", Name: "good", Endpoints: on("green")})
			check(t, err)
			check(t, errors.Join(sb.NS.Close(), w.Leave(bg, "good")))
			made, err := w.Create(bg, Network{Name: "meanwhile"})
			check(t, err)
			check(t, w.Remove(bg, made.ID))
			select {
			case err := <-got:
				t.Errorf("%s: the others waited: %v", c.bad, err)
			default:
			}
		}
		err := <-got
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", c.bad, err, c.want)
		}
		w.p.Bad()
		until(t, "nothing is left of "+c.bad, func() bool {
			s := w.p.State()
			return len(s.Endpoints) == 0 && len(s.Addresses()) == 1
		})
	}
	for _, c := range []struct{ bad, want string }{
		{`NetworkDriver.GetCapabilities {"Scope": "galactic"}`, "the scope \"galactic\" is neither local nor global"},
		{`NetworkDriver.GetCapabilities {"Scope": "global"}`, "network driver own has scope global"},
		{`NetworkDriver.CreateNetwork never`, "plugin own: NetworkDriver.CreateNetwork: no answer within 2s"},
		{`IpamDriver.RequestPool {"PoolID": "x", "Pool": "pool"}`, "plugin own: IpamDriver.RequestPool: the pool \"pool\" is no subnet"},
		{`IpamDriver.RequestPool {"PoolID": "x", "Pool": "203.0.113.0/24"}`, "plugin own: 16 subnets in a row meet those of this host"},
		{`IpamDriver.GetDefaultAddressSpaces json`, "plugin own: IpamDriver.GetDefaultAddressSpaces: an answer that makes no sense"},
	} {
		w.p.Bad(c.bad)
		if _, err := w.Create(bg, Network{Name: "red", Driver: "own", IPAM: IPAM{Driver: "own"}}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.bad, err, c.want)
		}
		w.p.Bad()
		until(t, "nothing is left of "+c.bad, func() bool { s := w.p.State(); return len(s.Networks) == 1 && len(s.Pools) == 1 })
	}
}

// A plugin that is gone keeps nobody: containers leave, and their network is removed. When it is back it is asked to take back what it has.
func TestPluginGone(t *testing.T) {
	w := newPlugWorld(t)
	_, err := w.Create(bg, Network{Name: "blue", Driver: "own", IPAM: IPAM{Driver: "own"}})
	check(t, err)
	a, err := w.Join(bg, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue")})
	check(t, err)
	b, err := w.Join(bg, JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue")})
	check(t, err)
	pid := process(t, b.NS)
	peer := w.p.State().Endpoints[b.Endpoints[0].ID].Peer
	w.p.Kill9()
	if _, err := w.Join(bg, JoinRequest{Owner: "c", Name: "c", Endpoints: on("blue")}); err == nil || !strings.Contains(err.Error(), "plugin own cannot be reached") {
		t.Errorf("join: %v", err)
	}
	began := time.Now()
	check(t, w.Disconnect(bg, "b", pid, "blue"))
	if linkIn(t, nil, peer).Name != peer {
		t.Errorf("%s is not back on the host", peer)
	}
	check(t, errors.Join(a.NS.Close(), b.NS.Close(), w.Leave(bg, "a"), w.Leave(bg, "b"), w.Remove(bg, "blue")))
	if took := time.Since(began); took > patience {
		t.Errorf("that took %v", took)
	}
	if list, err := w.List(bg); err != nil || slices.ContainsFunc(list, func(nw Network) bool { return nw.Name == "blue" }) {
		t.Errorf("%v %v", list, err)
	}
	if n := len(w.p.State().Endpoints); n != 2 {
		t.Errorf("%d endpoints", n)
	}
	w.p.Up() // the rest is the world's clean-up: it has nothing
	w.kickRepay()
}

// The engine is killed while containers run, and while one is being made: the next one knows those that run, gives back what nobody has, and asks an address manager that forgets for all that it gave.
func TestPluggedAfterCrash(t *testing.T) {
	w := newPlugWorld(t, "-replay")
	nw := w.plugged(t, "blue")
	w.plugged(t, "bleu", "gateway=none")
	t.Cleanup(func() { check(t, w.Remove(bg, nameWayOut)) })
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue")}
	a := w.join(t, req)
	out := JoinRequest{Owner: "out", Name: "out", Endpoints: on("bleu"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8087}}}
	o := w.join(t, out)
	serve(t, o.NS, "out", 80)
	gone, err := w.Join(bg, JoinRequest{Owner: "gone", Name: "gone", Endpoints: on("blue")})
	check(t, err)
	pidA, pidO := process(t, a.NS), process(t, o.NS)
	w.p.Bad("NetworkDriver.Join never")
	half := make(chan struct{})
	before := w.Local
	ctx, cancel := context.WithCancel(bg)
	go func() {
		defer close(half)
		_, _ = before.Join(ctx, JoinRequest{Owner: "half", Name: "half", Endpoints: on("blue")})
	}()
	until(t, "the plugin is asked", func() bool {
		out, _ := exec.Command("grep", "-l", `"Owner":"half".*"Joined"`, "-r", w.heldDir()).Output()
		return len(out) > 0
	})
	w.p.Kill9() // so that what the killed engine would yet do does nothing
	w.crash(t)
	cancel()
	<-half
	check(t, gone.NS.Close())
	w.p.Bad()
	w.p.Up()
	w.open(t)
	check(t, errors.Join(w.Restore(bg, req, *a, pidA), w.Restore(bg, out, *o, pidO), w.Settle(bg)))
	until(t, "what nobody has is given back", func() bool { return len(w.p.State().Endpoints) == 2 })
	until(t, "it is asked again for what it gave", func() bool {
		got := w.p.State().Addresses()
		return slices.Contains(got, a.Endpoints[0].IPv4.Addr().String()) && slices.Contains(got, nw.IPAM.Pools[0].Gateway.String())
	})
	wantPrefix(t, "the published port", ask(t, w.outside, "tcp", "203.0.113.1:8087"), "out")
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue")})
	if b.Endpoints[0].IPv4 == a.Endpoints[0].IPv4 {
		t.Errorf("both have %s", b.Endpoints[0].IPv4)
	}
	serve(t, b.NS, "b", 80)
	wantPrefix(t, "from who ran on", ask(t, a.NS, "tcp", b.Endpoints[0].IPv4.Addr().String()+":80"), "b")
	check(t, w.Disconnect(bg, "a", pidA, "blue"))
}

// Where no subnet was left for the way out, the engine asked itself for one again and again, and a start never ended.
func TestNoSubnetForTheWayOut(t *testing.T) {
	w := newPlugWorld(t)
	w.plugged(t, "blue", "gateway=none")
	w.Local.opt.Pools = []PoolRange{}
	_, err := w.Join(bg, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue")})
	if err == nil || !strings.Contains(err.Error(), "fully subnetted") {
		t.Errorf("join: %v", err)
	}
}

// An interface could not go back to the host because of another one of its name: it was tried again for ever, and what others of the plugin's networks had waited behind it.
func TestPluggedNameIsTaken(t *testing.T) {
	w := newPlugWorld(t)
	w.plugged(t, "blue")
	a, err := w.Join(bg, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue")})
	check(t, err)
	peer := w.p.State().Endpoints[a.Endpoints[0].ID].Peer
	command(t, nil, "ip", "link", "add", peer, "type", "bridge")
	t.Cleanup(func() { command(t, nil, "ip", "link", "delete", peer) })
	check(t, errors.Join(w.Leave(bg, "a"), a.CloseHandles()))
	until(t, "the plugin has it back", func() bool { return len(w.p.State().Endpoints) == 0 })
	if linkIn(t, nil, peer).Name == "" {
		t.Error("the other interface is gone")
	}
}

// A container with a list that was connected to a bridge network whose addresses are a plugin's had no list there: it was bound to what addresses it had before the plugin was asked.
func TestPluggedAddressesHaveLists(t *testing.T) {
	w := newPlugWorld(t)
	w.network(t, Network{Name: "mixed", IPAM: IPAM{Driver: "own"}})
	serve(t, w.outside, "outside", 80)
	serve(t, w.outside, "outside", 81)
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Egress: "203.0.113.2:80"})
	pid := process(t, a.NS)
	_, err := w.Connect(bg, "a", pid, EndpointRequest{Network: "mixed", Priority: 1})
	check(t, err)
	if out := command(t, a.NS, "ip", "route", "get", "203.0.113.2"); !strings.Contains(out, addressOn(t, w.world, "a", "mixed")) {
		t.Errorf("the way out is %s", out)
	}
	wantReach(t, a.NS, []string{"tcp 203.0.113.2:80"}, []string{"tcp 203.0.113.2:81"})
}

// A container ended while it was being connected: what it had was given back while more was made for it, which nobody gave back, and the engine looked for an endpoint that was gone.
func TestEndDuringConnect(t *testing.T) {
	w := newPlugWorld(t)
	w.plugged(t, "blue")
	a, err := w.Join(bg, JoinRequest{Owner: "a", Name: "a"})
	check(t, err)
	pid := process(t, a.NS)
	for _, call := range []string{"NetworkDriver.CreateEndpoint", "NetworkDriver.ProgramExternalConnectivity"} {
		w.p.Bad(call + " never")
		got := make(chan error, 1)
		go func() {
			_, err := w.Connect(bg, "a", pid, EndpointRequest{Network: "blue", Priority: 1})
			got <- err
		}()
		until(t, "the plugin is asked", func() bool { return len(got) > 0 || w.p.Misbehaved(call) })
		check(t, w.Leave(bg, "a"))
		if err := <-got; err == nil || !strings.Contains(err.Error(), "container a ended") {
			t.Errorf("%s: %v", call, err)
		}
		if _, err := w.Connect(bg, "a", pid, EndpointRequest{Network: "blue"}); !errors.Is(err, errs.NotFound) {
			t.Errorf("connect after that: %v", err)
		}
		w.p.Bad()
		check(t, a.CloseHandles())
		a, err = w.Join(bg, JoinRequest{Owner: "a", Name: "a"})
		check(t, err)
		pid = process(t, a.NS)
	}
	check(t, errors.Join(w.Leave(bg, "a"), a.CloseHandles()))
}
