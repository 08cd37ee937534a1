package network

import (
	"net/netip"
	"strings"
	"testing"
)

// What tools and people know from Docker's engine, word for word.
func TestRefusalsAreDockers(t *testing.T) {
	w := newWorld(t, nil)
	w.network(t, Network{Name: "taken", IPAM: IPAM{Pools: []Pool{{Subnet: netip.MustParsePrefix("10.232.1.0/24")}}}})
	pools := func(subnets ...string) (ipam IPAM) {
		for _, s := range subnets {
			ipam.Pools = append(ipam.Pools, Pool{Subnet: netip.MustParsePrefix(s)})
		}
		return ipam
	}
	kept := func(list ...string) IPAM {
		p := Pool{Subnet: netip.MustParsePrefix("10.232.3.0/24"), Gateway: netip.MustParseAddr("10.232.3.1"), Aux: map[string]netip.Addr{}}
		for _, one := range list {
			name, addr, _ := strings.Cut(one, "=")
			p.Aux[name] = netip.MustParseAddr(addr)
		}
		return IPAM{Pools: []Pool{p}}
	}
	option := func(key, value string) map[string]string { return map[string]string{key: value} }
	for want, nw := range map[string]Network{
		"invalid subnet 10.232.2.5/24: it should be 10.232.2.0/24":                       {IPAM: pools("10.232.2.5/24")},
		"invalid pool request: Pool overlaps with other one on this address space":       {IPAM: pools("10.232.1.0/25")},
		"bridge driver doesn't support multiple subnets":                                 {IPAM: pools("10.232.3.0/24", "10.232.4.0/24")},
		"failed to allocate gateway (): No available addresses on this pool":             {IPAM: pools("10.232.3.0/32")},
		"failed to allocate gateway (10.232.3.0): Address already in use":                {IPAM: IPAM{Pools: []Pool{{Subnet: netip.MustParsePrefix("10.232.3.0/24"), Gateway: netip.MustParseAddr("10.232.3.0")}}}},
		"failed to allocate gateway (10.232.3.255): Address already in use":              {IPAM: IPAM{Pools: []Pool{{Subnet: netip.MustParsePrefix("10.232.3.0/24"), Gateway: netip.MustParseAddr("10.232.3.255")}}}},
		"failed to allocate secondary ip address (b:10.232.3.9): Address already in use": {IPAM: kept("a=10.232.3.9", "b=10.232.3.9")},
		"failed to allocate secondary ip address (a:10.232.3.1): Address already in use": {IPAM: kept("a=10.232.3.1")},
		"failed to allocate secondary ip address (a:10.232.3.0): Address already in use": {IPAM: kept("a=10.232.3.0")},
		"ipv4 pool is empty":                             {Driver: "macvlan", IPAM: IPAM{Driver: "null"}},
		"ipv6 pool is empty":                             {Driver: "macvlan", EnableIPv6: true, Options: option(optIPv4, "false"), IPAM: IPAM{Driver: "null"}},
		`plugin "nodriver" not found`:                    {Driver: "nodriver"},
		`plugin "nope" not found`:                        {IPAM: IPAM{Driver: "nope"}},
		`plugin "none" not found`:                        {Driver: "none"},
		`only one instance of "host" network is allowed`: {Driver: "host"},
		"failed to parse " + optICC + ` value: maybe (strconv.ParseBool: parsing "maybe": inv`: {Options: option(optICC, "maybe")},
		"failed to parse " + optMTU + ` value: foo (strconv.Atoi: parsing "foo": invalid syn`:  {Options: option(optMTU, "foo")},
		"invalid MTU number: -1":                             {Options: option(optMTU, "-1")},
		"failed to parse " + optHostIP + " value: foo (":     {Options: option(optHostIP, "foo")},
		"network with name taken already exists":             {Name: "taken"},
		"operation is not permitted on predefined host netw": {Name: "host"},
	} {
		if nw.Name == "" {
			nw.Name = "x"
		}
		if _, err := w.Create(bg, nw); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	// A file that names a subnet of each family and does not ask for IPv6 is no mistake.
	if nw := w.network(t, Network{Name: "both", IPAM: pools("10.232.5.0/24", "fd00:77::/64")}); nw.EnableIPv6 || len(nw.IPAM.Pools) != 1 || !nw.IPAM.Pools[0].Subnet.Addr().Is4() {
		t.Errorf("made %+v", nw)
	}
}
