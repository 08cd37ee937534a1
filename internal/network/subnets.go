package network

import (
	"net/netip"
	"strconv"
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
		for _, p := range nw.rec.IPAM.Pools {
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
		if r.Dst.IsValid() && r.Dst.Bits() > 0 || !r.Via.Is4() {
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
