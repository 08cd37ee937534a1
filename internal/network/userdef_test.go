package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

var bg = context.Background()

// process starts a process in the namespace, as a container would.
func process(tb testing.TB, ns *os.File) int {
	tb.Helper()
	cmd := exec.Command("sleep", "1000")
	in(tb, ns, func() { check(tb, cmd.Start()) })
	tb.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

// lookup asks the embedded server from the namespace.
func lookup(tb testing.TB, ns *os.File, network, name string, typ dnsmessage.Type) string {
	tb.Helper()
	return ask1(tb, ns, patience, network, name, typ)
}

// lookupWithin asks for an IPv4 address, and does not wait long.
func lookupWithin(tb testing.TB, ns *os.File, wait time.Duration, network, name string) string {
	tb.Helper()
	return ask1(tb, ns, wait, network, name, dnsmessage.TypeA)
}

// ask1 asks once.
func ask1(tb testing.TB, ns *os.File, wait time.Duration, network, name string, typ dnsmessage.Type) string {
	tb.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	check(tb, b.StartQuestions())
	check(tb, b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name + "."), Type: typ, Class: dnsmessage.ClassINET}))
	q, err := b.Finish()
	check(tb, err)
	var out string
	in(tb, ns, func() {
		c, err := net.DialTimeout(network, "127.0.0.11:53", wait)
		if err != nil {
			out = "! " + err.Error()
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait))
		if network == "tcp" {
			q = append([]byte{byte(len(q) >> 8), byte(len(q))}, q...)
		}
		if _, err = c.Write(q); err != nil {
			out = "! " + err.Error()
			return
		}
		buf := make([]byte, 4096)
		n, err := c.Read(buf)
		if err != nil {
			out = "! " + err.Error()
			return
		}
		if network == "tcp" {
			buf = buf[2:]
		}
		out = answerText(buf[:n])
	})
	return out
}

func answerText(p []byte) string {
	var m dnsmessage.Message
	if err := m.Unpack(p); err != nil {
		return "! " + err.Error()
	}
	var all []string
	for _, a := range m.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			all = append(all, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			all = append(all, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.PTRResource:
			all = append(all, r.PTR.String())
		}
	}
	slices.Sort(all)
	return strings.TrimPrefix(m.RCode.String(), "RCode") + " " + strings.Join(all, " ")
}

func (w *world) network(tb testing.TB, nw Network) Network {
	tb.Helper()
	made, err := w.Create(bg, nw)
	check(tb, err)
	tb.Cleanup(func() { check(tb, w.Remove(bg, nw.Name)) })
	return made
}

func on(networks ...string) (all []EndpointRequest) {
	for _, n := range networks {
		all = append(all, EndpointRequest{Network: n})
	}
	return all
}

func TestNamesOfOwnNetworksOnly(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "blue", EnableIPv4: true, EnableIPv6: true})
	w.network(t, Network{Name: "red"})
	w.network(t, Network{Name: "sealed", Internal: true})
	web := w.join(t, JoinRequest{Owner: "webwebwebweb1", Name: "web", Hostname: "web.example", Endpoints: []EndpointRequest{{Network: "blue", Aliases: []string{"WWW", "any"}}}})
	db := w.join(t, JoinRequest{Owner: "dbdbdbdbdbdb1", Name: "db", Endpoints: []EndpointRequest{{Network: "blue", Aliases: []string{"any"}}}})
	far := w.join(t, JoinRequest{Owner: "far", Name: "far", Endpoints: on("red")})
	sealed := w.join(t, JoinRequest{Owner: "sealed", Name: "sealed", Endpoints: on("sealed")})
	ip, ip6 := web.Endpoints[0].IPv4.Addr().String(), web.Endpoints[0].IPv6.Addr().String()
	any := []string{ip, db.Endpoints[0].IPv4.Addr().String()}
	slices.Sort(any)
	if want := "nameserver 127.0.0.11\noptions"; !strings.Contains(string(web.ResolvConf), "nameserver 127.0.0.11\n") || !strings.Contains(string(web.ResolvConf), "ndots:0") {
		t.Errorf("resolv.conf %q, want %q", web.ResolvConf, want)
	}
	for _, c := range []struct {
		ns   *os.File
		name string
		typ  dnsmessage.Type
		want string
	}{
		{db.NS, "web", dnsmessage.TypeA, "Success " + ip},
		{db.NS, "web", dnsmessage.TypeAAAA, "Success " + ip6},
		{db.NS, "WeB", dnsmessage.TypeA, "Success " + ip},
		{db.NS, "www", dnsmessage.TypeA, "Success " + ip},
		{db.NS, "web.blue", dnsmessage.TypeA, "Success " + ip},
		{db.NS, "webwebwebweb", dnsmessage.TypeA, "Success " + ip},
		{db.NS, "web.example", dnsmessage.TypeA, "Success " + ip},
		{db.NS, "web", dnsmessage.TypeMX, "Success "},
		{db.NS, "any", dnsmessage.TypeA, "Success " + strings.Join(any, " ")},
		{sealed.NS, "web", dnsmessage.TypeA, "NameError "},
		{sealed.NS, "example.com", dnsmessage.TypeA, "NameError "},
		{sealed.NS, "sealed", dnsmessage.TypeA, "Success " + sealed.Endpoints[0].IPv4.Addr().String()},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if got := lookup(t, c.ns, network, c.name, c.typ); got != c.want {
				t.Errorf("%s %s %v: got %q, want %q", network, c.name, c.typ, got, c.want)
			}
		}
	}
	raw := web.Endpoints[0].IPv4.Addr().As4()
	ptr := fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", raw[3], raw[2], raw[1], raw[0])
	if got := lookup(t, db.NS, "udp", ptr, dnsmessage.TypePTR); got != "Success web.blue." {
		t.Errorf("reverse: %q", got)
	}
	if got := lookup(t, far.NS, "udp", "web", dnsmessage.TypeA); strings.Contains(got, ip) {
		t.Errorf("name of another network is told: %q", got)
	}
	check(t, w.Rename(bg, "webwebwebweb1", "site"))
	wantPrefix(t, "after rename", lookup(t, db.NS, "udp", "site", dnsmessage.TypeA), "Success "+ip)
}

func TestForwardsThroughTheHost(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.ResolvConf = t.TempDir() + "/resolv.conf"
		check(t, os.WriteFile(o.ResolvConf, []byte("nameserver 127.0.0.99\nnameserver 203.0.113.2\nsearch example.org\n"), 0o644))
	})
	w.network(t, Network{Name: "blue"})
	asked := answers(t, w.outside, "203.0.113.2:53", [4]byte{198, 51, 100, 7}) // an upstream that only the host reaches; the first server is dead
	one := w.join(t, JoinRequest{Owner: "one", Name: "one", Endpoints: on("blue")})
	for range 3 {
		if got := lookup(t, one.NS, "udp", "example.com", dnsmessage.TypeA); got != "Success 198.51.100.7" {
			t.Errorf("forwarded: %q", got)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times: the cache does not hold", n)
	}
	dflt := w.join(t, JoinRequest{Owner: "two", Name: "two"})
	if got := string(dflt.ResolvConf); got != "# Generated by Corten.\nnameserver 203.0.113.2\nsearch example.org\n" {
		t.Errorf("resolv.conf on the default network: %q", got)
	}
}

func TestNetworksAreApart(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "blue"})
	w.network(t, Network{Name: "red"})
	w.network(t, Network{Name: "sealed", Internal: true})
	w.network(t, Network{Name: "mute", Options: map[string]string{optICC: "false"}})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8090}}})
	r := w.join(t, JoinRequest{Owner: "r", Name: "r", Endpoints: on("red")})
	s := w.join(t, JoinRequest{Owner: "s", Name: "s", Endpoints: on("sealed")})
	m1 := w.join(t, JoinRequest{Owner: "m1", Name: "m1", Endpoints: on("mute")})
	m2 := w.join(t, JoinRequest{Owner: "m2", Name: "m2", Endpoints: on("mute")})
	two := w.join(t, JoinRequest{Owner: "two", Name: "two", Endpoints: on("blue", "sealed")})
	serve(t, b.NS, "b", 80)
	serve(t, m1.NS, "m1", 80)
	serve(t, s.NS, "s", 80)
	serve(t, w.outside, "outside", 9000)
	at := func(sb *Sandbox) string { return sb.Endpoints[0].IPv4.Addr().String() + ":80" }
	wantPrefix(t, "another network", knock(t, r.NS, "tcp", at(b)), "!")
	wantPrefix(t, "another network's published port", ask(t, r.NS, "tcp", "203.0.113.1:8090"), "b")
	wantPrefix(t, "internal to outside", knock(t, s.NS, "tcp", "203.0.113.2:9000"), "!")
	wantPrefix(t, "internal to another network", knock(t, s.NS, "tcp", at(b)), "!")
	wantPrefix(t, "outside to internal", knock(t, w.outside, "tcp", at(s)), "!")
	wantPrefix(t, "within without icc", knock(t, m2.NS, "tcp", at(m1)), "!")
	wantPrefix(t, "without icc to outside", ask(t, m2.NS, "tcp", "203.0.113.2:9000"), "outside")
	wantPrefix(t, "on two networks, one", ask(t, two.NS, "tcp", at(b)), "b")
	wantPrefix(t, "on two networks, other", ask(t, two.NS, "tcp", at(s)), "s")
	wantPrefix(t, "on two networks, outside", ask(t, two.NS, "tcp", "203.0.113.2:9000"), "outside")
}

func TestConnectAndDisconnectLive(t *testing.T) {
	w := newWorld(t, nil)
	blue := w.network(t, Network{Name: "blue"})
	w.network(t, Network{Name: "red"})
	a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8091}}})
	b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("red")})
	_, err := w.Join(bg, JoinRequest{Owner: "c", Endpoints: []EndpointRequest{{Network: "red", Options: map[string]string{"com.docker.network.endpoint.sysctls": "x"}}}})
	if err == nil || !strings.Contains(err.Error(), "write name=value") {
		t.Errorf("bad option: %v", err)
	}
	named := w.join(t, JoinRequest{Owner: "c", Endpoints: []EndpointRequest{{Network: "red", Options: map[string]string{optIfName: "lan0"}}}})
	if named.Endpoints[0].Interface != "lan0" {
		t.Errorf("named interface: %+v", named.Endpoints)
	}
	pid := process(t, a.NS)
	serve(t, a.NS, "a", 80)
	ep, err := w.Connect(bg, "a", pid, EndpointRequest{Network: "red", Aliases: []string{"friend"}})
	check(t, err)
	if ep.Interface != "eth1" {
		t.Errorf("interface %s", ep.Interface)
	}
	wantPrefix(t, "name on the new network", lookup(t, b.NS, "udp", "friend", dnsmessage.TypeA), "Success "+ep.IPv4.Addr().String())
	wantPrefix(t, "address on the new network", ask(t, b.NS, "tcp", ep.IPv4.Addr().String()+":80"), "a")
	_, err = w.Connect(bg, "a", pid, EndpointRequest{Network: "red"})
	if err == nil || !strings.Contains(err.Error(), "endpoint with name a already exists in network red") {
		t.Errorf("connected twice: %v", err)
	}
	check(t, w.Disconnect(bg, "a", pid, "blue"))
	if eps, err := w.Endpoints(bg, blue.ID); err != nil || len(eps) != 0 {
		t.Errorf("after disconnect: %v %v", eps, err)
	}
	wantPrefix(t, "published port moved", ask(t, nil, "tcp", "127.0.0.1:8091"), "a")
	serve(t, w.outside, "outside", 9000)
	wantPrefix(t, "default route moved", ask(t, a.NS, "tcp", "203.0.113.2:9000"), "outside")
	if err := w.Disconnect(bg, "a", pid, "blue"); err == nil || !strings.Contains(err.Error(), "is not connected to network blue") {
		t.Errorf("disconnected twice: %v", err)
	}
}

// A container ended in the moment in which it was taken off a network: the room had forgotten its endpoint already, so that its address was nobody's and stayed taken.
func TestDisconnectOfOneThatEnded(t *testing.T) {
	w := newWorld(t, nil)
	nw := w.network(t, Network{Name: "blue", IPAM: poolsOf("10.99.7.0/29")})
	taken := func() uint64 {
		use, err := w.Usage(bg, nw.ID)
		check(t, err)
		return use[0].InUse
	}
	before := taken()
	a, err := w.Join(bg, JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue"), Egress: "203.0.113.2"})
	check(t, err)
	cmd := exec.Command("true")
	check(t, cmd.Run())
	if err := w.Disconnect(bg, "a", cmd.Process.Pid, "blue"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("disconnect: %v", err)
	}
	if sb, _ := w.Sandbox("a"); len(sb.Endpoints) != 1 {
		t.Errorf("endpoints %+v", sb.Endpoints)
	}
	check(t, errors.Join(a.CloseHandles(), w.Leave(bg, "a")))
	until(t, "its address is free", func() bool { return taken() == before })
	if list := nftList(t, "set", "inet", "cortentest", "fence4"); strings.Contains(list, "elements") {
		t.Errorf("something is left: %s", list)
	}
}

// crash ends the manager as a killed engine would: its descriptors close, and nothing is taken down.
func (w *world) crash(tb testing.TB) {
	tb.Helper()
	l := w.Local
	l.stop()
	l.rules.closeWatch()
	l.work.Wait()
	check(tb, l.pool.drain())
	check(tb, l.shut())
}

func TestEverythingComesBackAfterACrash(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.Settle(bg))
	w.network(t, Network{Name: "blue"})
	reqA := JoinRequest{Owner: "a", Name: "a", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8092}}}
	reqB := JoinRequest{Owner: "b", Name: "b", Endpoints: on("blue")}
	a, b := w.join(t, reqA), w.join(t, reqB)
	dead, err := w.Join(bg, JoinRequest{Owner: "dead", Name: "dead", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8093}}})
	check(t, err)
	pidA, pidB := process(t, a.NS), process(t, b.NS)
	serve(t, a.NS, "a", 80)
	time.Sleep(50 * time.Millisecond) // the pool is filled
	c, err := net.Dial("tcp", "127.0.0.1:8092")
	check(t, err)
	defer c.Close()
	w.crash(t)
	wantPrefix(t, "while the engine is away", ask(t, nil, "tcp", "127.0.0.1:8092"), "a")
	check(t, dead.NS.Close())
	w.open(t)
	wantPrefix(t, "before restore", ask(t, nil, "tcp", "127.0.0.1:8092"), "a")
	early, err := w.Join(bg, JoinRequest{Owner: "early"})
	check(t, err)
	if early.Endpoints[0].IPv4 == a.Endpoints[0].IPv4 {
		t.Errorf("address %v given out twice", a.Endpoints[0].IPv4)
	}
	check(t, early.NS.Close())
	check(t, w.Leave(bg, "early"))
	for _, x := range []struct {
		req JoinRequest
		sb  *Sandbox
		pid int
	}{{reqA, a, pidA}, {reqB, b, pidB}} {
		raw, err := json.Marshal(x.sb)
		check(t, err)
		var stored Sandbox
		check(t, json.Unmarshal(raw, &stored))
		check(t, w.Restore(bg, x.req, stored, x.pid))
	}
	check(t, w.Settle(bg))
	for i := range 3 {
		late := w.join(t, JoinRequest{Owner: fmt.Sprint("late", i), Endpoints: on("bridge", "blue")})
		for _, ep := range late.Endpoints {
			if ep.IPv4 == a.Endpoints[0].IPv4 || ep.IPv4 == b.Endpoints[0].IPv4 {
				t.Errorf("address %v is given out twice", ep.IPv4)
			}
		}
	}
	wantPrefix(t, "after restore", ask(t, w.outside, "tcp", "203.0.113.1:8092"), "a")
	wantPrefix(t, "names after restore", lookup(t, b.NS, "udp", "b", dnsmessage.TypeA), "Success "+b.Endpoints[0].IPv4.Addr().String())
	_, err = w.Join(bg, JoinRequest{Owner: "x", Ports: reqA.Ports})
	if err == nil || !strings.Contains(err.Error(), "Bind for 0.0.0.0:8092 failed: port is already allocated") {
		t.Errorf("restored port is free: %v", err)
	}
	out, _ := exec.Command("nft", "list", "map", "inet", "cortentest", "any4").CombinedOutput()
	if strings.Contains(string(out), "8093") || !strings.Contains(string(out), "8092") {
		t.Errorf("elements after settle:\n%s", out)
	}
}

func TestRulesComeBackAfterAFlush(t *testing.T) {
	w := newWorld(t, nil)
	web := w.join(t, JoinRequest{Owner: "web", Name: "web", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8094}}})
	check(t, w.Settle(bg))
	serve(t, web.NS, "web", 80)
	for _, args := range []string{"flush ruleset", "flush table inet cortentest", "delete table inet cortentest", "flush map inet cortentest any4"} {
		if out, err := exec.Command("nft", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v %s", args, err, out)
		}
		// A connection in the gap is not refused: its first packet is dropped and comes again when the rules are back.
		wantPrefix(t, "after nft "+args, ask(t, nil, "tcp", "127.0.0.1:8094"), "web")
	}
}

func TestAdministratorsChain(t *testing.T) {
	w := newWorld(t, nil)
	web := w.join(t, JoinRequest{Owner: "web", Name: "web", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8095}}})
	serve(t, web.NS, "web", 80)
	out, err := exec.Command("nft", "add", "rule", "inet", "cortentest", "corten-user", "ip", "saddr", "203.0.113.2", "drop").CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	wantPrefix(t, "dropped by the administrator", knock(t, w.outside, "tcp", "203.0.113.1:8095"), "!")
	check(t, w.Settle(bg)) // writes all again
	wantPrefix(t, "still dropped", knock(t, w.outside, "tcp", "203.0.113.1:8095"), "!")
	wantPrefix(t, "others pass", ask(t, nil, "tcp", "203.0.113.1:8095"), "web")
	check(t, w.Leave(bg, "web"))
	check(t, w.Close())
	out, err = exec.Command("nft", "list", "table", "inet", "cortentest").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "203.0.113.2 drop") || strings.Contains(string(out), "masquerade") {
		t.Errorf("after close the administrator's rule should be left, and nothing else: %v %s", err, out)
	}
	check(t, exec.Command("nft", "delete", "table", "inet", "cortentest").Run())
}

func TestPortOfAHostProcess(t *testing.T) {
	w := newWorld(t, nil)
	ln, err := net.Listen("tcp4", "0.0.0.0:8096")
	check(t, err)
	defer ln.Close()
	_, err = w.Join(bg, JoinRequest{Owner: "a", Name: "a", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8096}}})
	if err == nil || !strings.Contains(err.Error(), "failed to bind host port 0.0.0.0:8096/tcp: address already in use") {
		t.Errorf("got %v", err)
	}
	if _, there := w.Sandbox("a"); there {
		t.Error("half a sandbox is left")
	}
}

func TestNameServerInTheContainer(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "blue"})
	sb := w.join(t, JoinRequest{Owner: "hole", Name: "hole", DNS: []string{"127.0.0.1"}, Endpoints: on("blue")})
	in(t, sb.NS, func() { // on all addresses: the embedded server must not be in its way
		pc, err := net.ListenPacket("udp4", "0.0.0.0:53")
		check(t, err)
		t.Cleanup(func() { pc.Close() })
		go func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				var m dnsmessage.Message
				if m.Unpack(buf[:n]) == nil {
					m.Response = true
					m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{0, 0, 0, 0}}}}
					p, _ := m.Pack()
					pc.WriteTo(p, from)
				}
			}
		}()
	})
	wantPrefix(t, "own server", lookup(t, sb.NS, "udp", "ads.example.com", dnsmessage.TypeA), "Success 0.0.0.0")
	wantPrefix(t, "embedded server", lookup(t, sb.NS, "udp", "hole", dnsmessage.TypeA), "Success "+sb.Endpoints[0].IPv4.Addr().String())
}

// The bridges route 127.0.0.0/8, for published ports. A container with rights over its own network must not get at the host's loopback by that, nor
// a neighbour outside at a port that is published there.
func TestLoopbackOfTheHostIsOutOfReach(t *testing.T) {
	w := newWorld(t, nil)
	web := w.join(t, JoinRequest{Owner: "web", Name: "web", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8097, HostIP: netip.MustParseAddr("127.0.0.1")}}})
	evil := w.join(t, JoinRequest{Owner: "evil", Name: "evil"})
	serve(t, web.NS, "web", 80)
	serve(t, nil, "secret", 7777)
	for name, c := range map[string]struct {
		ns *os.File
		gw string
	}{"container": {evil.NS, evil.Endpoints[0].Gateway4.String()}, "neighbour": {w.outside, "203.0.113.1"}} {
		in(t, c.ns, func() {
			script := "ip addr del 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.eth0.route_localnet=1; ip route add 127.0.0.0/8 via " + c.gw + " dev eth0"
			if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
		})
		wantPrefix(t, name+" at the host's loopback", knock(t, c.ns, "tcp", "127.0.0.1:7777"), "!")
		wantPrefix(t, name+" at a port published on loopback", knock(t, c.ns, "tcp", "127.0.0.1:8097"), "!")
	}
	wantPrefix(t, "the host itself", ask(t, nil, "tcp", "127.0.0.1:8097"), "web")
}
