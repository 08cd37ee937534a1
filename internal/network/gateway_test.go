package network

import (
	"strings"
	"testing"
)

// The network with the highest priority, else one with a gateway in both families, else the first by name has the default routes, as with Docker, also while a container is connected and disconnected live. Once the
// network that a container had started with kept them, whatever priority the next one was given.
func TestDefaultRouteMoves(t *testing.T) {
	w := newWorld(t, nil)
	nets := map[string]Network{}
	for _, name := range []string{"blue", "green", "red"} {
		nets[name] = w.network(t, Network{Name: name, EnableIPv4: true, EnableIPv6: name == "red"})
	}
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: on("green"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8095}}}
	a := w.join(t, req)
	pid := process(t, a.NS)
	serve(t, a.NS, "a", 80)
	serve(t, w.outside, "outside", 81)
	way := func(when, network string) {
		t.Helper()
		gw := nets[network].IPAM.Pools[0].Gateway.String()
		if out := command(t, a.NS, "ip", "-4", "route", "show", "default"); strings.Count(out, "default") != 1 || !strings.Contains(out, "via "+gw+" ") {
			t.Errorf("%s: %s, want %s (%s)", when, out, gw, network)
		}
		wantPrefix(t, when+": out", ask(t, a.NS, "tcp", "203.0.113.2:81"), "outside 203.0.113.1")
		wantPrefix(t, when+": the published port", ask(t, w.outside, "tcp", "203.0.113.1:8095"), "a")
	}
	connect := func(er EndpointRequest) {
		t.Helper()
		_, err := w.Connect(bg, "a", pid, er)
		check(t, err)
	}
	way("at the start", "green")
	connect(EndpointRequest{Network: "blue"})
	way("the first by name", "blue")
	connect(EndpointRequest{Network: "red"})
	way("both families", "red")
	check(t, w.Disconnect(bg, "a", pid, "blue"))
	connect(EndpointRequest{Network: "blue", Priority: 5})
	way("by priority", "blue")
	check(t, w.Disconnect(bg, "a", pid, "blue"))
	check(t, w.Disconnect(bg, "a", pid, "red"))
	connect(EndpointRequest{Network: "blue", Priority: -1})
	way("a lower priority than none", "green")
	check(t, w.Disconnect(bg, "a", pid, "green"))
	way("the only one", "blue")
}

// A container on several networks that starts again at once has its addresses of before on all of them: each is about to be free. Once only a container on one network had.
func TestAddressesOfSeveralNetworksAreKept(t *testing.T) {
	w := newWorld(t, nil)
	for _, name := range []string{"blue", "green", "red"} {
		w.network(t, Network{Name: name})
	}
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: on("blue", "green", "red")}
	first, err := w.Join(bg, req)
	check(t, err)
	check(t, w.Leave(bg, "a")) // its namespace is held open, and so are its interfaces
	again := w.join(t, req)
	for i, ep := range again.Endpoints {
		if ep.IPv4 != first.Endpoints[i].IPv4 {
			t.Errorf("%s: %s, and %s before", ep.Network, ep.IPv4, first.Endpoints[i].IPv4)
		}
	}
	check(t, first.CloseHandles())
}
