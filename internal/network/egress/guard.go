package egress

import (
	"errors"
	"net/netip"
	"slices"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// A container's egress list is found by its source address, which a process with CAP_NET_RAW or CAP_NET_ADMIN can choose. So the bridge's port of each of its endpoints is bound to the
// endpoint's own addresses, in a table of the bridge family with the name of the other one. It is there only while some container has a list:
//
//	set ports              the host's ends of the interfaces of containers with a list
//	set macs, own4, own6   port . hardware address; port . address, link-local ones included
//	set strays             ports, with what was dropped
//
//	prerouting  (before the bridge learns who is where)  from one of the ports: own
//	own         another hardware address, or an ARP sender, source, or neighbour advertisement of an address that is not its own, router advertisements and redirects: stray
//	input       to the host itself, from a link-local address, which no list knows: stray, except for what belongs to finding neighbours
//	stray       drop
const (
	setGuarded, setMacs, setOwn, setStrays = "ports", "macs", "own", "strays"
	chainOwn, chainStray                   = "own", "stray"
	chainPre                               = "prerouting"
	prioBridgeFirst, prioBridgeFilter      = -300, -200
)

var (
	guardSets = []nft.Set{
		{Name: setGuarded, Key: []nft.Type{nft.IfName}}, {Name: setStrays, Key: []nft.Type{nft.IfName}, Counters: true}, {Name: setMacs, Key: []nft.Type{nft.IfName, nft.Ether}},
		{Name: setOwn + "4", Key: []nft.Type{nft.IfName, nft.IPv4}}, {Name: setOwn + "6", Key: []nft.Type{nft.IfName, nft.IPv6}},
	}
	guardChains = []nft.Chain{
		{Name: chainStray}, {Name: chainOwn},
		{Name: chainPre, Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: prioBridgeFirst}, // numbers of hooks are those of inet
		{Name: chainInput, Type: "filter", Hook: unix.NF_INET_LOCAL_IN, Priority: prioBridgeFilter},
	}
)

// The parts of packets that the rules look at.
const (
	etherIP, etherARP, etherIPv6        = 0x0800, 0x0806, 0x86dd
	ndRouterAdvert, ndAdvert, ndReroute = 134, 136, 137
)

// writeGuard puts the table but its elements into the transaction.
func writeGuard(tx *nft.Tx, table string) {
	tx.AddTable(table)
	for _, s := range guardSets {
		tx.AddSet(table, s)
	}
	for _, c := range guardChains {
		tx.AddChain(table, c)
		tx.FlushChain(table, c.Name)
	}
	add := func(chain, note string, verdict nft.Expr, parts ...[]nft.Expr) {
		var all []nft.Expr
		for _, p := range parts {
			all = append(all, p...)
		}
		tx.AddRule(table, chain, note, append(all, verdict)...)
	}
	one := func(e ...nft.Expr) []nft.Expr { return e }
	guarded := nft.Via(unix.NFT_META_IIFNAME, setGuarded, false)
	is := func(ether uint16) []nft.Expr {
		return one(nft.Meta(unix.NFT_META_PROTOCOL, nft.R(0)), nft.Cmp(nft.R(0), nft.Port(ether), false))
	}
	// bound matches what a port may say at some place, or, with not, may not.
	bound := func(set string, base, offset, size uint32, not bool) []nft.Expr {
		return one(nft.Meta(unix.NFT_META_IIFNAME, nft.R(0)), nft.Payload(base, offset, size, nft.R(4)), nft.In(set, nft.R(0), not))
	}
	icmpv6 := one(nft.Meta(unix.NFT_META_L4PROTO, nft.R(0)), nft.Cmp(nft.R(0), []byte{unix.IPPROTO_ICMPV6}, false))
	kind := func(n byte) []nft.Expr {
		return append(append(is(etherIPv6), icmpv6...), nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, nft.R(0)), nft.Cmp(nft.R(0), []byte{n}, false))
	}
	const link, net, transport = unix.NFT_PAYLOAD_LL_HEADER, unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER
	stray := nft.Jump(chainStray)

	add(chainPre, "containers with an egress list", nft.Jump(chainOwn), guarded)
	add(chainInput, "", stray, guarded, is(etherIPv6), one(nft.Payload(net, 8, 2, nft.R(0)), nft.And(nft.R(0), []byte{0xff, 0xc0}), nft.Cmp(nft.R(0), []byte{0xfe, 0x80}, false)),
		one(nft.Meta(unix.NFT_META_L4PROTO, nft.R(0)), nft.Cmp(nft.R(0), []byte{unix.IPPROTO_ICMPV6}, true)))

	add(chainOwn, "another hardware address", stray, bound(setMacs, link, 6, 6, true))
	add(chainOwn, "", stray, is(etherARP), bound(setMacs, net, 8, 6, true))
	add(chainOwn, "who asks whether an address is free", nft.Return(), is(etherARP), one(nft.Payload(net, 14, 4, nft.R(0)), nft.Cmp(nft.R(0), make([]byte, 4), false)))
	add(chainOwn, "", nft.Return(), is(etherARP), bound(setOwn+"4", net, 14, 4, false))
	add(chainOwn, "another's address", stray, is(etherARP))
	add(chainOwn, "", nft.Return(), is(etherIP), bound(setOwn+"4", net, 12, 4, false))
	add(chainOwn, "another's address", stray, is(etherIP))
	add(chainOwn, "router advertisements", stray, kind(ndRouterAdvert))
	add(chainOwn, "redirects", stray, kind(ndReroute))
	add(chainOwn, "to have another's address", stray, kind(ndAdvert), bound(setOwn+"6", transport, 8, 16, true))
	add(chainOwn, "who has no address yet", nft.Return(), is(etherIPv6), one(nft.Payload(net, 8, 16, nft.R(0)), nft.Cmp(nft.R(0), make([]byte, 16), false)), icmpv6)
	add(chainOwn, "", nft.Return(), is(etherIPv6), bound(setOwn+"6", net, 8, 16, false))
	add(chainOwn, "another's address", stray, is(etherIPv6))

	add(chainStray, "", nft.Drop(), nft.Via(unix.NFT_META_IIFNAME, setStrays, false))
	add(chainStray, "", nft.Drop(), one(nft.Counter()))
}

// bound are the elements of an interface.
func (s Source) bound() map[string][]nft.Elem {
	port := nft.Name(s.Link)
	by := map[string][]nft.Elem{setGuarded: {{Key: port}}, setStrays: {{Key: port}}}
	own := s.Addrs
	if len(s.MAC) > 0 {
		by[setMacs] = []nft.Elem{{Key: nft.Cat(port, s.MAC)}}
		if ll := linkLocalOf(s.MAC); ll.IsValid() && slices.ContainsFunc(own, netip.Addr.Is6) {
			own = append(slices.Clone(own), ll)
		}
	}
	for _, a := range own {
		set := setOwn + nft.FamilyOf(a).Name
		by[set] = append(by[set], nft.Elem{Key: nft.Cat(port, a.AsSlice())})
	}
	return by
}

// linkLocalOf is the address of its own that the kernel gives an interface with this hardware address (RFC 4291, appendix A).
func linkLocalOf(mac []byte) netip.Addr {
	if len(mac) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// bind binds the ports of interfaces that are not bound yet. write is held.
func (l *Lists) bind(from []Source) error {
	fresh := slices.DeleteFunc(slices.Clone(from), func(s Source) bool { return l.guarded[s.Link] })
	if len(fresh) == 0 {
		return nil
	}
	tx := &nft.Tx{Family: unix.NFPROTO_BRIDGE}
	writeGuard(tx, l.opt.Table)
	for _, s := range fresh {
		l.add(tx, s.bound())
	}
	if err := l.commit(tx); err != nil {
		return noGuard(err)
	}
	for _, s := range fresh {
		l.guarded[s.Link] = true
	}
	return nil
}

// unbind lets go of those that do not stay; with the last one the table goes. write is held.
func (l *Lists) unbind(from, stay []Source) error {
	tx := &nft.Tx{Family: unix.NFPROTO_BRIDGE}
	had := false
	for _, s := range from {
		stays := slices.ContainsFunc(stay, func(o Source) bool { return o.Link == s.Link })
		if stays || !l.guarded[s.Link] {
			continue
		}
		had = true
		delete(l.guarded, s.Link)
		for set, elems := range s.bound() {
			tx.DelElems(l.opt.Table, set, elems)
		}
	}
	if had && len(l.guarded) == 0 {
		return l.drop()
	}
	return l.again(tx)
}

// Drop removes the table of the bridge family, if it is there.
func (l *Lists) Drop() error {
	l.write.Lock()
	defer l.write.Unlock()
	return l.drop()
}

func (l *Lists) drop() error {
	clear(l.guarded)
	tx := &nft.Tx{Family: unix.NFPROTO_BRIDGE}
	tx.AddTable(l.opt.Table)
	tx.DelTable(l.opt.Table)
	if err := l.commit(tx); !lacksFamily(err) {
		return err
	}
	return nil
}

// Guard writes the table of the bridge family again; with all, nobody else is in it then (see Elements). What was counted stays.
func (l *Lists) Guard(all bool) error {
	l.write.Lock()
	defer l.write.Unlock()
	var from []Source
	l.mu.Lock()
	for _, o := range l.owners {
		from = append(from, o.from...)
	}
	l.mu.Unlock()
	if len(from) == 0 && (all || len(l.guarded) > 0) {
		return l.drop()
	}
	if len(from) == 0 {
		return nil // what another engine left there is not known yet
	}
	tx := &nft.Tx{Family: unix.NFPROTO_BRIDGE}
	writeGuard(tx, l.opt.Table)
	if all {
		if err := l.flushGuard(tx, from); err != nil {
			return err
		}
	}
	for _, s := range from {
		l.guarded[s.Link] = true
		l.add(tx, s.bound())
	}
	return noGuard(l.commit(tx))
}

// flushGuard empties the sets, but for the counters of those who stay.
func (l *Lists) flushGuard(tx *nft.Tx, stay []Source) error {
	counted, err := l.elems(unix.NFPROTO_BRIDGE, setStrays)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	for _, s := range guardSets {
		if !s.Counters {
			tx.FlushSet(l.opt.Table, s.Name)
		}
	}
	for _, e := range counted {
		if !slices.ContainsFunc(stay, func(s Source) bool { return string(nft.Name(s.Link)) == string(e.Key) }) {
			tx.DelElems(l.opt.Table, setStrays, []nft.Elem{{Key: e.Key}})
		}
	}
	return nil
}

func lacksFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// noGuard says what the kernel lacks.
func noGuard(err error) error {
	if lacksFamily(err) {
		return errs.New(errs.NotImplemented, "an egress list of a container needs rules on its bridge, so that it cannot pass for a neighbour, and the kernel has none (enable CONFIG_NF_TABLES_BRIDGE, or load nft_meta_bridge); give the list to the network: %w", errors.Unwrap(err))
	}
	return err
}
