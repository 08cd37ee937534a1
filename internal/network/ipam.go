package network

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
)

// subnet hands out the addresses of one pool, lowest first. It is guarded by Local.mu.
type subnet struct {
	prefix  netip.Prefix
	rng     netip.Prefix // addresses are taken from here
	gateway netip.Addr
	via     netip.Addr // what containers use as a gateway; normally the same
	chosen  bool       // by the engine
	used    map[netip.Addr]struct{}
	low     netip.Addr // everything of rng below is used
	// Who left addresses, so that they get them again. Each address and each owner is there at most once.
	last   map[string]netip.Addr
	lastOf map[netip.Addr]tenant
}

// tenant is who left an address.
type tenant struct {
	owner   string
	left    time.Time
	foreign bool // it had a hardware address of its own
}

// comesBack is how long an address is not given to others, if they can have another: who restarts finds it free.
const comesBack = 2 * time.Second

func newSubnet(p Pool) *subnet {
	s := &subnet{prefix: p.Subnet.Masked(), rng: p.Range, gateway: p.Gateway, via: p.Gateway, chosen: p.Chosen, used: map[netip.Addr]struct{}{},
		last: map[string]netip.Addr{}, lastOf: map[netip.Addr]tenant{}}
	if !s.rng.IsValid() {
		s.rng = s.prefix
	}
	s.rng = s.rng.Masked()
	s.low = s.rng.Addr()
	if s.prefix.Addr().Is4() && s.prefix.Bits() < 31 {
		s.used[s.prefix.Addr()] = struct{}{}
		s.used[netlink.LastAddr(s.prefix)] = struct{}{}
	}
	if s.prefix.Addr().Is6() && s.prefix.Bits() < 127 {
		s.used[s.prefix.Addr()] = struct{}{} // the subnet-router anycast address
	}
	if s.gateway.IsValid() {
		s.used[s.gateway] = struct{}{}
	}
	for _, a := range p.Aux {
		s.used[a] = struct{}{}
	}
	return s
}

// subnets are those that a network has of one address family; mostly there is one. An address that is of none of them, the zero Addr among them, is left alone.
type subnets []*subnet

// of is the subnet of an address, or nil.
func (list subnets) of(a netip.Addr) *subnet {
	for _, s := range list {
		if s.prefix.Contains(a) {
			return s
		}
	}
	return nil
}

func (list subnets) claim(a netip.Addr) bool {
	s := list.of(a)
	return s != nil && s.claim(a)
}

func (list subnets) release(a netip.Addr) {
	if s := list.of(a); s != nil {
		s.release(a)
	}
}

func (list subnets) remember(owner string, a netip.Addr, foreign bool) {
	if s := list.of(a); s != nil {
		s.remember(owner, a, foreign)
	}
}

// foreign says whether who had the address last had a hardware address of its own.
func (list subnets) foreign(a netip.Addr) bool {
	s := list.of(a)
	return s != nil && s.lastOf[a].foreign
}

// via is the gateway for who has the address.
func (list subnets) via(a netip.Addr) netip.Addr {
	if s := list.of(a); s != nil {
		return s.via
	}
	return netip.Addr{}
}

// usage counts.
func (s *subnet) usage() SubnetUsage {
	u := SubnetUsage{Subnet: s.prefix, InUse: uint64(len(s.used)), Free: math.MaxUint64}
	if bits := s.rng.Addr().BitLen() - s.rng.Bits(); bits < 64 {
		u.Free = 1 << bits
	}
	for a := range s.used {
		if s.rng.Contains(a) {
			u.Free--
		}
	}
	return u
}

// take hands out the lowest free address that nobody left a moment ago, or the lowest free one; ok is false when there is none.
func (s *subnet) take() (found netip.Addr, ok bool) {
	var recent netip.Addr
	for a := s.low; s.rng.Contains(a); a = a.Next() {
		if _, used := s.used[a]; used {
			continue
		}
		if t, left := s.lastOf[a]; !left || time.Since(t.left) >= comesBack {
			found = a
			break
		}
		if !recent.IsValid() {
			recent = a
		}
	}
	switch {
	case !found.IsValid() && !recent.IsValid():
		return found, false
	case !found.IsValid():
		found = recent
	}
	s.used[found] = struct{}{}
	if !recent.IsValid() || found == recent {
		s.low = found.Next()
	}
	return found, true
}

// claim takes one address; false when it is used.
func (s *subnet) claim(a netip.Addr) bool {
	if _, used := s.used[a]; used {
		return false
	}
	s.used[a] = struct{}{}
	return true
}

func (s *subnet) release(a netip.Addr) {
	delete(s.used, a)
	if s.rng.Contains(a) && a.Less(s.low) {
		s.low = a
	}
}

// remember notes who leaves an address.
func (s *subnet) remember(owner string, a netip.Addr, foreign bool) {
	delete(s.lastOf, s.last[owner])
	delete(s.last, s.lastOf[a].owner)
	s.last[owner], s.lastOf[a] = a, tenant{owner: owner, left: time.Now(), foreign: foreign}
}

// checkPool checks what a maker of a network asked for.
func checkPool(p Pool) error {
	if p.Subnet.Addr().Is4In6() {
		return errs.New(errs.Invalid, "invalid subnet %s : IPv4 in IPv6", p.Subnet)
	}
	if p.Subnet != p.Subnet.Masked() {
		return errs.New(errs.Invalid, "invalid subnet %s: it should be %s", p.Subnet, p.Subnet.Masked())
	}
	if p.Subnet.Addr().Is4() && p.Subnet.Bits() > 30 || p.Subnet.Bits() < 4 || p.Subnet.Bits() > 126 {
		return errs.New(errs.Invalid, "failed to allocate gateway (): No available addresses on this pool")
	}
	if p.Range.IsValid() {
		if p.Range != p.Range.Masked() {
			return errs.New(errs.Invalid, "invalid ip-range %s: it should be %s", p.Range, p.Range.Masked())
		}
		if p.Range.Bits() < p.Subnet.Bits() {
			return errs.New(errs.Invalid, "invalid ip-range %s: CIDR block is bigger than its parent subnet %s", p.Range, p.Subnet)
		}
		if !p.Subnet.Contains(p.Range.Addr()) {
			return errs.New(errs.Invalid, "invalid ip-range %s: parent subnet %s doesn't contain ip-range", p.Range, p.Subnet)
		}
	}
	if p.Gateway.IsValid() && !p.Subnet.Contains(p.Gateway) {
		return errs.New(errs.Invalid, "invalid gateway %s: parent subnet %s doesn't contain this address", p.Gateway, p.Subnet)
	}
	used := newSubnet(Pool{Subnet: p.Subnet})
	if p.Gateway.IsValid() && !used.claim(p.Gateway) {
		return errs.New(errs.Forbidden, "failed to allocate gateway (%s): Address already in use", p.Gateway)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Aux)) {
		switch a := p.Aux[name]; {
		case !p.Subnet.Contains(a):
			return errs.New(errs.Invalid, "invalid auxiliary address %s: parent subnet %s doesn't contain this address (%s)", a, p.Subnet, name)
		case !used.claim(a):
			return errs.New(errs.Forbidden, "failed to allocate secondary ip address (%s:%s): Address already in use", name, a)
		}
	}
	return nil
}

// chooseGateways gives the pools that name no gateway one: the first address that is not kept for something else, of the range if there is one, as Docker. A network that the
// host has no part in has none.
func (nw *Network) chooseGateways() error {
	read := &network{rec: *nw}
	if nw.Driver == nameBridge {
		if err := read.readOptions(); err != nil {
			return err
		}
	}
	for i, p := range nw.IPAM.Pools {
		if p.Gateway.IsValid() || read.mode(p.Subnet.Addr()) == modeIsolated {
			continue
		}
		gw, ok := newSubnet(p).take()
		if !ok {
			return errs.New(errs.Invalid, "failed to allocate gateway (): No available addresses on this pool")
		}
		nw.IPAM.Pools[i].Gateway = gw
	}
	return nil
}

// macOf derives a hardware address from an IPv4 address, as Docker long did: who gets an address again after another
// also gets its hardware address, so that no neighbour holds a stale entry.
func macOf(a netip.Addr) net.HardwareAddr {
	raw := a.As4()
	return net.HardwareAddr{0x02, 0x42, raw[0], raw[1], raw[2], raw[3]}
}

// linkName is the name of the host's end of an endpoint's veth. It tells the address, so that a listing of links reads as a listing of containers. Where several engines
// run on one host, all but that of the default table tell their table, too: nobody keeps their networks from having the same addresses, and a link of a known name
// is taken for a stale one of ours.
func linkName(table string, ep Endpoint) string {
	switch {
	case !ep.IPv4.IsValid():
		return "cv" + ep.ID[:10]
	case table == defaultTable:
		return fmt.Sprintf("cv%x", ep.IPv4.Addr().AsSlice())
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(table))
	return fmt.Sprintf("cv%x-%04x", ep.IPv4.Addr().AsSlice(), h.Sum32()&0xffff) // 15 characters, the most that the kernel takes
}

func (l *Local) linkName(ep Endpoint) string { return linkName(l.opt.Table, ep) }
