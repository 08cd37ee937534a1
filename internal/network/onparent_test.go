package network

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
)

// lan gives the neighbour outside an address of the network that containers are to be hosts of.
func (w *world) lan(tb testing.TB, link, addr string) {
	tb.Helper()
	check(tb, w.inside(w.outside, func(in *netlink.Conn) error {
		eth, err := in.LinkByName(link)
		if err != nil {
			return err
		}
		var b netlink.Batch
		b.AddAddr(eth.Index, netip.MustParsePrefix(addr))
		return in.Do(&b)
	}))
}

// on makes a network whose containers are hosts of 198.51.100.0/24; the test is skipped where the kernel has no such interfaces.
func (w *world) on(tb testing.TB, driver, parent string, options ...string) Network {
	tb.Helper()
	nw := Network{Name: "lan", Driver: driver, Options: map[string]string{"parent": parent}, IPAM: IPAM{Pools: []Pool{{Subnet: netip.MustParsePrefix("198.51.100.0/24"), Gateway: netip.MustParseAddr("198.51.100.1")}}}}
	for _, o := range options {
		key, val, _ := strings.Cut(o, "=")
		nw.Options[key] = val
	}
	made, err := w.Create(bg, nw)
	if errors.Is(err, errs.NotImplemented) {
		if !strings.Contains(err.Error(), "module ") {
			tb.Errorf("the error does not name what the kernel lacks: %v", err)
		}
		tb.Skip(err)
	}
	check(tb, err)
	return made
}

func TestMacvlan(t *testing.T) {
	for mode, neighbours := range map[string]bool{"bridge": true, "private": false, "vepa": false} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, nil)
			w.lan(t, "eth0", "198.51.100.1/24")
			w.on(t, driverMacvlan, "up0", "macvlan_mode="+mode)
			a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: []EndpointRequest{{Network: "lan"}}, Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 18080}}})
			b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: []EndpointRequest{{Network: "lan", IPv4: netip.MustParseAddr("198.51.100.77"), MAC: "02:00:00:00:00:77"}}})
			serve(t, a.NS, "a", 80)
			serve(t, b.NS, "b", 80)
			serve(t, w.outside, "outside", 80)
			if got := b.Endpoints[0]; got.IPv4.String() != "198.51.100.77/24" || got.MAC != "02:00:00:00:00:77" || got.Gateway4.String() != "198.51.100.1" {
				t.Errorf("endpoint %+v", got)
			}
			wantPrefix(t, "from outside to a container", ask(t, w.outside, "tcp", a.Endpoints[0].IPv4.Addr().String()+":80"), "a 198.51.100.1")
			wantPrefix(t, "from a container to the outside, without a change of its address", ask(t, b.NS, "tcp", "198.51.100.1:80"), "outside 198.51.100.77")
			wantPrefix(t, "to another network, through the gateway", ask(t, b.NS, "tcp", "203.0.113.2:80"), "outside 198.51.100.77")
			if got := knock(t, a.NS, "tcp", "198.51.100.77:80"); strings.HasPrefix(got, "b ") != neighbours {
				t.Errorf("from one container to the other: %s", got)
			}
			wantPrefix(t, "its name", lookup(t, a.NS, "udp", "b", 1), "Success 198.51.100.77")
			if len(a.Ports) != 0 {
				t.Errorf("ports of the host lead nowhere there, but are published: %v", a.Ports)
			}
			check(t, w.Leave(bg, "a"))
			check(t, w.Leave(bg, "b"))
			check(t, w.Remove(bg, "lan"))
		})
	}
}

func TestMacvlanLive(t *testing.T) {
	w := newWorld(t, nil)
	w.lan(t, "eth0", "198.51.100.1/24")
	w.on(t, driverMacvlan, "up0")
	sb := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: []EndpointRequest{{Network: "bridge"}}})
	pid := process(t, sb.NS)
	serve(t, sb.NS, "a", 80)
	ep, err := w.Connect(bg, "a", pid, EndpointRequest{Network: "lan"})
	check(t, err)
	wantPrefix(t, "from outside", ask(t, w.outside, "tcp", ep.IPv4.Addr().String()+":80"), "a 198.51.100.1")
	check(t, w.Disconnect(bg, "a", pid, "lan"))
	if got := knock(t, w.outside, "tcp", ep.IPv4.Addr().String()+":80"); !strings.HasPrefix(got, "!") {
		t.Errorf("after disconnect: %s", got)
	}
	in(t, sb.NS, func() {
		if out, _ := exec.Command("ip", "link").CombinedOutput(); strings.Contains(string(out), ep.Interface+"@") {
			t.Errorf("its interface is there yet: %s", out)
		}
	})
	// The engine comes back: the container has what it had, and its address stays its own.
	ep, err = w.Connect(bg, "a", pid, EndpointRequest{Network: "lan"})
	check(t, err)
	kept, _ := w.Sandbox("a")
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: []EndpointRequest{{Network: "bridge"}, {Network: "lan"}}}
	check(t, w.Close())
	w.open(t)
	check(t, w.Restore(bg, req, kept, pid))
	check(t, w.Settle(bg))
	wantPrefix(t, "from outside, after a restart of the engine", ask(t, w.outside, "tcp", ep.IPv4.Addr().String()+":80"), "a 198.51.100.1")
	other := w.join(t, JoinRequest{Owner: "b", Endpoints: []EndpointRequest{{Network: "lan"}}})
	if other.Endpoints[0].IPv4 == ep.IPv4 {
		t.Error("its address was given to another")
	}
	check(t, w.Leave(bg, "b"))
	check(t, w.Leave(bg, "a"))
	check(t, w.Remove(bg, "lan"))
}

// A network without a parent leads nowhere but to its own containers.
func TestMacvlanAlone(t *testing.T) {
	w := newWorld(t, nil)
	made, err := w.Create(bg, Network{Name: "alone", Driver: driverMacvlan})
	check(t, err)
	if !made.Internal {
		t.Error("it is not internal")
	}
	a := w.join(t, JoinRequest{Owner: "a", Endpoints: []EndpointRequest{{Network: "alone"}}})
	b := w.join(t, JoinRequest{Owner: "b", Endpoints: []EndpointRequest{{Network: "alone"}}})
	serve(t, a.NS, "a", 80)
	wantPrefix(t, "between its containers", ask(t, b.NS, "tcp", a.Endpoints[0].IPv4.Addr().String()+":80"), "a ")
	if a.Endpoints[0].Gateway4.IsValid() {
		t.Error("it has a way out")
	}
	check(t, w.Leave(bg, "a"))
	check(t, w.Leave(bg, "b"))
	check(t, w.Remove(bg, "alone"))
	if _, err := os.Stat("/sys/class/net/dm-" + made.ID[:12]); err == nil {
		t.Error("its parent is left over")
	}
}

// 802.1q: the parent NAME.ID is made with the first network that names it, and goes with the last.
func TestMacvlanOnVLAN(t *testing.T) {
	w := newWorld(t, nil)
	w.on(t, driverMacvlan, "up0.10")
	check(t, w.inside(w.outside, func(in *netlink.Conn) error {
		eth, err := in.LinkByName("eth0")
		if err != nil {
			return err
		}
		var b netlink.Batch
		b.AddVLAN("eth0.10", "test", eth.Index, 10)
		return in.Do(&b)
	}))
	w.lan(t, "eth0.10", "198.51.100.1/24")
	a := w.join(t, JoinRequest{Owner: "a", Endpoints: []EndpointRequest{{Network: "lan"}}})
	serve(t, a.NS, "a", 80)
	wantPrefix(t, "from the same vlan outside", ask(t, w.outside, "tcp", a.Endpoints[0].IPv4.Addr().String()+":80"), "a 198.51.100.1")
	check(t, w.Leave(bg, "a"))
	check(t, w.Remove(bg, "lan"))
	if _, err := os.Stat("/sys/class/net/up0.10"); err == nil {
		t.Error("the vlan is left over")
	}
}

func TestIPvlan(t *testing.T) {
	for _, mode := range []string{"l2", "l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, nil)
			w.lan(t, "eth0", "198.51.100.1/24")
			w.on(t, driverIPvlan, "up0", "ipvlan_mode="+mode)
			a := w.join(t, JoinRequest{Owner: "a", Endpoints: []EndpointRequest{{Network: "lan"}}})
			b := w.join(t, JoinRequest{Owner: "b", Endpoints: []EndpointRequest{{Network: "lan"}}})
			serve(t, a.NS, "a", 80)
			wantPrefix(t, "between containers", ask(t, b.NS, "tcp", a.Endpoints[0].IPv4.Addr().String()+":80"), "a ")
			if mode == "l2" {
				wantPrefix(t, "from outside", ask(t, w.outside, "tcp", a.Endpoints[0].IPv4.Addr().String()+":80"), "a 198.51.100.1")
			} else {
				in(t, a.NS, func() {
					if out, err := exec.Command("ip", "route", "show", "default").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "default dev eth0") {
						t.Errorf("default route: %s %v", out, err)
					}
				})
			}
			check(t, w.Leave(bg, "a"))
			check(t, w.Leave(bg, "b"))
			check(t, w.Remove(bg, "lan"))
		})
	}
}

func TestParentRefusals(t *testing.T) {
	w := newWorld(t, nil)
	for text, options := range map[string]map[string]string{
		"there is no such interface on the host":         {"parent": "nowhere"},
		"there is no interface nowhere on the host":      {"parent": "nowhere.7"},
		"vlan id must be between 1-4094, received: 5000": {"parent": "up0.5000"},
		"requested macvlan mode 'fast' is not valid":     {"parent": "up0", "macvlan_mode": "fast"},
		"not supported by driver macvlan":                {"parent": "up0", "ipvlan_mode": "l2"},
		"invalid MTU number: x":                          {"parent": "up0", optMTU: "x"},
		"macvlan mode passthru needs an interface":       {"macvlan_mode": "passthru"},
		"invalid parent interface":                       {"parent": "a/b"},
	} {
		made, err := w.Create(bg, Network{Name: "bad", Driver: driverMacvlan, Options: options})
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
		if err == nil {
			check(t, w.Remove(bg, made.ID))
		}
	}
	w.on(t, driverMacvlan, "up0", "macvlan_mode=passthru")
	_, err := w.Create(bg, Network{Name: "second", Driver: driverMacvlan, Options: map[string]string{"parent": "up0"}})
	if err == nil || !strings.Contains(err.Error(), "network lan is already using parent interface up0") {
		t.Errorf("beside passthru: %v", err)
	}
	check(t, w.Remove(bg, "lan"))
}

// A container on a parent that started again at once failed most times: the interface of before, which goes with its namespace a moment later, has the hardware address yet, or the parent.
func TestOnParentAgainAtOnce(t *testing.T) {
	for _, mode := range []string{"bridge", modePassthru} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, nil)
			w.on(t, driverMacvlan, "up0", "macvlan_mode="+mode)
			t.Cleanup(func() { check(t, w.Remove(bg, "lan")) })
			for range 8 {
				sb, err := w.Join(bg, JoinRequest{Owner: "a", Name: "a", Endpoints: on("lan")})
				check(t, err)
				if link := linkIn(t, sb.NS, "eth0"); !link.Up || link.MAC.String() != sb.Endpoints[0].MAC {
					t.Errorf("%+v, want %s", link, sb.Endpoints[0].MAC)
				}
				check(t, sb.CloseHandles())
				check(t, w.Leave(bg, "a"))
			}
			other := EndpointRequest{Network: "lan", MAC: "02:00:00:00:00:01"}
			if mode == modePassthru {
				_, err := w.Join(bg, JoinRequest{Owner: "a", Name: "a", Endpoints: []EndpointRequest{other}})
				if err == nil || !strings.Contains(err.Error(), "has the hardware address of that, too") {
					t.Errorf("another hardware address: %v", err)
				}
				other.MAC = ""
			}
			w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: []EndpointRequest{other}})
			_, err := w.Join(bg, JoinRequest{Owner: "b", Name: "b", Endpoints: []EndpointRequest{other}})
			want := "another container on its parent interface has the hardware address 02:00:00:00:00:01"
			if mode == modePassthru {
				want = "network lan is full: its parent interface up0 is passed through to one container"
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("another one: %v, want %s", err, want)
			}
		})
	}
}
