package network

import (
	"net/netip"
	"slices"
	"strconv"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// takenSubnets are the subnets of the host's routes and addresses and of all our networks. The address of the interface named own is told apart.
func (l *Local) takenSubnets(own string) (taken []netip.Prefix, ownAddr netip.Prefix, err error) {
	c, err := l.rt.Take()
	if err != nil {
		return nil, ownAddr, err
	}
	defer l.rt.Give(c)
	ownIndex := -1
	if link, err := c.LinkByName(own); err == nil {
		ownIndex = link.Index
	}
	addrs, err := c.Addrs()
	if err != nil {
		return nil, ownAddr, err
	}
	for _, a := range addrs {
		if a.Index == ownIndex && a.Prefix.Addr().Is4() {
			ownAddr = a.Prefix
		} else if a.Index != ownIndex && !a.Prefix.Addr().IsLinkLocalUnicast() {
			taken = append(taken, a.Prefix.Masked())
		}
	}
	routes, err := c.Routes()
	if err != nil {
		return nil, ownAddr, err
	}
	for _, r := range routes {
		if r.Index != ownIndex && r.Dst.IsValid() && r.Dst.Bits() > 0 && !r.Dst.Addr().IsLinkLocalUnicast() {
			taken = append(taken, r.Dst)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, nw := range l.nets {
		for _, p := range nw.pools() {
			taken = append(taken, p.Subnet)
		}
	}
	for _, c := range l.coming {
		for _, p := range c.pools {
			taken = append(taken, p.Subnet)
		}
	}
	return taken, ownAddr, nil
}

// hostMTU is the MTU of the interface of the host's default route: frames of containers then pass it whole.
func (l *Local) hostMTU() int {
	c, err := l.rt.Take()
	if err != nil {
		return 1500
	}
	defer l.rt.Give(c)
	routes, err := c.Routes()
	if err != nil {
		return 1500
	}
	for _, r := range routes {
		if r.Table != unix.RT_TABLE_MAIN || r.Dst.IsValid() && r.Dst.Bits() > 0 || !r.Via.Is4() {
			continue
		}
		links, err := c.Links("")
		if err != nil {
			return 1500
		}
		for _, link := range links {
			if link.Index == r.Index && link.MTU >= 68 {
				return link.MTU
			}
		}
	}
	return 1500
}

// uniqueLocal is a subnet of the unique local range, the same for the same id.
func uniqueLocal(id string) netip.Prefix {
	raw := [16]byte{0xfd}
	for i := 1; i < 8; i++ {
		v, _ := strconv.ParseUint(id[2*i:2*i+2], 16, 8)
		raw[i] = byte(v)
	}
	return netip.PrefixFrom(netip.AddrFrom16(raw), 64)
}

// checkPools checks the pools that were asked for, and leaves out those of families that the network does not have.
func (l *Local) checkPools(rec *Network) error {
	var have4, have6 int
	for _, p := range rec.IPAM.Pools {
		if !p.Subnet.IsValid() {
			if p.Range.IsValid() || p.Gateway.IsValid() || len(p.Aux) > 0 {
				return errs.New(errs.Invalid, "invalid subnet: a gateway, ip-range or auxiliary address needs one")
			}
			continue
		}
		if err := checkPool(p); err != nil {
			return err
		}
		if p.Subnet.Addr().Is4() {
			have4++
		} else {
			have6++
		}
	}
	if have6 > 0 && !rec.EnableIPv6 || have4 > 0 && !rec.EnableIPv4 { // as Docker: files that name a subnet of each family are common, and IPv6 is asked for apart
		l.log.Warn("a subnet is left out: its address family is not enabled for the network", "network", rec.Name)
	}
	rec.IPAM.Pools = slices.DeleteFunc(rec.IPAM.Pools, func(p Pool) bool {
		return !p.Subnet.IsValid() || p.Subnet.Addr().Is6() && !rec.EnableIPv6 || p.Subnet.Addr().Is4() && !rec.EnableIPv4
	})
	if rec.Driver == nameBridge && (have4 > 1 && rec.EnableIPv4 || have6 > 1 && rec.EnableIPv6) {
		return errs.New(errs.Forbidden, "%s driver doesn't support multiple subnets", rec.Driver)
	}
	return nil
}

// sortPools puts those of IPv4 first.
func (nw *Network) sortPools() {
	slices.SortStableFunc(nw.IPAM.Pools, func(a, b Pool) int { return a.Subnet.Addr().BitLen() - b.Subnet.Addr().BitLen() })
}

// chooseSubnets checks the pools that were asked for and finds those that were not.
func (l *Local) chooseSubnets(rec *Network) error {
	if rec.IPAM.Driver == ipamNull {
		return rec.noAddresses()
	}
	if err := l.checkPools(rec); err != nil {
		return err
	}
	has := func(is4 bool) bool {
		return slices.ContainsFunc(rec.IPAM.Pools, func(p Pool) bool { return p.Subnet.Addr().Is4() == is4 })
	}
	taken, _, err := l.takenSubnets("")
	if err != nil {
		return err
	}
	ours := l.ourSubnets()
	for _, p := range rec.IPAM.Pools {
		if overlapsAny(p.Subnet, ours) {
			return errs.New(errs.Forbidden, "invalid pool request: Pool overlaps with other one on this address space")
		}
		ours = append(ours, p.Subnet)
	}
	if rec.EnableIPv4 && !has(true) {
		subnet, err := freeSubnet(ofFamily(l.opt.Pools, true), taken)
		if err != nil {
			return err
		}
		rec.IPAM.Pools = append(rec.IPAM.Pools, Pool{Subnet: subnet, Chosen: true})
	}
	if rec.EnableIPv6 && !has(false) {
		subnet := uniqueLocal(newID())
		if ranges := ofFamily(l.opt.Pools, false); len(ranges) > 0 {
			if subnet, err = freeSubnet(ranges, taken); err != nil {
				return err
			}
		}
		rec.IPAM.Pools = append(rec.IPAM.Pools, Pool{Subnet: subnet, Chosen: true})
	}
	rec.sortPools()
	return rec.chooseGateways()
}

// pools are those that are the network's own.
func (nw *network) pools() []Pool {
	if nw.rec.ConfigOnly {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(nw.rec.IPAM.Pools), func(p Pool) bool { return anyAddress(p.Subnet) })
}

// ourSubnets are those of the engine's own address manager: those of others may be the same ones, if a plugin keeps them apart.
func (l *Local) ourSubnets() (all []netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.coming {
		for _, p := range c.pools {
			all = append(all, p.Subnet)
		}
	}
	for _, nw := range l.nets {
		if nw.ipam != nil && nw.byPlugin() {
			continue
		}
		for _, p := range nw.pools() {
			all = append(all, p.Subnet)
		}
	}
	return all
}

// freeSubnet finds a subnet of the ranges of a family that overlaps none of the taken ones.
func freeSubnet(ranges []PoolRange, taken []netip.Prefix) (netip.Prefix, error) {
	for _, r := range ranges {
		base := r.Base.Masked()
		if r.Size < base.Bits() || r.Size > base.Addr().BitLen()-2 {
			continue
		}
		for i := uint32(0); i>>min(r.Size-base.Bits(), maxSubnetBits) == 0; i++ {
			if p := nthSubnet(base, r.Size, i); !overlapsAny(p, taken) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, errs.New(errs.Conflict, "all predefined address pools have been fully subnetted")
}

// maxSubnetBits bounds how many subnets of one range are looked at: a million.
const maxSubnetBits = 20

// nthSubnet is the subnet number i, of size bits, of a prefix.
func nthSubnet(base netip.Prefix, size int, i uint32) netip.Prefix {
	raw := base.Addr().AsSlice()
	for bit := size - 1; i > 0; bit, i = bit-1, i>>1 {
		raw[bit/8] |= byte(i&1) << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(a, size)
}

// ofFamily are the ranges of IPv4 or IPv6.
func ofFamily(ranges []PoolRange, is4 bool) (list []PoolRange) {
	for _, r := range ranges {
		if r.Base.Addr().Is4() == is4 {
			list = append(list, r)
		}
	}
	return list
}

func overlapsAny(p netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.IsValid() && p.Overlaps(t) {
			return true
		}
	}
	return false
}
