package network

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"corten.dev/corten/internal/linux/netlink"
)

// more gives the neighbour outside further addresses.
func (w *world) more(tb testing.TB, addrs ...string) {
	tb.Helper()
	host, err := w.rt.Take()
	check(tb, err)
	defer w.rt.Give(host)
	up, err := host.LinkByName("up0")
	check(tb, err)
	var b netlink.Batch
	for _, a := range addrs {
		w.lan(tb, "eth0", a+"/32")
		b.AddRoute(up.Index, netip.PrefixFrom(netip.MustParseAddr(a), 32), netip.MustParseAddr("203.0.113.2"))
	}
	check(tb, host.Do(&b))
}

// egressWorld makes a world whose neighbour has three addresses that answer on two ports, and answers names.
func egressWorld(t *testing.T) *world {
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/resolv.conf", []byte("nameserver 203.0.113.2\n"), 0o644))
	check(t, os.Chmod(dir, 0o755))
	w := newWorld(t, func(o *Options) { o.ResolvConf = dir + "/resolv.conf" })
	w.more(t, "198.51.100.7", "198.51.100.8")
	serve(t, w.outside, "outside", 80)
	serve(t, w.outside, "outside", 81)
	answers(t, w.outside, "203.0.113.2:53", [4]byte{198, 51, 100, 7})
	return w
}

func wantReach(t *testing.T, ns *os.File, can, cannot []string) {
	t.Helper()
	for _, to := range can {
		network, addr, _ := strings.Cut(to, " ")
		wantPrefix(t, "to "+to, ask(t, ns, network, addr), "outside")
	}
	for _, to := range cannot {
		network, addr, _ := strings.Cut(to, " ")
		if got := knock(t, ns, network, addr); !strings.HasPrefix(got, "!") {
			t.Errorf("to %s, which is not in the list: %s", to, got)
		}
	}
}

func TestEgressOfContainer(t *testing.T) {
	w := egressWorld(t)
	serve(t, nil, "host", 8080)
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Egress: "203.0.113.2:80/tcp,198.51.100.0/24:81,198.51.100.8:80-90,good.example:80,*.far.example",
		Ports: []Port{{Proto: "tcp", ContainerPort: 8000, HostPort: 18000}}})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Ports: []Port{{Proto: "tcp", ContainerPort: 8000, HostPort: 18001}}})
	serve(t, a.NS, "a", 8000)
	serve(t, b.NS, "b", 8000)
	wantReach(t, a.NS, []string{"tcp 203.0.113.2:80", "tcp 198.51.100.7:81", "tcp 198.51.100.8:80"},
		[]string{"tcp 203.0.113.2:81", "udp 203.0.113.2:80", "tcp 198.51.100.7:80", "tcp 172.17.0.1:8080", "tcp 203.0.113.1:8080"})
	wantReach(t, b.NS, []string{"tcp 203.0.113.2:81", "tcp 198.51.100.7:80"}, nil)
	wantPrefix(t, "its published port", ask(t, w.outside, "tcp", "203.0.113.1:18000"), "a ")
	wantPrefix(t, "its published port, on the host", ask(t, nil, "tcp", "127.0.0.1:18000"), "a ")
	wantPrefix(t, "between containers of its network", ask(t, a.NS, "tcp", b.Endpoints[0].IPv4.Addr().String()+":8000"), "b ")
	if !strings.Contains(string(a.ResolvConf), "127.0.0.11") || strings.Contains(string(b.ResolvConf), "127.0.0.11") {
		t.Errorf("resolv.conf: %s, %s", a.ResolvConf, b.ResolvConf)
	}
	wantPrefix(t, "a name that is not in the list", lookup(t, a.NS, "udp", "evil.example", dnsmessage.TypeA), "NameError")
	wantPrefix(t, "far.example itself", lookup(t, a.NS, "tcp", "far.example", dnsmessage.TypeA), "NameError")
	wantPrefix(t, "an address's name", lookup(t, a.NS, "udp", "7.100.51.198.in-addr.arpa", dnsmessage.TypePTR), "NameError")
	wantReach(t, a.NS, nil, []string{"tcp 198.51.100.7:80"})
	wantPrefix(t, "a name in the list", lookup(t, a.NS, "udp", "Good.example", dnsmessage.TypeA), "Success 198.51.100.7")
	wantReach(t, a.NS, []string{"tcp 198.51.100.7:80", "tcp 198.51.100.8:80"}, []string{"tcp 203.0.113.2:81"})
	wantPrefix(t, "a name below one of the list", lookup(t, a.NS, "udp", "x.y.far.example", dnsmessage.TypeA), "Success 198.51.100.7")

	out, err := exec.Command("nft", "list", "table", "inet", "cortentest").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if n := strings.Count(string(out), " . 198.51.100.7"); n < 3 || !strings.Contains(string(out), "timeout") {
		t.Errorf("the kernel was told of %d times 198.51.100.7: %s", n, out)
	}
	// Another has its address later: nothing of the list is his.
	addr := a.Endpoints[0].IPv4
	check(t, w.Leave(bg, "a"))
	check(t, a.NS.Close())
	c := w.join(t, JoinRequest{Owner: "a", Name: "a"})
	if c.Endpoints[0].IPv4 != addr {
		t.Errorf("got %s, not %s again", c.Endpoints[0].IPv4, addr)
	}
	wantReach(t, c.NS, []string{"tcp 203.0.113.2:81"}, nil)
}

func TestEgressNone(t *testing.T) {
	w := egressWorld(t)
	w.network(t, Network{Name: "shut", EnableIPv4: true, EnableIPv6: true, Options: map[string]string{OptionEgress: "none"}})
	serve(t, nil, "host", 8080)
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("shut"), Ports: []Port{{Proto: "tcp", ContainerPort: 8000, HostPort: 18000}}})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("shut"), Egress: "all"})
	serve(t, a.NS, "a", 8000)
	gw6 := a.Endpoints[0].Gateway6.String()
	wantReach(t, a.NS, nil, []string{"tcp 203.0.113.2:80", "udp 203.0.113.2:80", "tcp [2001:db8::2]:80", "tcp [" + gw6 + "]:8080"})
	wantPrefix(t, "its published port", ask(t, w.outside, "tcp", "203.0.113.1:18000"), "a ")
	wantPrefix(t, "between its containers", ask(t, b.NS, "tcp", "["+a.Endpoints[0].IPv6.Addr().String()+"]:8000"), "a ")
	wantPrefix(t, "a neighbour's name", lookup(t, b.NS, "udp", "a", dnsmessage.TypeA), "Success "+a.Endpoints[0].IPv4.Addr().String())
	wantPrefix(t, "another name", lookup(t, b.NS, "udp", "good.example", dnsmessage.TypeA), "NameError")
}

// Names that were told go on working while no engine runs and with the next one, and after all rules were flushed; new ones wait for an engine.
func TestEgressOutlivesTheEngine(t *testing.T) {
	w := egressWorld(t)
	made, err := w.Create(bg, Network{Name: "blue", Options: map[string]string{OptionEgress: "good.example:80,198.51.100.8"}})
	check(t, err)
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue"), Egress: "*:80,198.51.100.0/24"}
	a, err := w.Join(bg, req)
	check(t, err)
	defer a.NS.Close()
	pid := process(t, a.NS)
	wantPrefix(t, "a name", lookup(t, a.NS, "udp", "good.example", dnsmessage.TypeA), "Success 198.51.100.7")
	wantPrefix(t, "a name that only one of the lists has", lookup(t, a.NS, "udp", "evil.example", dnsmessage.TypeA), "NameError")
	both := func() {
		t.Helper()
		wantReach(t, a.NS, []string{"tcp 198.51.100.7:80", "tcp 198.51.100.8:81"}, []string{"tcp 203.0.113.2:80", "tcp 198.51.100.7:81"})
	}
	both()
	w.crash(t)
	both()
	wantPrefix(t, "the name, from the cache", lookup(t, a.NS, "udp", "good.example", dnsmessage.TypeA), "Success 198.51.100.7")
	w.open(t)
	both()
	check(t, w.Restore(bg, req, *a, pid))
	check(t, w.Settle(bg))
	both()
	wantPrefix(t, "a name of the next engine", lookup(t, a.NS, "udp", "good.example", dnsmessage.TypeAAAA), "Success")
	wantPrefix(t, "the name again", lookup(t, a.NS, "udp", "good.example", dnsmessage.TypeA), "Success 198.51.100.7")
	check(t, exec.Command("nft", "delete", "table", "inet", "cortentest").Run())
	eventually(t, "after a flush", "!", func() string { return knock(t, a.NS, "tcp", "203.0.113.2:80") })
	both()
	if got := made.Options[OptionEgress]; got == "" {
		t.Error("the network does not say it")
	}
	check(t, w.Leave(bg, "a"))
	check(t, w.Remove(bg, "blue"))
}

// An engine that came back did not know for which names its predecessor had opened addresses. When a list was changed then, all of them were closed until the container asked again, though the new list had the name, too.
func TestEgressNamesOutliveTheEngine(t *testing.T) {
	w := egressWorld(t)
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: on("bridge"), Egress: "*.example:80"}
	a, err := w.Join(bg, req)
	check(t, err)
	defer a.NS.Close()
	pid := process(t, a.NS)
	wantPrefix(t, "a name", lookup(t, a.NS, "udp", "good.example", dnsmessage.TypeA), "Success 198.51.100.7")
	w.crash(t)
	w.open(t)
	check(t, w.Restore(bg, req, *a, pid))
	check(t, w.Settle(bg))
	if out := nftList(t, "set", "inet", "cortentest", "told4"); !strings.Contains(out, `comment "good.example"`) {
		t.Errorf("the kernel does not know the name: %s", out)
	}
	check(t, w.SetLimits(bg, "a", pid, Limits{Egress: "good.example:80,192.0.2.0/24"}))
	wantReach(t, a.NS, []string{"tcp 198.51.100.7:80"}, nil)
	check(t, exec.Command("nft", "delete", "table", "inet", "cortentest").Run())
	eventually(t, "after a flush", "good.example", func() string {
		if out, err := exec.Command("nft", "list", "set", "inet", "cortentest", "told4").CombinedOutput(); err == nil && strings.Contains(string(out), `comment "good.example"`) {
			return "good.example"
		}
		return ""
	})
	check(t, w.SetLimits(bg, "a", pid, Limits{Egress: "other.example:80"}))
	wantReach(t, a.NS, nil, []string{"tcp 198.51.100.7:80"})
	check(t, w.Leave(bg, "a"))
}

func TestEgressConnect(t *testing.T) {
	w := egressWorld(t)
	w.network(t, Network{Name: "blue"})
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Egress: "203.0.113.2:80"})
	pid := process(t, a.NS)
	_, err := w.Connect(bg, "a", pid, EndpointRequest{Network: "blue", Priority: 1})
	check(t, err)
	wantReach(t, a.NS, []string{"tcp 203.0.113.2:80"}, []string{"tcp 203.0.113.2:81"})
	check(t, w.Disconnect(bg, "a", pid, "bridge"))
	wantReach(t, a.NS, []string{"tcp 203.0.113.2:80"}, []string{"tcp 203.0.113.2:81"})
	if _, err := w.Join(bg, JoinRequest{Owner: "h", Endpoints: on("host"), Egress: "none"}); err == nil || !strings.Contains(err.Error(), "needs networks of driver bridge") {
		t.Errorf("on the host's network: %v", err)
	}
	if _, err := w.Join(bg, JoinRequest{Owner: "h", Egress: "a..b"}); err == nil {
		t.Error("a list that makes no sense was taken")
	}
}
