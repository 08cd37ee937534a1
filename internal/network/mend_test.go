package network

import (
	"strings"
	"testing"
)

// An engine that found the bridge gone made another one, and left the containers' interfaces outside of it; an interface that was gone stayed gone, and only the log told.
func TestRestoreMendsInterfaces(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.Settle(bg))
	w.network(t, Network{Name: "blue", Options: map[string]string{optName: "ctblue"}})
	w.network(t, Network{Name: "shy", Options: map[string]string{optName: "ctshy", "com.docker.network.bridge.enable_icc": "false"}})
	reqA := JoinRequest{Owner: "a", Name: "a", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8094}}}
	reqB := JoinRequest{Owner: "b", Name: "b", Endpoints: []EndpointRequest{{Network: "blue", Options: map[string]string{optSysctls: "net.ipv4.conf.IFNAME.log_martians=1"}}}}
	reqC, reqD := JoinRequest{Owner: "c", Name: "c", Endpoints: on("shy")}, JoinRequest{Owner: "d", Name: "d", Endpoints: on("shy")}
	a, b, c, d := w.join(t, reqA), w.join(t, reqB), w.join(t, reqC), w.join(t, reqD)
	serve(t, a.NS, "a", 80)
	serve(t, b.NS, "b", 80)
	serve(t, c.NS, "c", 80)
	pids := []int{process(t, a.NS), process(t, b.NS), process(t, c.NS), process(t, d.NS)}
	w.crash(t)
	command(t, nil, "ip", "link", "delete", "ct0")
	command(t, nil, "ip", "link", "delete", "ctshy")
	command(t, b.NS, "ip", "link", "delete", "eth0")
	w.open(t)
	check(t, w.Restore(bg, reqA, *a, pids[0]))
	check(t, w.Restore(bg, reqB, *b, pids[1]))
	check(t, w.Restore(bg, reqC, *c, pids[2]))
	check(t, w.Restore(bg, reqD, *d, pids[3]))
	check(t, w.Settle(bg))
	wantPrefix(t, "the bridge was gone", ask(t, nil, "tcp", "127.0.0.1:8094"), "a")
	wantPrefix(t, "by its own port", ask(t, a.NS, "tcp", "203.0.113.1:8094"), "a")
	wantPrefix(t, "the interface was gone", ask(t, nil, "tcp", b.Endpoints[0].IPv4.Addr().String()+":80"), "b")
	if out := command(t, b.NS, "ip", "route"); !strings.Contains(out, "default via "+b.Endpoints[0].Gateway4.String()) {
		t.Errorf("routes: %s", out)
	}
	if out := command(t, b.NS, "cat", "/proc/sys/net/ipv4/conf/eth0/log_martians"); strings.TrimSpace(out) != "1" {
		t.Errorf("log_martians is %s", out)
	}
	wantPrefix(t, "from the host", ask(t, nil, "tcp", c.Endpoints[0].IPv4.Addr().String()+":80"), "c")
	wantPrefix(t, "still kept apart", knock(t, d.NS, "tcp", c.Endpoints[0].IPv4.Addr().String()+":80"), "!")
}

// A network of two families takes the default route and the published ports over when it is connected. An engine that was killed before it wrote the connection down was followed by one
// that refused to write the ports ("file exists") and left a container of the default bridge without its way out, once the interface was cleared away.
func TestRestoreAfterDeathInAConnect(t *testing.T) {
	w := newWorld(t, nil)
	check(t, w.Settle(bg))
	w.network(t, Network{Name: "both", EnableIPv4: true, EnableIPv6: true})
	reqA, reqB := JoinRequest{Owner: "a", Name: "a", Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8094}}}, JoinRequest{Owner: "b", Name: "b"}
	a, b := w.join(t, reqA), w.join(t, reqB)
	serve(t, a.NS, "a", 80)
	pidA, pidB := process(t, a.NS), process(t, b.NS)
	_, err := w.Connect(bg, "a", pidA, EndpointRequest{Network: "both"})
	check(t, err)
	gateway := "default via " + a.Endpoints[0].Gateway4.String() + " dev eth0"
	if out := command(t, a.NS, "ip", "route"); strings.Contains(out, gateway) {
		t.Fatalf("the new network did not take over: %s", out)
	}
	command(t, b.NS, "ip", "link", "add", "tun0", "type", "veth", "peer", "name", "tun1") // somebody's own way out
	command(t, b.NS, "ip", "addr", "add", "192.0.2.1/24", "dev", "tun0")
	command(t, b.NS, "ip", "link", "set", "tun0", "up")
	command(t, b.NS, "ip", "route", "replace", "default", "via", "192.0.2.2", "dev", "tun0")
	w.crash(t)
	w.open(t)
	check(t, w.Restore(bg, reqA, *a, pidA))
	check(t, w.Restore(bg, reqB, *b, pidB))
	check(t, w.Settle(bg))
	until(t, "the interface on the other network is gone", func() bool {
		return !strings.Contains(command(t, a.NS, "ip", "-br", "link"), "eth1")
	})
	if out := command(t, a.NS, "ip", "route"); !strings.Contains(out, gateway) {
		t.Errorf("the way out: %s", out)
	}
	wantPrefix(t, "its port", ask(t, nil, "tcp", "127.0.0.1:8094"), "a")
	if out := command(t, b.NS, "ip", "route"); !strings.Contains(out, "default via 192.0.2.2 dev tun0") {
		t.Errorf("a route of the container's own was changed: %s", out)
	}
}
