// Package networktest judges a driver of the network room by its contract.
//
// It owns nothing; it promises to leave the given manager as it found it, but open.
package networktest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
)

// Run runs the suite; open makes a fresh manager for each part.
func Run(t *testing.T, open func(*testing.T) network.Manager) {
	t.Run("networks", func(t *testing.T) { networks(t, open(t)) })
	t.Run("sandboxes", func(t *testing.T) { sandboxes(t, open(t)) })
	t.Run("addresses", func(t *testing.T) { addresses(t, open(t)) })
	t.Run("ports", func(t *testing.T) { ports(t, open(t)) })
}

var ctx = context.Background()

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %q of kind %v", err, text, kind)
	}
}

func networks(t *testing.T, m network.Manager) {
	for _, name := range []string{"bridge", "host", "none"} {
		nw := must[network.Network](t)(m.Get(ctx, name))
		if !nw.Predefined || len(nw.ID) != 64 {
			t.Errorf("%s: %+v", name, nw)
		}
		refused(t, m.Remove(ctx, name), errs.Forbidden, "pre-defined network")
	}
	_, err := m.Create(ctx, network.Network{Name: "bridge"})
	refused(t, err, errs.Forbidden, "predefined bridge network")
	nw := must[network.Network](t)(m.Create(ctx, network.Network{Name: "blue", Labels: map[string]string{"a": "b"}}))
	if nw.Driver != "bridge" || nw.Labels["a"] != "b" || len(nw.IPAM.Pools) != 1 || !nw.IPAM.Pools[0].Subnet.Contains(nw.IPAM.Pools[0].Gateway) {
		t.Errorf("made %+v", nw)
	}
	_, err = m.Create(ctx, network.Network{Name: "blue"})
	refused(t, err, errs.Conflict, "network with name blue already exists")
	_, err = m.Create(ctx, network.Network{Name: "green", IPAM: network.IPAM{Pools: []network.Pool{{Subnet: nw.IPAM.Pools[0].Subnet}}}})
	refused(t, err, errs.Forbidden, "Pool overlaps with other one on this address space")
	_, err = m.Create(ctx, network.Network{Name: " "})
	refused(t, err, errs.Invalid, "name")
	for _, ref := range []string{"blue", nw.ID, nw.ID[:12]} {
		if got := must[network.Network](t)(m.Get(ctx, ref)); got.ID != nw.ID {
			t.Errorf("get %s: %+v", ref, got)
		}
	}
	if all := must[[]network.Network](t)(m.List(ctx)); len(all) != 4 || all[3].Name != "blue" {
		t.Errorf("list: %+v", all)
	}
	ok(t, m.Remove(ctx, "blue"))
	_, err = m.Get(ctx, "blue")
	refused(t, err, errs.NotFound, "network blue not found")
	refused(t, m.Remove(ctx, "blue"), errs.NotFound, "network blue not found")
}

func join(t *testing.T, m network.Manager, req network.JoinRequest) *network.Sandbox {
	t.Helper()
	sb := must[*network.Sandbox](t)(m.Join(ctx, req))
	t.Cleanup(func() { sb.CloseHandles() })
	return sb
}

func sandboxes(t *testing.T, m network.Manager) {
	must[network.Network](t)(m.Create(ctx, network.Network{Name: "blue"}))
	sb := join(t, m, network.JoinRequest{Owner: "one", Name: "web", Endpoints: []network.EndpointRequest{{Network: "blue", Aliases: []string{"www"}}}})
	if len(sb.Endpoints) != 1 || sb.Endpoints[0].Interface != "eth0" || sb.Endpoints[0].MAC == "" || len(sb.ResolvConf) == 0 {
		t.Errorf("made %+v", sb)
	}
	_, err := m.Join(ctx, network.JoinRequest{Owner: "one"})
	refused(t, err, errs.Conflict, "there already")
	_, err = m.Join(ctx, network.JoinRequest{Owner: "two", Endpoints: []network.EndpointRequest{{Network: "red"}}})
	refused(t, err, errs.NotFound, "network red not found")
	if _, there := m.Sandbox("two"); there {
		t.Error("a failed join left a sandbox")
	}
	refused(t, m.Remove(ctx, "blue"), errs.Forbidden, "has active endpoints")
	if eps := must[map[string]network.Endpoint](t)(m.Endpoints(ctx, "blue")); len(eps) != 1 || eps["one"].ID != sb.Endpoints[0].ID {
		t.Errorf("endpoints %+v", eps)
	}
	raw := must[[]byte](t)(json.Marshal(sb))
	var back network.Sandbox
	ok(t, json.Unmarshal(raw, &back))
	if back.Endpoints[0].IPv4 != sb.Endpoints[0].IPv4 {
		t.Errorf("stored and read again: %s", raw)
	}
	ok(t, m.Leave(ctx, "one"))
	ok(t, m.Leave(ctx, "one"))
	ok(t, m.Remove(ctx, "blue"))
}

func addresses(t *testing.T, m network.Manager) {
	pool := network.Pool{Subnet: netip.MustParsePrefix("10.98.7.0/24")}
	must[network.Network](t)(m.Create(ctx, network.Network{Name: "blue", IPAM: network.IPAM{Pools: []network.Pool{pool}}}))
	want := netip.MustParseAddr("10.98.7.77")
	req := network.JoinRequest{Owner: "one", Name: "web", Endpoints: []network.EndpointRequest{{Network: "blue", IPv4: want}}}
	if sb := join(t, m, req); sb.Endpoints[0].IPv4.Addr() != want {
		t.Errorf("made %+v", sb.Endpoints)
	}
	usage := must[[]network.SubnetUsage](t)(m.Usage(ctx, "blue"))
	if len(usage) != 1 || usage[0].Subnet != pool.Subnet || usage[0].InUse < 2 || usage[0].InUse+usage[0].Free != 256 {
		t.Errorf("usage %+v", usage)
	}
	req.Owner = "two"
	_, err := m.Join(ctx, req)
	refused(t, err, errs.Forbidden, "Address already in use")
	req.Endpoints[0].IPv4 = netip.MustParseAddr("10.98.8.1")
	_, err = m.Join(ctx, req)
	refused(t, err, errs.Invalid, "10.98.8.1")
	_, err = m.Join(ctx, network.JoinRequest{Owner: "two", Endpoints: []network.EndpointRequest{{Network: "bridge", IPv4: want}}})
	refused(t, err, errs.Invalid, "user specified IP address is supported on user defined networks only")
	ok(t, m.Leave(ctx, "one"))
	req.Endpoints[0].IPv4 = want // free again at once, as a restart needs it
	join(t, m, req)
	ok(t, m.Leave(ctx, "two"))
	ok(t, m.Remove(ctx, "blue"))
}

// setPorts changes what "one" publishes, which is first fixed; the ports of ranged are all taken by it and "two".
func setPorts(t *testing.T, m network.Manager, fixed, ranged network.Port) {
	shows := func(want ...uint16) {
		t.Helper()
		sb, _ := m.Sandbox("one")
		var have []uint16
		for _, p := range sb.Ports {
			have = append(have, p.HostPort)
		}
		if fmt.Sprint(have) != fmt.Sprint(want) {
			t.Errorf("published are %v, want %v", have, want)
		}
	}
	other := fixed
	other.HostPort, other.ContainerPort = 18085, 81
	ok(t, m.SetPorts(ctx, "one", []network.Port{fixed, other}))
	shows(18080, 18085)
	refused(t, m.SetPorts(ctx, "one", []network.Port{other, ranged}), errs.Conflict, "port is already allocated")
	shows(18080, 18085)
	ok(t, m.SetPorts(ctx, "one", []network.Port{other}))
	shows(18085)
	ok(t, m.SetPorts(ctx, "one", []network.Port{other, ranged}))
	shows(18085, 18080)
	refused(t, m.SetPorts(ctx, "nobody", nil), errs.NotFound, "sandbox of nobody not found")
}

func ports(t *testing.T, m network.Manager) {
	fixed := network.Port{Proto: "tcp", ContainerPort: 80, HostPort: 18080, HostIP: netip.MustParseAddr("127.0.0.1")}
	join(t, m, network.JoinRequest{Owner: "one", Name: "one", Ports: []network.Port{fixed}})
	_, err := m.Join(ctx, network.JoinRequest{Owner: "two", Name: "two", Ports: []network.Port{fixed}})
	refused(t, err, errs.Conflict, ":18080 failed: port is already allocated")
	ranged := fixed
	ranged.HostPortEnd = 18081
	if sb := join(t, m, network.JoinRequest{Owner: "two", Name: "two", Ports: []network.Port{ranged}}); sb.Ports[0].HostPort != 18081 {
		t.Errorf("of a range: %+v", sb.Ports)
	}
	random := fixed
	random.HostPort = 0
	if sb := join(t, m, network.JoinRequest{Owner: "three", Ports: []network.Port{random}}); sb.Ports[0].HostPort == 0 {
		t.Errorf("random: %+v", sb.Ports)
	}
	ok(t, m.Leave(ctx, "one"))
	join(t, m, network.JoinRequest{Owner: "one", Ports: []network.Port{fixed}})
	setPorts(t, m, fixed, ranged)
	for _, owner := range []string{"one", "two", "three"} {
		ok(t, m.Leave(ctx, owner))
	}
}
