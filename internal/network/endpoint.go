package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// dyingError says that an address (or any, when that is zero) is not free yet, but would be after a reap: what holds it is only waiting for the kernel
// to take it down, or will be in the pool of ready ones in a moment.
// err is what to say when that does not come true.
type dyingError struct {
	addr netip.Addr
	err  error
}

func (d *dyingError) Error() string { return d.err.Error() }
func (d *dyingError) Unwrap() error { return d.err }

// newEndpoint takes the addresses of a new endpoint: those that were asked for, else those that the owner named again had before if nobody else has them, else the next
// free ones. mu is held.
func (l *Local) newEndpoint(nw *network, er EndpointRequest, again string) (Endpoint, error) {
	ep := Endpoint{Network: nw.rec.Name, NetworkID: nw.rec.ID, ID: newID()}
	if (er.IPv4.IsValid() || er.IPv6.IsValid()) && nw.rec.Predefined {
		return ep, errs.New(errs.Invalid, "user specified IP address is supported on user defined networks only")
	}
	if err := errors.Join(ep.readOptions(er.Options, nw.byPlugin()), checkLinkLocal(er.LinkLocal)); err != nil {
		return ep, err
	}
	ep.LinkLocal, ep.Links = er.LinkLocal, er.Links
	switch d := nw.drv.(type) {
	case *unusable:
		return ep, d.refuse()
	case *onParent:
		if err := d.mayJoin(&er); err != nil {
			return ep, err
		}
	}
	if nw.index == 0 && !nw.byPlugin() {
		return ep, errs.New(errs.Unavailable, "network %s has no bridge on this host", nw.rec.Name)
	}
	var err error
	if ep.IPv4, ep.IPv6, err = l.addresses(nw, er, again); err != nil {
		return ep, err
	}
	nw.findGateways(&ep)
	switch {
	case er.MAC != "":
		mac, err := net.ParseMAC(er.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			l.dropEndpoint("", ep, true)
			return ep, errs.New(errs.Invalid, "invalid mac address %s", er.MAC)
		}
		ep.MAC = mac.String()
	case !nw.plugged(): // else it is known when the plugins were asked: see enroll
		ep.MAC = derivedMAC(ep).String()
	}
	return ep, nil
}

// findGateways sets an endpoint's gateways, now that its addresses are known, unless a plugin does.
func (nw *network) findGateways(ep *Endpoint) {
	if !nw.rec.Internal && !nw.byDevice() && !nw.byPlugin() {
		ep.Gateway4, ep.Gateway6 = nw.v4.via(ep.IPv4.Addr()), nw.v6.via(ep.IPv6.Addr())
	}
}

// addresses takes the addresses of both families, or none. Those of a plugin are not taken here, only what nobody can have is refused. mu is held.
func (l *Local) addresses(nw *network, er EndpointRequest, again string) (a4, a6 netip.Prefix, err error) {
	if nw.ipam != nil {
		return a4, a6, errors.Join(nw.mayAsk(nw.v4, er.IPv4), nw.mayAsk(nw.v6, er.IPv6))
	}
	if a4, err = l.address(nw, nw.v4, er.IPv4, again); err != nil {
		return a4, a6, err
	}
	if a6, err = l.address(nw, nw.v6, er.IPv6, again); err != nil {
		nw.v4.release(a4.Addr())
	}
	return a4, a6, err
}

// mayAsk refuses addresses that the network's subnets of a family cannot have.
func (nw *network) mayAsk(list subnets, want netip.Addr) error {
	switch {
	case !want.IsValid():
		return nil
	case len(list) == 0:
		return errs.New(errs.Invalid, "network %s has no %s subnet for address %s", nw.rec.Name, familyName(want), want)
	case list[0].chosen: // then it is the only one
		return errs.New(errs.Invalid, "user specified IP address is supported only when connecting to networks with user configured subnets")
	case list.of(want) == nil:
		return errs.New(errs.Invalid, "invalid address %s: It does not belong to any of this network's subnets", want)
	}
	return nil
}

// derivedMAC is the hardware address of who has the endpoint's addresses and names none.
func derivedMAC(ep Endpoint) net.HardwareAddr {
	if ep.IPv4.IsValid() {
		return macOf(ep.IPv4.Addr())
	}
	if !ep.IPv6.IsValid() {
		return randomMAC()
	}
	raw := ep.IPv6.Addr().As16()
	return net.HardwareAddr{0x02, 0x42, raw[12], raw[13], raw[14], raw[15]}
}

// address takes the wanted address of a network's subnets of one family, or the one that its owner had before, or the next free one. mu is held.
func (l *Local) address(nw *network, list subnets, want netip.Addr, again string) (netip.Prefix, error) {
	if err := nw.mayAsk(list, want); err != nil {
		return netip.Prefix{}, err
	}
	switch {
	case len(list) == 0:
		return netip.Prefix{}, nil
	case want.IsValid():
		if s := list.of(want); s.claim(want) {
			return netip.PrefixFrom(want, s.prefix.Bits()), nil
		}
		err := errs.New(errs.Forbidden, "Address already in use")
		if l.reap.holdsAddr(want) {
			err = &dyingError{want, err}
		}
		return netip.Prefix{}, err
	}
	for _, s := range list {
		a, ok := s.last[again]
		if !ok || again == "" {
			continue
		}
		if s.claim(a) {
			return netip.PrefixFrom(a, s.prefix.Bits()), nil
		}
		if l.reap.holdsAddr(a) {
			return netip.Prefix{}, &dyingError{a, errs.New(errs.Forbidden, "Address already in use")}
		}
	}
	for _, s := range list { // the first one that has an address left, as Docker
		if a, ok := s.take(); ok {
			return netip.PrefixFrom(a, s.prefix.Bits()), nil
		}
	}
	err := errs.New(errs.Unavailable, "no available %s addresses on this network's address pools: %s (%s)", familyName(list[0].prefix.Addr()), nw.rec.Name, nw.rec.ID)
	if slices.ContainsFunc(list, l.reap.holds) || nw.isDefault && l.pool.making != nil {
		err = &dyingError{netip.Addr{}, err}
	}
	return netip.Prefix{}, err
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// dropEndpoint takes an endpoint off its network; its addresses only with free. mu is held.
func (l *Local) dropEndpoint(owner string, ep Endpoint, free bool) {
	nw := l.nets[ep.NetworkID]
	if nw == nil {
		return
	}
	if at := nw.eps[owner]; at != nil && at.ID == ep.ID {
		delete(nw.eps, owner)
	}
	if free {
		nw.free(ep)
	}
}

func (nw *network) free(ep Endpoint) {
	nw.v4.release(ep.IPv4.Addr())
	nw.v6.release(ep.IPv6.Addr())
}

// claim takes the addresses of an endpoint that has them already.
func (nw *network) claim(ep Endpoint) {
	nw.v4.claim(ep.IPv4.Addr())
	nw.v6.claim(ep.IPv6.Addr())
}

// remember notes what an owner had, so that it gets it again when it comes back and nobody else has it. mu is held.
func (l *Local) remember(owner string, ep Endpoint) {
	nw := l.nets[ep.NetworkID]
	if nw == nil {
		return
	}
	nw.v4.remember(owner, ep.IPv4.Addr(), ep.foreignMAC())
	nw.v6.remember(owner, ep.IPv6.Addr(), ep.foreignMAC())
}

func (ep Endpoint) foreignMAC() bool { return ep.MAC != derivedMAC(ep).String() }

// unexpected says that neighbours may know the endpoint's addresses by another hardware address than it has: its own is not the one that belongs to them, or that of who
// had them last was not. mu is held.
func (nw *network) unexpected(ep Endpoint) bool {
	return ep.foreignMAC() || nw.v4.foreign(ep.IPv4.Addr()) || nw.v6.foreign(ep.IPv6.Addr())
}

// announce tells the neighbours whose the addresses are now (gratuitous ARP, unsolicited neighbour advertisement): the kernel does when it is allowed to and a hardware address
// is set, be it the same. The caller's thread is in the namespace.
func (l *Local) announce(in *netlink.Conn, eps []Endpoint) error {
	var b netlink.Batch
	for _, ep := range eps {
		if ep.Interface == "" {
			continue
		}
		for _, path := range []string{"net/ipv4/conf/" + ep.Interface + "/arp_notify", "net/ipv6/conf/" + ep.Interface + "/ndisc_notify"} {
			if err := l.innerSysctl(path, "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if ep.MAC == "" {
			continue
		}
		b.Begin("announce "+ep.Interface, unix.RTM_NEWLINK, 0, make([]byte, unix.SizeofIfInfomsg))
		b.String(unix.IFLA_IFNAME, ep.Interface)
		b.Bytes(unix.IFLA_ADDRESS, ep.hardware())
		b.End()
	}
	return in.Do(&b)
}

// sources are the addresses that an endpoint sends from.
func (ep Endpoint) sources() (all []netip.Addr) {
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if p.IsValid() {
			all = append(all, p.Addr())
		}
	}
	return append(all, ep.LinkLocal...)
}

// hardware is the endpoint's hardware address.
func (ep Endpoint) hardware() net.HardwareAddr {
	mac, _ := net.ParseMAC(ep.MAC) // written by us
	return mac
}
