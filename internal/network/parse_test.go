package network

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

func TestSubnetHandsOutLowestFirst(t *testing.T) {
	nw := Network{Driver: nameBridge, IPAM: IPAM{Pools: []Pool{{Subnet: netip.MustParsePrefix("10.1.0.0/29"), Aux: map[string]netip.Addr{"router": netip.MustParseAddr("10.1.0.2")}}}}}
	check(t, nw.chooseGateways())
	s := newSubnet(nw.IPAM.Pools[0])
	var got []string
	for a, ok := s.take(); ok; a, ok = s.take() {
		got = append(got, a.String())
	}
	if want := "10.1.0.3 10.1.0.4 10.1.0.5 10.1.0.6"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	s.release(netip.MustParseAddr("10.1.0.4"))
	if a, ok := s.take(); !ok || a.String() != "10.1.0.4" {
		t.Errorf("after release: %v", a)
	}
}

func TestSubnetKeepsWhatWasJustLeft(t *testing.T) {
	s := newSubnet(Pool{Subnet: netip.MustParsePrefix("10.1.0.0/29"), Gateway: netip.MustParseAddr("10.1.0.1")})
	leave := func(owner, a string) {
		s.remember(owner, netip.MustParseAddr(a), false)
		s.release(netip.MustParseAddr(a))
	}
	take := func(want string) {
		t.Helper()
		if a, ok := s.take(); !ok || a.String() != want {
			t.Errorf("got %v, want %s", a, want)
		}
	}
	take("10.1.0.2")
	take("10.1.0.3")
	leave("web", "10.1.0.2")
	take("10.1.0.4")
	take("10.1.0.5")
	take("10.1.0.6")
	leave("db", "10.1.0.6")
	take("10.1.0.2") // nothing else is left
	take("10.1.0.6")
	if a, ok := s.take(); ok {
		t.Errorf("%v from a full subnet", a)
	}
	leave("web", "10.1.0.2")
	old := s.lastOf[netip.MustParseAddr("10.1.0.2")]
	old.left = old.left.Add(-comesBack)
	s.lastOf[netip.MustParseAddr("10.1.0.2")] = old
	take("10.1.0.2")
}

func TestBadPools(t *testing.T) {
	pfx, addr := netip.MustParsePrefix, netip.MustParseAddr
	for _, c := range []struct {
		pool Pool
		want string
	}{
		{Pool{Subnet: pfx("10.1.2.3/24")}, "it should be 10.1.2.0/24"},
		{Pool{Subnet: pfx("10.1.2.0/31")}, "No available addresses on this pool"},
		{Pool{Subnet: pfx("10.1.2.0/24"), Gateway: addr("10.1.3.1")}, "invalid gateway"},
		{Pool{Subnet: pfx("10.1.2.0/24"), Range: pfx("10.2.0.0/24")}, "invalid ip-range"},
		{Pool{Subnet: pfx("10.1.2.0/24"), Aux: map[string]netip.Addr{"x": addr("10.1.3.1")}}, "invalid auxiliary address"},
	} {
		if err := checkPool(c.pool); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %s", c.pool, err, c.want)
		}
	}
}

func TestFreeSubnetAvoidsTheHosts(t *testing.T) {
	o := Options{}.withDefaults()
	p, err := freeSubnet(o.Pools, []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("172.16.0.0/12")})
	if err != nil || p.String() != "192.168.0.0/20" {
		t.Errorf("%v %v", p, err)
	}
	_, err = freeSubnet(o.Pools, []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")})
	if err == nil || !strings.Contains(err.Error(), "fully subnetted") {
		t.Error(err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"ID":"` + strings.Repeat("a", 64) + `","Name":"blue","Driver":"bridge","IPAM":{"Pools":[{"Subnet":"10.0.0.0/8"}]}}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		var rec stored
		if json.Unmarshal(p, &rec) == nil && rec.Check(strings.Repeat("a", 64)) == nil {
			_, _ = (&Local{}).live(rec.Network)
		}
	})
}

func FuzzAlias(f *testing.F) {
	f.Add("corten corten abcdefabcdef 10.0.0.2/16 - abcdefabcdef")
	f.Fuzz(func(t *testing.T, s string) {
		if table, _, ep, ok := parseAlias(s); ok {
			_ = linkName(table, Endpoint{ID: ep.ID + "0123456789", IPv4: ep.IPv4})
		}
	})
}
