package remote

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

func TestJoinAnswers(t *testing.T) {
	read := func(text string) (Joined, error) {
		var a joinAnswer
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatal(err)
		}
		return a.read()
	}
	j, err := read(`{"InterfaceName": {"SrcName": "veth1", "DstPrefix": "eth", "DstName": "wan"}, "Gateway": "10.0.0.1/24", "GatewayIPv6": "fe80::1",
		"StaticRoutes": [{"Destination": "10.9.1.1/16", "RouteType": 1}, {"Destination": "0.0.0.0/0", "RouteType": 0, "NextHop": "10.0.0.9"}], "DisableGatewayService": true}`)
	if err != nil || j.Src != "veth1" || j.Prefix != "eth" || j.Name != "wan" || j.Gateway4 != netip.MustParseAddr("10.0.0.1") || j.Gateway6 != netip.MustParseAddr("fe80::1") ||
		!j.NoGatewayService || len(j.Routes) != 2 || j.Routes[0].Dst.String() != "10.9.0.0/16" || j.Routes[1].Via.String() != "10.0.0.9" {
		t.Errorf("%+v, %v", j, err)
	}
	if j, err := read(`{"InterfaceName": null}`); err != nil || j.Src != "" {
		t.Errorf("nothing said: %+v, %v", j, err)
	}
	if j, _ := read(`{"StaticRoutes": [{"Destination": "0.0.0.0/0", "RouteType": 1}]}`); !j.HasDefault(true) || j.HasDefault(false) {
		t.Errorf("a default route: %+v", j)
	}
	for _, bad := range []string{
		`{"InterfaceName": {"SrcName": "a/b"}}`, `{"InterfaceName": {"SrcName": ".."}}`, `{"InterfaceName": {"SrcName": "sixteen-letters-"}}`, `{"InterfaceName": {"SrcName": "a", "DstPrefix": "%d"}}`,
		`{"InterfaceName": {"SrcName": "a", "DstPrefix": "fourteen-lette"}}`, `{"InterfaceName": {"SrcName": "a b"}}`, `{"InterfaceName": {"SrcName": "lo"}}`, `{"InterfaceName": {"SrcName": "a", "DstName": "../x"}}`,
		`{"Gateway": "fe80::1"}`, `{"GatewayIPv6": "10.0.0.1"}`, `{"Gateway": "0.0.0.0"}`, `{"Gateway": "224.0.0.1"}`, `{"GatewayIPv6": "fe80::1%eth0"}`, `{"GatewayIPv6": "::ffff:10.0.0.1"}`,
		`{"StaticRoutes": [{"Destination": "10.0.0.0", "RouteType": 1}]}`, `{"StaticRoutes": [{"Destination": "10.0.0.0/8", "RouteType": 0}]}`, `{"StaticRoutes": [{"Destination": "10.0.0.0/8", "NextHop": "fe80::1"}]}`,
		`{"StaticRoutes": [{"Destination": "10.0.0.0/8", "RouteType": 1, "NextHop": "10.0.0.1"}]}`, `{"StaticRoutes": [{"Destination": "10.0.0.0/8", "RouteType": 2}]}`,
		`{"StaticRoutes": [` + strings.Repeat(`{"Destination": "10.0.0.0/8", "RouteType": 1},`, maxRoutes) + `{"Destination": "10.0.0.0/8", "RouteType": 1}]}`,
	} {
		if j, err := read(bad); err == nil {
			t.Errorf("%.100s: %+v", bad, j)
		}
	}
}

func TestEndpointAnswers(t *testing.T) {
	given := Interface{IPv4: netip.MustParsePrefix("10.0.0.2/24")}
	if made, err := (wireInterface{AddressIPv6: "fd00::2/64", MacAddress: "02-AA-bb-cc-dd-ee"}).fill(given); err != nil || made.IPv4 != given.IPv4 || made.IPv6.String() != "fd00::2/64" || made.MAC != "02:aa:bb:cc:dd:ee" {
		t.Errorf("%+v, %v", made, err)
	}
	for _, bad := range []wireInterface{{Address: "10.0.0.2/24"}, {AddressIPv6: "10.0.0.2/24"}, {AddressIPv6: "fd00::2"}, {AddressIPv6: "::1/128"}, {MacAddress: "01:00:5e:00:00:01"}, {MacAddress: "00:00:00:00:00:00"}, {MacAddress: "x"}} {
		if made, err := bad.fill(given); err == nil {
			t.Errorf("%+v: %+v", bad, made)
		}
	}
	if _, err := (wireInterface{MacAddress: "02:aa:bb:cc:dd:ee"}).fill(Interface{MAC: "02:aa:bb:cc:dd:ee"}); err == nil || !strings.Contains(err.Error(), "driver modified interface MAC address") {
		t.Errorf("the same hardware address: %v", err)
	}
}

func TestAddressAnswers(t *testing.T) {
	pool := netip.MustParsePrefix("10.1.0.0/16")
	if g, err := (poolAnswer{PoolID: "p", Pool: "10.1.2.3/16", Data: map[string]string{labelGateway: "10.1.0.1/16"}}).read(PoolRequest{}); err != nil || g.Subnet != pool || g.Gateway.String() != "10.1.0.1/16" {
		t.Errorf("%+v, %v", g, err)
	}
	for _, bad := range []poolAnswer{{}, {Pool: "10.1.0.0"}, {Pool: "fd00::/64"}, {Pool: "224.0.0.0/8"}, {Pool: "127.0.0.0/8"}, {Pool: "10.1.0.0/16", Data: map[string]string{labelGateway: "10.2.0.1/16"}}, {Pool: "::ffff:10.1.0.0/112"}} {
		if g, err := bad.read(PoolRequest{}); err == nil {
			t.Errorf("%+v: %+v", bad, g)
		}
	}
	if _, err := (poolAnswer{Pool: "10.2.0.0/16"}).read(PoolRequest{Subnet: pool}); err == nil {
		t.Error("another pool than the one that was asked for")
	}
	for _, good := range []string{"10.1.2.3/16", "10.1.2.3/32"} {
		if p, err := (addressAnswer{Address: good}).read(AddressRequest{Subnet: pool}); err != nil || p.String() != good {
			t.Errorf("%s: %v, %v", good, p, err)
		}
	}
	for _, bad := range []string{"", "10.1.2.3", "10.2.2.3/16", "10.1.2.3/8", "fd00::1/64", "x"} {
		if p, err := (addressAnswer{Address: bad}).read(AddressRequest{Subnet: pool}); err == nil {
			t.Errorf("%s: %v", bad, p)
		}
	}
	if _, err := (addressAnswer{Address: "10.1.2.3/16"}).read(AddressRequest{Subnet: pool, Want: netip.MustParseAddr("10.1.2.4")}); err == nil {
		t.Error("another address than the one that was asked for")
	}
}

// What a plugin answers is checked before anyone uses it: whatever it says, what comes out can be given to the kernel.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"InterfaceName": {"SrcName": "veth1", "DstPrefix": "eth"}, "Gateway": "10.0.0.1", "StaticRoutes": [{"Destination": "10.0.0.0/8", "RouteType": 0, "NextHop": "10.0.0.9"}]}`))
	f.Add([]byte(`{"Interface": {"Address": "10.0.0.2/24", "MacAddress": "02:aa:bb:cc:dd:ee"}, "PoolID": "p", "Pool": "10.0.0.0/24", "Data": {"com.docker.network.gateway": "10.0.0.1/24"}}`))
	f.Add([]byte(`{"Address": "fd00::2/64", "Scope": "local", "Interface": {"AddressIPv6": "fd00::3/64"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var join joinAnswer
		if json.Unmarshal(raw, &join) == nil {
			if j, err := join.read(); err == nil {
				for _, name := range []string{j.Src, j.Prefix, j.Name} {
					if len(name) > 15 || strings.ContainsAny(name, "/ \n\x00%") || name == ".." {
						t.Errorf("name %q", name)
					}
				}
				for _, r := range j.Routes {
					if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() || r.Via.IsValid() && r.Via.Is4() != r.Dst.Addr().Is4() {
						t.Errorf("route %+v", r)
					}
				}
			}
		}
		var ep struct{ Interface *wireInterface }
		if json.Unmarshal(raw, &ep) == nil && ep.Interface != nil {
			if i, err := ep.Interface.fill(Interface{}); err == nil && (i.IPv4.IsValid() && !i.IPv4.Addr().Is4() || i.IPv6.IsValid() && !i.IPv6.Addr().Is6()) {
				t.Errorf("interface %+v", i)
			}
		}
		var pool poolAnswer
		var addr addressAnswer
		if json.Unmarshal(raw, &pool) == nil && json.Unmarshal(raw, &addr) == nil {
			g, err := pool.read(PoolRequest{})
			if err == nil && (!g.Subnet.Addr().Is4() || g.Gateway.IsValid() && !g.Subnet.Contains(g.Gateway.Addr())) {
				t.Errorf("pool %+v", g)
			}
			if err == nil {
				if p, err := addr.read(AddressRequest{Subnet: g.Subnet}); err == nil && !g.Subnet.Contains(p.Addr()) {
					t.Errorf("address %v of %v", p, g.Subnet)
				}
			}
		}
	})
}
