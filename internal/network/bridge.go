package network

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// bridge is the driver of that name: a bridge of the kernel, and a veth for each endpoint, one end in the bridge.
type bridge struct {
	l  *Local
	nw *network
}

var _ publisher = (*bridge)(nil)

// newBridge reads the options.
func newBridge(l *Local, nw *network) (*bridge, error) {
	nw.icc, nw.masq = true, true
	nw.br = "br-" + nw.rec.ID[:12]
	if err := nw.readOptions(); err != nil {
		return nil, err
	}
	if err := nw.readEgress(l); err != nil {
		return nil, err
	}
	return &bridge{l, nw}, nil
}

func (d *bridge) plug(b *netlink.Batch, ep Endpoint, ns *os.File) error {
	mac, err := net.ParseMAC(ep.MAC)
	b.AddVeth(netlink.Veth{Name: d.l.linkName(ep), Alias: d.l.alias(ep), Bridge: d.nw.index, MTU: d.nw.mtu, Isolated: !d.nw.icc, PeerName: ep.Interface, PeerMAC: mac, PeerNS: ns})
	return err
}

func (d *bridge) unplug(_ context.Context, ep Endpoint, _ *os.File) error {
	var del netlink.Batch
	del.DelLink(d.l.linkName(ep))
	if err := d.l.rt.Do(&del); !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func (d *bridge) hostLink(ep Endpoint) string { return d.l.linkName(ep) }

func (d *bridge) carriers(ep Endpoint) []string { return []string{d.l.linkName(ep), d.nw.br} }

func (d *bridge) publishes() bool { return true }

// lower removes the bridge, unless somebody else made it.
func (d *bridge) lower(context.Context) error {
	if d.nw.index == 0 || d.nw.foreign {
		return nil
	}
	var del netlink.Batch
	del.DelLink(d.nw.br)
	if err := d.l.rt.Do(&del); !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// raise makes the bridge, with its addresses, where it is not there yet.
func (d *bridge) raise(context.Context) error {
	l, nw := d.l, d.nw
	c, err := l.rt.Take()
	if err != nil {
		return err
	}
	defer l.rt.Give(c)
	if nw.mtu == 0 {
		if nw.mtu = l.opt.MTU; nw.mtu == 0 {
			nw.mtu = l.hostMTU()
		}
	}
	link, err := c.LinkByName(nw.br)
	if errors.Is(err, unix.ENODEV) && len(nw.rec.IPAM.Pools) > 0 {
		var b netlink.Batch
		b.AddBridge(nw.br, l.bridgeAlias(), bridgeMAC(nw), nw.mtu)
		if err := c.Do(&b); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		link, err = c.LinkByName(nw.br)
	}
	if err != nil {
		return err
	}
	if link.Kind != "bridge" {
		return errs.New(errs.Conflict, "interface %s is there and not a bridge", nw.br)
	}
	nw.index, nw.foreign = link.Index, link.Alias != l.bridgeAlias()
	var b netlink.Batch
	if !link.Up {
		b.SetUp(link.Index)
	}
	for _, p := range nw.rec.IPAM.Pools {
		if nw.onBridge(p) {
			b.AddAddr(link.Index, netip.PrefixFrom(p.Gateway, p.Subnet.Bits()))
		}
	}
	if nw.v6 != nil {
		b.AddAddr(link.Index, bridgeLinkLocal)
	}
	if err := c.Do(&b); err != nil && !netlink.OnlyErrno(err, unix.EEXIST) {
		return err
	}
	if nw.v6 == nil {
		return nil
	}
	return l.hostSysctl("net/ipv6/conf/"+nw.br+"/accept_ra", "0")
}

// bridgeLinkLocal is on each bridge with IPv6, as Docker has it. The host asks for neighbours of what it forwards from a link-local address; the one that the kernel makes is not usable before it has carrier and
// nobody else was found to have it, 1 to 3 s after the first container's start, and so long a published port could not be reached from outside.
var bridgeLinkLocal = netip.MustParsePrefix("fe80::1/64")

// bridgeAlias marks the bridges that we made, and may therefore remove.
func (l *Local) bridgeAlias() string { return "corten " + l.opt.Table }

func bridgeMAC(nw *network) net.HardwareAddr {
	for _, p := range nw.rec.IPAM.Pools {
		if p.Gateway.Is4() {
			return macOf(p.Gateway)
		}
	}
	if len(nw.v6) > 0 && nw.v6[0].gateway.IsValid() {
		raw := nw.v6[0].gateway.As16()
		return net.HardwareAddr{0x02, 0x42, raw[12], raw[13], raw[14], raw[15]}
	}
	id, _ := hex.DecodeString(nw.rec.ID[:8]) // made by us, or checked when it was read
	return net.HardwareAddr(append([]byte{0x02, 0x42}, id...))
}

// switchForwarding turns on what the host needs to pass packets on. The settings of bridges are made here too, because they vanish with them.
func (l *Local) switchForwarding() error {
	for _, nw := range l.nets {
		if nw.br == "" || nw.index == 0 {
			continue
		}
		if err := l.bridgeSysctls(nw); err != nil {
			return err
		}
	}
	return nil
}

// bridgeSysctls lets connections to 127.0.0.1 on the host be sent on into the bridge (the rules keep others away from it), and packets be forwarded.
func (l *Local) bridgeSysctls(nw *network) error {
	if nw.v4 != nil && !l.opt.NoRules {
		if err := l.hostSysctl("net/ipv4/conf/"+nw.br+"/route_localnet", "1"); err != nil {
			return err
		}
	}
	if err := l.letPass(nw); err != nil {
		return err
	}
	if l.opt.NoForward || nw.rec.Internal {
		return nil
	}
	if nw.v4 != nil {
		if err := l.hostSysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if nw.v6 != nil {
		return l.hostSysctl("net/ipv6/conf/all/forwarding", "1")
	}
	return nil
}
