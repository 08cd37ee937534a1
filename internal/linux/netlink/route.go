package netlink

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Link is what matters of an interface.
type Link struct {
	Index, Master int
	Name, Alias   string
	Kind          string
	MAC           net.HardwareAddr
	MTU           int
	Up            bool
	// PeerIndex is the index of the other end of a veth, PeerNS whether that is in another namespace.
	PeerIndex int
	PeerNS    bool
}

func ifinfo(family uint8, index int, flags, change uint32) []byte {
	p := make([]byte, unix.SizeofIfInfomsg)
	p[0] = family
	native.PutUint32(p[4:], uint32(index))
	native.PutUint32(p[8:], flags)
	native.PutUint32(p[12:], change)
	return p
}

// AddBridge asks for a bridge, up, with the given hardware address (so that it does not change with its ports), and a note by which its maker knows it.
func (b *Batch) AddBridge(name, alias string, mac net.HardwareAddr, mtu int) {
	b.Begin("add bridge "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, unix.IFF_UP, unix.IFF_UP))
	b.String(unix.IFLA_IFNAME, name)
	b.Bytes(unix.IFLA_ADDRESS, mac)
	if mtu > 0 {
		b.U32(unix.IFLA_MTU, uint32(mtu))
	}
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, "bridge")
		b.Nest(unix.IFLA_INFO_DATA, func() {
			b.U32(unix.IFLA_BR_FORWARD_DELAY, 200) // the least; without spanning tree ports forward at once
			b.U32(unix.IFLA_BR_STP_STATE, 0)
			// With snooping the bridge now and then keeps the first neighbour solicitation from a port that it has just learned of: the first
			// connection over IPv6 to a fresh container then takes a second.
			b.U8(unix.IFLA_BR_MCAST_SNOOPING, 0)
		})
	})
	b.End()
	if alias != "" {
		b.Begin("name bridge "+name, unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0, 0))
		b.String(unix.IFLA_IFNAME, name)
		b.Bytes(unix.IFLA_IFALIAS, []byte(alias))
		b.End()
	}
}

// Veth describes a pair: the host's end and the other one, made directly in the namespace PeerNS.
type Veth struct {
	Name, Alias string
	Bridge      int // index of the bridge that the host's end joins
	MTU         int
	Isolated    bool // the port reaches the bridge, not other isolated ports
	PeerName    string
	PeerMAC     net.HardwareAddr
	PeerNS      *os.File
}

// AddVeth asks for a pair, the host's end in its bridge and up without an IPv6 address of its own. The other end is down: the kernel
// refuses to set an end up before both are there.
func (b *Batch) AddVeth(v Veth) {
	b.Begin("add veth "+v.Name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0, 0))
	b.String(unix.IFLA_IFNAME, v.Name)
	if v.MTU > 0 {
		b.U32(unix.IFLA_MTU, uint32(v.MTU))
	}
	if v.Bridge != 0 {
		b.U32(unix.IFLA_MASTER, uint32(v.Bridge))
	}
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, "veth")
		b.Nest(unix.IFLA_INFO_DATA, func() {
			b.Nest(1 /* VETH_INFO_PEER */, func() {
				b.Raw(ifinfo(0, 0, 0, 0))
				b.String(unix.IFLA_IFNAME, v.PeerName)
				if len(v.PeerMAC) > 0 {
					b.Bytes(unix.IFLA_ADDRESS, v.PeerMAC)
				}
				if v.MTU > 0 {
					b.U32(unix.IFLA_MTU, uint32(v.MTU))
				}
				if v.PeerNS != nil {
					b.U32(unix.IFLA_NET_NS_FD, uint32(v.PeerNS.Fd()))
				}
			})
		})
	})
	b.End()
	b.Begin("set up veth "+v.Name, unix.RTM_NEWLINK, 0, ifinfo(0, 0, unix.IFF_UP, unix.IFF_UP))
	b.String(unix.IFLA_IFNAME, v.Name)
	if v.Alias != "" {
		b.Bytes(unix.IFLA_IFALIAS, []byte(v.Alias))
	}
	b.noLinkLocal()
	b.End()
	if v.Isolated {
		b.Isolate(v.Name)
	}
}

// Isolate keeps a bridge's port from other ports that are kept so.
func (b *Batch) Isolate(name string) {
	b.Begin("isolate "+name, unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0, 0))
	b.String(unix.IFLA_IFNAME, name)
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_SLAVE_KIND, "bridge")
		b.Nest(unix.IFLA_INFO_SLAVE_DATA, func() { b.U8(unix.IFLA_BRPORT_ISOLATED, 1) })
	})
	b.End()
}

// Enslave puts an interface into a bridge, and sets it up.
func (b *Batch) Enslave(index, bridge int) {
	b.Begin(fmt.Sprintf("put link %d into bridge %d", index, bridge), unix.RTM_NEWLINK, 0, ifinfo(0, index, unix.IFF_UP, unix.IFF_UP))
	b.U32(unix.IFLA_MASTER, uint32(bridge))
	b.End()
}

// OnParent describes an interface of the kind macvlan or ipvlan, made directly in the namespace NS (nil: here).
type OnParent struct {
	Kind, Name string
	Parent     int // index
	MTU        int
	MAC        net.HardwareAddr
	NS         *os.File
	Mode       uint32 // MACVLAN_MODE_* or IPVLAN_MODE_*
	Flags      uint32 // IPVLAN_F_*
}

// AddOnParent makes it.
func (b *Batch) AddOnParent(p OnParent) {
	b.Begin("add "+p.Kind+" "+p.Name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0, 0))
	b.String(unix.IFLA_IFNAME, p.Name)
	b.U32(unix.IFLA_LINK, uint32(p.Parent))
	if p.MTU > 0 {
		b.U32(unix.IFLA_MTU, uint32(p.MTU))
	}
	if len(p.MAC) > 0 {
		b.Bytes(unix.IFLA_ADDRESS, p.MAC)
	}
	if p.NS != nil {
		b.U32(unix.IFLA_NET_NS_FD, uint32(p.NS.Fd()))
	}
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, p.Kind)
		b.Nest(unix.IFLA_INFO_DATA, func() {
			if p.Kind == "ipvlan" {
				b.U16(unix.IFLA_IPVLAN_MODE, uint16(p.Mode))
				b.U16(unix.IFLA_IPVLAN_FLAGS, uint16(p.Flags))
				return
			}
			b.U32(unix.IFLA_MACVLAN_MODE, p.Mode)
		})
	})
	b.End()
}

// AddVLAN makes the 802.1q interface id of an interface, and sets it up.
func (b *Batch) AddVLAN(name, alias string, parent int, id uint16) {
	b.Begin("add vlan "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, unix.IFF_UP, unix.IFF_UP))
	b.String(unix.IFLA_IFNAME, name)
	b.U32(unix.IFLA_LINK, uint32(parent))
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, "vlan")
		b.Nest(unix.IFLA_INFO_DATA, func() { b.U16(unix.IFLA_VLAN_ID, id) })
	})
	b.End()
	b.Begin("name vlan "+name, unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0, 0))
	b.String(unix.IFLA_IFNAME, name)
	b.Bytes(unix.IFLA_IFALIAS, []byte(alias))
	b.End()
}

// Hairpin lets a bridge's port send frames back where they came from: with br_netfilter a container that calls its own published port is
// sent on by the bridge, not by the host's routing.
func (b *Batch) Hairpin(name string) {
	b.Begin("set hairpin mode of "+name, unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0, 0))
	b.String(unix.IFLA_IFNAME, name)
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_SLAVE_KIND, "bridge")
		b.Nest(unix.IFLA_INFO_SLAVE_DATA, func() { b.U8(unix.IFLA_BRPORT_MODE, 1) })
	})
	b.End()
}

// noLinkLocal keeps the kernel from giving the interface an IPv6 address: a bridge's port needs none, and looking for
// duplicates of it costs frames on every port.
func (b *Batch) noLinkLocal() {
	b.Nest(unix.IFLA_AF_SPEC, func() {
		b.Nest(unix.AF_INET6, func() { b.U8(unix.IFLA_INET6_ADDR_GEN_MODE, 1 /* IN6_ADDR_GEN_MODE_NONE */) })
	})
}

// SetUp asks for an interface to be set up.
func (b *Batch) SetUp(index int) {
	b.Begin(fmt.Sprintf("set link %d up", index), unix.RTM_NEWLINK, 0, ifinfo(0, index, unix.IFF_UP, unix.IFF_UP))
	b.End()
}

// SetUpName is SetUp by name.
func (b *Batch) SetUpName(name string) {
	b.Begin("set "+name+" up", unix.RTM_NEWLINK, 0, ifinfo(0, 0, unix.IFF_UP, unix.IFF_UP))
	b.String(unix.IFLA_IFNAME, name)
	b.End()
}

// MoveLink moves a link into another namespace, where it has the name given; it is down then. The link is told by its index in the namespace of the request.
func (b *Batch) MoveLink(index int, name string, ns *os.File) {
	b.Begin("move link to "+name, unix.RTM_NEWLINK, 0, ifinfo(0, index, 0, unix.IFF_UP))
	b.U32(unix.IFLA_NET_NS_FD, uint32(ns.Fd()))
	b.String(unix.IFLA_IFNAME, name)
	b.End()
}

// SetMAC gives a link a hardware address.
func (b *Batch) SetMAC(index int, mac net.HardwareAddr) {
	b.Begin(fmt.Sprintf("set the hardware address of link %d", index), unix.RTM_NEWLINK, 0, ifinfo(0, index, 0, 0))
	b.Bytes(unix.IFLA_ADDRESS, mac)
	b.End()
}

// SetMTU changes an interface's MTU.
func (b *Batch) SetMTU(index, mtu int) {
	b.Begin(fmt.Sprintf("set mtu of link %d", index), unix.RTM_NEWLINK, 0, ifinfo(0, index, 0, 0))
	b.U32(unix.IFLA_MTU, uint32(mtu))
	b.End()
}

// DelLink removes an interface by name.
func (b *Batch) DelLink(name string) {
	b.Begin("delete link "+name, unix.RTM_DELLINK, 0, ifinfo(0, 0, 0, 0))
	b.String(unix.IFLA_IFNAME, name)
	b.End()
}

// AddAddr gives an interface an address, usable at once (no duplicate address detection).
func (b *Batch) AddAddr(index int, p netip.Prefix) {
	h := make([]byte, unix.SizeofIfAddrmsg)
	h[0], h[1], h[2] = family(p.Addr()), uint8(p.Bits()), unix.IFA_F_NODAD
	if p.Addr().Is4() {
		h[2] = 0
	}
	native.PutUint32(h[4:], uint32(index))
	b.Begin("add address "+p.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, h)
	b.Addr(unix.IFA_LOCAL, p.Addr())
	if p.Addr().Is4() {
		b.Addr(unix.IFA_ADDRESS, p.Addr())
		if p.Bits() < 31 {
			b.Addr(unix.IFA_BROADCAST, LastAddr(p))
		}
	}
	b.End()
}

// DelAddr takes an address away.
func (b *Batch) DelAddr(index int, p netip.Prefix) {
	h := make([]byte, unix.SizeofIfAddrmsg)
	h[0], h[1] = family(p.Addr()), uint8(p.Bits())
	native.PutUint32(h[4:], uint32(index))
	b.Begin("delete address "+p.String(), unix.RTM_DELADDR, 0, h)
	b.Addr(unix.IFA_LOCAL, p.Addr())
	b.End()
}

// AddRoute adds or replaces a route; a zero dst is the default route, a zero gw means directly on the link.
func (b *Batch) AddRoute(index int, dst netip.Prefix, gw netip.Addr) {
	b.route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, dst, gw)
}

// DelRoute removes a route.
func (b *Batch) DelRoute(index int, dst netip.Prefix, gw netip.Addr) {
	b.route(unix.RTM_DELROUTE, 0, index, dst, gw)
}

func (b *Batch) route(typ, flags uint16, index int, dst netip.Prefix, gw netip.Addr) {
	fam := family(gw)
	if dst.IsValid() {
		fam = family(dst.Addr())
	}
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	if !gw.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	bits := uint8(0)
	if dst.IsValid() {
		bits = uint8(dst.Bits())
	}
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1], h[4], h[5], h[6], h[7] = fam, bits, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, scope, unix.RTN_UNICAST
	b.Begin(fmt.Sprintf("route to %s via %s", dst, gw), typ, flags, h)
	if dst.IsValid() && bits > 0 {
		b.Addr(unix.RTA_DST, dst.Addr())
	}
	if gw.IsValid() {
		b.Addr(unix.RTA_GATEWAY, gw)
	}
	b.U32(unix.RTA_OIF, uint32(index))
	b.End()
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// LastAddr is the highest address of a prefix.
func LastAddr(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}

// LinkByName asks for one interface; the error is unix.ENODEV when there is none.
func (c *Conn) LinkByName(name string) (Link, error) {
	var b Batch
	b.Begin("find link "+name, unix.RTM_GETLINK, 0, ifinfo(0, 0, 0, 0))
	b.String(unix.IFLA_IFNAME, name)
	b.End()
	p, err := c.Get(&b)
	if err != nil {
		return Link{}, err
	}
	return ParseLink(p)
}

// Links lists all interfaces of the namespace, or only those of one kind when kind is not empty (the kernel filters).
func (c *Conn) Links(kind string) ([]Link, error) {
	var b Batch
	b.Begin("list links", unix.RTM_GETLINK, 0, ifinfo(0, 0, 0, 0))
	if kind != "" {
		b.Nest(unix.IFLA_LINKINFO, func() { b.String(unix.IFLA_INFO_KIND, kind) })
	}
	b.End()
	var all []Link
	err := c.Dump(&b, func(typ uint16, payload []byte) error {
		if typ != unix.RTM_NEWLINK {
			return nil
		}
		l, err := ParseLink(payload)
		if err == nil && (kind == "" || l.Kind == kind) {
			all = append(all, l)
		}
		return err
	})
	return all, err
}

// ParseLink reads the payload of RTM_NEWLINK or RTM_DELLINK.
func ParseLink(p []byte) (Link, error) {
	if len(p) < unix.SizeofIfInfomsg {
		return Link{}, ErrMalformed
	}
	l := Link{Index: int(int32(native.Uint32(p[4:]))), Up: native.Uint32(p[8:])&unix.IFF_UP != 0}
	err := Attrs(p[unix.SizeofIfInfomsg:], func(typ uint16, data []byte) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = cString(data)
		case unix.IFLA_IFALIAS:
			l.Alias = cString(data)
		case unix.IFLA_ADDRESS:
			l.MAC = append(net.HardwareAddr{}, data...)
		case unix.IFLA_MTU:
			l.MTU = int(u32(data))
		case unix.IFLA_MASTER:
			l.Master = int(u32(data))
		case unix.IFLA_LINK:
			l.PeerIndex = int(u32(data))
		case unix.IFLA_LINK_NETNSID:
			l.PeerNS = true
		case unix.IFLA_LINKINFO:
			_ = Attrs(data, func(typ uint16, data []byte) {
				if typ == unix.IFLA_INFO_KIND {
					l.Kind = cString(data)
				}
			})
		}
	})
	return l, err
}

func u32(p []byte) uint32 {
	if len(p) < 4 {
		return 0
	}
	return native.Uint32(p)
}

// AddrOn is an address of an interface.
type AddrOn struct {
	Index  int
	Prefix netip.Prefix
}

// Addrs lists the addresses of all interfaces of the namespace.
func (c *Conn) Addrs() ([]AddrOn, error) {
	var b Batch
	b.Begin("list addresses", unix.RTM_GETADDR, 0, make([]byte, unix.SizeofIfAddrmsg))
	b.End()
	var all []AddrOn
	err := c.Dump(&b, func(typ uint16, p []byte) error {
		if typ != unix.RTM_NEWADDR || len(p) < unix.SizeofIfAddrmsg {
			return nil
		}
		bits, index := int(p[1]), int(native.Uint32(p[4:]))
		var local, addr netip.Addr
		err := Attrs(p[unix.SizeofIfAddrmsg:], func(typ uint16, data []byte) {
			switch typ {
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(data)
			case unix.IFA_ADDRESS:
				addr, _ = netip.AddrFromSlice(data)
			}
		})
		if !local.IsValid() {
			local = addr
		}
		if local.IsValid() {
			all = append(all, AddrOn{Index: index, Prefix: netip.PrefixFrom(local, bits)})
		}
		return err
	})
	return all, err
}

// Route is a route of any table.
type Route struct {
	Table uint32 // unix.RT_TABLE_MAIN, or that of a policy (a VPN's, a VRF's)
	Is4   bool
	Index int          // 0 where it has none, or several
	Dst   netip.Prefix // the zero prefix for the default route
	Via   netip.Addr
}

// Routes lists the routes of all the namespace's tables but those of its own addresses: also the ones that refuse or swallow packets.
func (c *Conn) Routes() ([]Route, error) {
	var b Batch
	b.Begin("list routes", unix.RTM_GETROUTE, 0, make([]byte, unix.SizeofRtMsg))
	b.End()
	var all []Route
	err := c.Dump(&b, func(typ uint16, p []byte) error {
		if typ != unix.RTM_NEWROUTE || len(p) < unix.SizeofRtMsg || p[4] == unix.RT_TABLE_LOCAL {
			return nil
		}
		switch p[7] {
		case unix.RTN_UNICAST, unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
		default:
			return nil
		}
		r, bits := Route{Table: uint32(p[4]), Is4: p[0] == unix.AF_INET}, int(p[1])
		err := Attrs(p[unix.SizeofRtMsg:], func(typ uint16, data []byte) {
			switch typ {
			case unix.RTA_DST:
				if a, ok := netip.AddrFromSlice(data); ok {
					r.Dst = netip.PrefixFrom(a, bits)
				}
			case unix.RTA_GATEWAY:
				r.Via, _ = netip.AddrFromSlice(data)
			case unix.RTA_OIF:
				r.Index = int(u32(data))
			case unix.RTA_TABLE:
				r.Table = u32(data)
			}
		})
		all = append(all, r)
		return err
	})
	return all, err
}

// IsLocal says whether the namespace takes packets for the address already: the kernel puts an IPv6 address to work a little after it was added.
func (c *Conn) IsLocal(a netip.Addr) (bool, error) {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = family(a), uint8(a.BitLen())
	var b Batch
	b.Begin("find route to "+a.String(), unix.RTM_GETROUTE, 0, h)
	b.Addr(unix.RTA_DST, a)
	b.End()
	p, err := c.Get(&b)
	if err != nil || len(p) < unix.SizeofRtMsg {
		return false, err
	}
	return p[7] == unix.RTN_LOCAL, nil
}

// Listen opens a socket of proto that receives the groups, for [Conn.Next].
func Listen(proto int, groups ...int) (*Conn, error) {
	c, err := Dial(proto)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			_ = c.Close()
			return nil, os.NewSyscallError(fmt.Sprintf("netlink join group %d", g), err)
		}
	}
	return c, nil
}

// File hands the socket over to the runtime's poller: reads of the file wait without holding a thread, and Close ends them. The Conn must not be used any more.
func (c *Conn) File() (*os.File, error) {
	if err := unix.SetNonblock(c.fd, true); err != nil {
		return nil, os.NewSyscallError("netlink set nonblocking", err)
	}
	return os.NewFile(uintptr(c.fd), "netlink"), nil
}
