package network

import (
	"net/netip"
	"slices"
	"strings"

	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// The table, "inet corten" unless the engine was told another name:
//
//	map any4, any6         proto . port            : address . port    ports published on all addresses
//	map host4, host6       proto . address . port  : address . port    ports published on one address
//	map any4r … host6r     proto . ports, proto . address . ports : address    the same for ranges that keep their numbers: one element each
//	map any4s … host6s     … : address, any4sf … : port, any4sl … : port                 for ranges whose numbers are others in the container (runs.go); nft(8) reads no rule that
//	                       takes both ports out of one map
//	set direct4, direct6   address . proto . ports of containers that are reached at their own address (routed networks, trusted interfaces)
//	set bridges            our bridges
//	set same               bridge . bridge, for every network; set icc: for those whose containers may reach each other
//	set internal           bridges of internal networks
//	set masq4, masq6       bridges whose containers leave with the host's address; map snat4, snat6: with this address
//	set routed4, routed6   bridges of networks in gateway mode routed; set open4, open6: in nat-unprotected
//	set trusted            interface of the host . bridge, from where direct4 and direct6 are let in
//	set detour4, detour6   bridge . addresses . proto . ports: published by a container whose network's containers do not reach each other. Its neighbours, and it itself, reach the port by way of the port proxy: where
//	                       br_netfilter is on (the kernel's default), a packet that was given its neighbour's address stays in the bridge, which passes nothing on between them
//	set links              address . address . proto . ports, what --link opens where icc is off
//	set self4, self6       address . the same address, of containers with published ports
//
//	chain corten-user  is the administrator's: made once, never changed or emptied by us, entered before any of our accepts. "accept" there ends
//	                   the administrator's own judging and ours; "drop" is final; "return", or the end, goes on with ours.
//
//	guard       (prerouting, raw)     from our bridges to 127.0.0.0/8: drop, because the bridges route it for published ports
//	prerouting  (nat, dstnat)         to an address of this host, not loopback from outside → ports
//	output      (nat, dstnat)         to an address of this host → ports
//	ports                             not for [::1]; dnat by the maps, which no two ports can both be in
//	forward     (filter)              jump corten-user; established: accept; same network: accept; links: accept; internal: drop; egress lists (package egress); published: accept;
//	                                  reached at their own address: direct, open; other packets into our bridges: drop; out of them: accept
//	postrouting (nat, srcnat)         from 127.0.0.0/8 into our bridges, and published ports reached from their own network or container: masquerade;
//	                                  out of snat and masq bridges to elsewhere: snat, masquerade
//
// Only elements change while containers come and go. The rest is written at start and again, with all elements, in one transaction, when someone flushed it.
const (
	chainUser = "corten-user"

	setAny4, setAny6, setHost4, setHost6                         = "any4", "any6", "host4", "host6"
	setBridges, setSame, setICC, setInternal, setSelf4, setSelf6 = "bridges", "same", "icc", "internal", "self4", "self6"
	setMasq, setSNAT, setRouted, setOpen, setDirect              = "masq", "snat", "routed", "open", "direct" // and 4 or 6
	setTrusted, setLinks, setDetour, ranged, shifted             = "trusted", "links", "detour", "r", "s"     // of detour: and 4 or 6
	chainGuard, chainPre, chainOut, chainPorts                   = "guard", "prerouting", "output", "ports"
	chainForward, chainPost                                      = "forward", "postrouting"
	prioRaw, prioDstNAT, prioFilter, prioSrcNAT                  = -300, -100, 0, 100
	stateEstablished, stateRelated, statusDNATbit                = 1 << 1, 1 << 2, 1 << 5
)

var (
	natMaps = []nft.Set{
		{Name: setAny4, Key: []nft.Type{nft.Proto, nft.Service}, Data: []nft.Type{nft.IPv4, nft.Service}},
		{Name: setAny6, Key: []nft.Type{nft.Proto, nft.Service}, Data: []nft.Type{nft.IPv6, nft.Service}},
		{Name: setHost4, Key: []nft.Type{nft.Proto, nft.IPv4, nft.Service}, Data: []nft.Type{nft.IPv4, nft.Service}},
		{Name: setHost6, Key: []nft.Type{nft.Proto, nft.IPv6, nft.Service}, Data: []nft.Type{nft.IPv6, nft.Service}},
	}
	rangeMaps = []nft.Set{
		{Name: setAny4 + ranged, Key: []nft.Type{nft.Proto, nft.Service}, Data: []nft.Type{nft.IPv4}, Ranges: true},
		{Name: setAny6 + ranged, Key: []nft.Type{nft.Proto, nft.Service}, Data: []nft.Type{nft.IPv6}, Ranges: true},
		{Name: setHost4 + ranged, Key: []nft.Type{nft.Proto, nft.IPv4, nft.Service}, Data: []nft.Type{nft.IPv4}, Ranges: true},
		{Name: setHost6 + ranged, Key: []nft.Type{nft.Proto, nft.IPv6, nft.Service}, Data: []nft.Type{nft.IPv6}, Ranges: true},
	}
	shiftMaps = slices.Concat(shiftsOf(rangeMaps[0]), shiftsOf(rangeMaps[1]), shiftsOf(rangeMaps[2]), shiftsOf(rangeMaps[3]))
	// portSets hold what belongs to containers, bridgeSets what belongs to networks.
	portSets = slices.Concat(natMaps, rangeMaps, shiftMaps, selfSets, []nft.Set{
		{Name: setDirect + "4", Key: []nft.Type{nft.IPv4, nft.Proto, nft.Service}, Ranges: true},
		{Name: setDirect + "6", Key: []nft.Type{nft.IPv6, nft.Proto, nft.Service}, Ranges: true},
		{Name: setLinks, Key: []nft.Type{nft.IPv4, nft.IPv4, nft.Proto, nft.Service}, Ranges: true},
		{Name: setDetour + "4", Key: []nft.Type{nft.IfName, nft.IPv4, nft.Proto, nft.Service}, Ranges: true},
		{Name: setDetour + "6", Key: []nft.Type{nft.IfName, nft.IPv6, nft.Proto, nft.Service}, Ranges: true},
	})
	selfSets  = []nft.Set{{Name: setSelf4, Key: []nft.Type{nft.IPv4, nft.IPv4}}, {Name: setSelf6, Key: []nft.Type{nft.IPv6, nft.IPv6}}}
	ownChains = []nft.Chain{
		{Name: chainPorts},
		{Name: chainGuard, Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: prioRaw},
		{Name: chainPre, Type: "nat", Hook: unix.NF_INET_PRE_ROUTING, Priority: prioDstNAT},
		{Name: chainOut, Type: "nat", Hook: unix.NF_INET_LOCAL_OUT, Priority: prioDstNAT},
		{Name: chainForward, Type: "filter", Hook: unix.NF_INET_FORWARD, Priority: prioFilter},
		{Name: chainPost, Type: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: prioSrcNAT},
	}
	bridgeSets = []nft.Set{
		{Name: setBridges, Key: []nft.Type{nft.IfName}}, {Name: setInternal, Key: []nft.Type{nft.IfName}},
		{Name: setSame, Key: []nft.Type{nft.IfName, nft.IfName}}, {Name: setICC, Key: []nft.Type{nft.IfName, nft.IfName}}, {Name: setTrusted, Key: []nft.Type{nft.IfName, nft.IfName}},
		{Name: setMasq + "4", Key: []nft.Type{nft.IfName}}, {Name: setMasq + "6", Key: []nft.Type{nft.IfName}},
		{Name: setRouted + "4", Key: []nft.Type{nft.IfName}}, {Name: setRouted + "6", Key: []nft.Type{nft.IfName}},
		{Name: setOpen + "4", Key: []nft.Type{nft.IfName}}, {Name: setOpen + "6", Key: []nft.Type{nft.IfName}},
		{Name: setSNAT + "4", Key: []nft.Type{nft.IfName}, Data: []nft.Type{nft.IPv4}}, {Name: setSNAT + "6", Key: []nft.Type{nft.IfName}, Data: []nft.Type{nft.IPv6}},
	}
)

// writeRules puts the whole table but its elements into the transaction.
func (l *Local) writeRules(tx *nft.Tx) {
	table := l.opt.Table
	fams := nft.Families
	if l.opt.NoRules6 {
		fams = nft.Families[:1]
	}
	tx.AddTable(table)
	for _, s := range slices.Concat(portSets, bridgeSets) {
		tx.AddSet(table, s)
	}
	tx.AddChain(table, nft.Chain{Name: chainUser})
	for _, c := range ownChains {
		tx.AddChain(table, c)
		tx.FlushChain(table, c.Name)
	}
	l.egress.Define(tx)
	writeNAT(tx, table, fams)
	l.egress.Rules(tx)
	l.writeFilter(tx, fams)
}

func writeNAT(tx *nft.Tx, table string, fams []nft.Family) {
	add := func(chain, note string, parts ...[]nft.Expr) {
		var all []nft.Expr
		for _, p := range parts {
			all = append(all, p...)
		}
		tx.AddRule(table, chain, note, all...)
	}
	one := func(e ...nft.Expr) []nft.Expr { return e }
	loopbackDst := append(nft.IsFamily(unix.NFPROTO_IPV4), loopbackAt(16)...)
	loopbackSrc := append(nft.IsFamily(unix.NFPROTO_IPV4), loopbackAt(12)...)
	local := one(nft.DaddrType(nft.R(0)), nft.Cmp(nft.R(0), nft.Host(unix.RTN_LOCAL), false))

	add(chainGuard, "loopback is not for containers", nft.Via(unix.NFT_META_IIFNAME, setBridges, false), loopbackDst, one(nft.Drop()))
	add(chainPre, "loopback is not for others", one(nft.Meta(unix.NFT_META_IIFNAME, nft.R(0)), nft.Cmp(nft.R(0), nft.Name("lo"), true)), loopbackDst, one(nft.Return()))
	for _, f := range fams {
		add(chainPre, "neighbours that do not reach each other: the port proxy", nft.IsFamily(f.Proto), detoured(f), one(nft.Return()))
	}
	add(chainPre, "", local, one(nft.Jump(chainPorts)))
	add(chainOut, "", local, one(nft.Jump(chainPorts)))
	add(chainPorts, "no route leads from there: the port proxy", nft.IsFamily(unix.NFPROTO_IPV6),
		one(nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 24, 16, nft.R(0)), nft.Cmp(nft.R(0), netip.IPv6Loopback().AsSlice(), false), nft.Return()))
	for _, s := range slices.Concat(natMaps, rangeMaps) {
		add(chainPorts, "", dnatBy(s))
	}
	for _, s := range rangeMaps {
		add(chainPorts, "to the port first + port modulo (last - first + 1)", shiftBy(s))
	}
	dnated := one(nft.CtStatus(nft.R(0)), nft.And(nft.R(0), nft.Host(statusDNATbit)), nft.Cmp(nft.R(0), nft.Host(0), true))
	add(chainPost, "the host's loopback", nft.Via(unix.NFT_META_OIFNAME, setBridges, false), loopbackSrc, one(nft.Masquerade()))
	add(chainPost, "published port reached from its own network", dnated, nft.Via(unix.NFT_META_OIFNAME, setBridges, false), samePair(setSame), one(nft.Masquerade()))
	// Under br_netfilter such a packet never leaves its bridge, and the interface that it came from is not known here.
	add(chainPost, "published port reached from its own container", fromSelf(unix.NFPROTO_IPV4, 12, 4, setSelf4), one(nft.Masquerade()))
	add(chainPost, "published port reached from its own container", fromSelf(unix.NFPROTO_IPV6, 8, 16, setSelf6), one(nft.Masquerade()))
	for _, f := range fams {
		outside := nft.Via(unix.NFT_META_OIFNAME, setBridges, true)
		add(chainPost, "to the outside, with an address of its own", nft.IsFamily(f.Proto), outside,
			one(nft.Meta(unix.NFT_META_IIFNAME, nft.R(0)), nft.Map(setSNAT+f.Name, nft.R(0), nft.R(0)), nft.SNAT(uint32(f.Proto), nft.R(0))))
		add(chainPost, "to the outside", nft.IsFamily(f.Proto), nft.Via(unix.NFT_META_IIFNAME, setMasq+f.Name, false), outside, one(nft.Masquerade()))
	}
}

func (l *Local) writeFilter(tx *nft.Tx, fams []nft.Family) {
	in := nft.Via(unix.NFT_META_IIFNAME, setBridges, false)
	out := nft.Via(unix.NFT_META_OIFNAME, setBridges, false)
	established := []nft.Expr{nft.CtState(nft.R(0)), nft.And(nft.R(0), nft.Host(stateEstablished|stateRelated)), nft.Cmp(nft.R(0), nft.Host(0), true)}
	dnated := []nft.Expr{nft.CtStatus(nft.R(0)), nft.And(nft.R(0), nft.Host(statusDNATbit)), nft.Cmp(nft.R(0), nft.Host(0), true)}
	add := func(note string, verdict nft.Expr, parts ...[]nft.Expr) {
		var all []nft.Expr
		for _, p := range parts {
			all = append(all, p...)
		}
		tx.AddRule(l.opt.Table, chainForward, note, append(all, verdict)...)
	}
	add("the administrator's own rules come first", nft.Jump(chainUser))
	if len(fams) < len(nft.Families) {
		add("IPv6 is somebody else's", nft.Return(), nft.IsFamily(unix.NFPROTO_IPV6))
	}
	add("", nft.Accept(), established, out)
	add("", nft.Accept(), established, in)
	add("within a network", nft.Accept(), samePair(setICC))
	add("linked containers", nft.Accept(), samePair(setSame), nft.IsFamily(unix.NFPROTO_IPV4), portsOf(setLinks, 12, 8))
	add("internal networks", nft.Drop(), nft.Via(unix.NFT_META_IIFNAME, setInternal, false))
	add("internal networks", nft.Drop(), nft.Via(unix.NFT_META_OIFNAME, setInternal, false))
	l.egress.Judge(tx, chainForward)
	add("published ports", nft.Accept(), dnated, out)
	for _, f := range fams {
		routed, direct := append(nft.IsFamily(f.Proto), nft.Via(unix.NFT_META_OIFNAME, setRouted+f.Name, false)...), portsOf(setDirect+f.Name, f.Dst, f.Size)
		add("published ports of routed networks", nft.Accept(), routed, direct)
		add("echo requests to routed networks", nft.Accept(), routed, []nft.Expr{nft.Meta(unix.NFT_META_L4PROTO, nft.R(0)), nft.Cmp(nft.R(0), []byte{f.ICMP}, false),
			nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, nft.R(0)), nft.Cmp(nft.R(0), []byte{f.Echo}, false)})
		add("published ports, from trusted interfaces", nft.Accept(), nft.IsFamily(f.Proto), samePair(setTrusted), direct)
		add("networks without protection", nft.Accept(), nft.IsFamily(f.Proto), nft.Via(unix.NFT_META_IIFNAME, setBridges, true), nft.Via(unix.NFT_META_OIFNAME, setOpen+f.Name, false))
	}
	add("everything else into a network", nft.Drop(), out)
	add("to the outside", nft.Accept(), in)
}

// portsOf matches packets whose address (or addresses, side by side in the header), protocol and destination port are in the set.
func portsOf(set string, offset, size uint32) []nft.Expr {
	after := size / 4
	return []nft.Expr{nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, size, nft.R(0)), nft.Meta(unix.NFT_META_L4PROTO, nft.R(after)),
		nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, nft.R(after+1)), nft.In(set, nft.R(0), false)}
}

// detoured matches packets from a bridge to a port that its own containers reach by way of the proxy.
func detoured(f nft.Family) []nft.Expr {
	next := 4 + nft.R(f.Size/4)
	return []nft.Expr{nft.Meta(unix.NFT_META_IIFNAME, nft.R(0)), nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, f.Dst, f.Size, nft.R(4)), nft.Meta(unix.NFT_META_L4PROTO, next),
		nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, next+1), nft.In(setDetour+f.Name, nft.R(0), false)}
}

// loopbackAt matches 127.0.0.0/8 at the offset of the source (12) or destination (16).
func loopbackAt(offset uint32) []nft.Expr {
	return []nft.Expr{nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, 1, nft.R(0)), nft.Cmp(nft.R(0), []byte{127}, false)}
}

// fromSelf matches packets whose source and destination, side by side in the header, are a pair of the set.
func fromSelf(fam byte, offset, size uint32, set string) []nft.Expr {
	return append(nft.IsFamily(fam), nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, 2*size, nft.R(0)), nft.In(set, nft.R(0), false))
}

// samePair matches packets that enter and leave by a pair of bridges in the set.
func samePair(set string) []nft.Expr {
	return []nft.Expr{nft.Meta(unix.NFT_META_IIFNAME, nft.R(0)), nft.Meta(unix.NFT_META_OIFNAME, nft.R(4)), nft.In(set, nft.R(0), false)}
}

// dnatBy sends a packet on by one of the maps.
func dnatBy(s nft.Set) []nft.Expr {
	fam, daddr, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if s.Data[0] == nft.IPv6 {
		fam, daddr, size = unix.NFPROTO_IPV6, 24, 16
	}
	all := append(nft.IsFamily(fam), nft.Meta(unix.NFT_META_L4PROTO, nft.R(0)))
	next := nft.R(1)
	if len(s.Key) == 3 {
		all = append(all, nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, daddr, size, next))
		next += size / 4
	}
	all = append(all, nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, next), nft.Map(s.Name, nft.R(0), nft.R(0)))
	if s.Ranges {
		return append(all, nft.DNATAddr(uint32(fam), nft.R(0)))
	}
	return append(all, nft.DNAT(uint32(fam), nft.R(0), nft.R(size/4)))
}

// The maps of a shifted range: of its address, and of the two ends of the window in which its ports are counted.
const shiftFirst, shiftLast = "f", "l"

func shiftsOf(s nft.Set) []nft.Set {
	to, first := s, s
	to.Name = strings.TrimSuffix(s.Name, ranged) + shifted
	first.Name, first.Data = to.Name+shiftFirst, []nft.Type{nft.Service}
	last := first
	last.Name = to.Name + shiftLast
	return []nft.Set{to, first, last}
}

// shiftBy sends a packet on by the three maps that belong to one of ranges.
func shiftBy(s nft.Set) []nft.Expr {
	maps := shiftsOf(s)
	all := dnatBy(s)
	all = all[:len(all)-2] // the key is loaded: the rest is another
	fam := uint32(unix.NFPROTO_IPV4)
	if s.Data[0] == nft.IPv6 {
		fam = unix.NFPROTO_IPV6
	}
	const to, first, last = 8, 12, 13 // beyond the key
	return append(all, nft.Map(maps[0].Name, nft.R(0), nft.R(to)), nft.Map(maps[1].Name, nft.R(0), nft.R(first)), nft.Map(maps[2].Name, nft.R(0), nft.R(last)),
		nft.DNATModulo(fam, nft.R(to), nft.R(first), nft.R(last)))
}

// elements sorts bindings into the sets.
func elements(bindings []*binding) map[string][]nft.Elem {
	by, seen := map[string][]nft.Elem{}, map[netip.Addr]bool{}
	for _, b := range bindings {
		to, last := b.target.Addr(), b.target.Port()+b.more()
		if b.direct {
			set, proto := setDirect+"4", []byte{protoNumber[b.Proto]}
			if to.Is6() {
				set = setDirect + "6"
			}
			by[set] = append(by[set], nft.Elem{Key: nft.Cat(to.AsSlice(), proto, nft.Port(b.target.Port())), End: nft.Cat(to.AsSlice(), proto, nft.Port(last))})
		}
		if !b.rules {
			continue
		}
		if b.detour != "" {
			first, end, set := b.HostIP, b.HostIP, setDetour+"4"
			if b.HostIP.IsUnspecified() {
				end = netlink.LastAddr(netip.PrefixFrom(first, 0))
			}
			if first.Is6() {
				set = setDetour + "6"
			}
			br, proto := nft.Name(b.detour), []byte{protoNumber[b.Proto]}
			by[set] = append(by[set], nft.Elem{Key: nft.Cat(br, first.AsSlice(), proto, nft.Port(b.HostPort)), End: nft.Cat(br, end.AsSlice(), proto, nft.Port(b.HostPort+b.more()))})
		}
		self := setSelf4
		if to.Is6() {
			self = setSelf6
		}
		if !seen[to] {
			seen[to] = true
			by[self] = append(by[self], nft.Elem{Key: nft.Cat(to.AsSlice(), to.AsSlice())})
		}
		set, head := setAny4, [][]byte{{protoNumber[b.Proto]}}
		switch {
		case b.HostIP.IsUnspecified() && b.HostIP.Is6():
			set = setAny6
		case b.HostIP.Is6():
			set = setHost6
		case !b.HostIP.IsUnspecified():
			set = setHost4
		}
		if !b.HostIP.IsUnspecified() {
			head = append(head, b.HostIP.AsSlice())
		}
		e := nft.Elem{Key: nft.Cat(append(head, nft.Port(b.HostPort))...), Data: nft.Cat(to.AsSlice(), nft.Port(b.target.Port()))}
		if b.more() > 0 {
			set, e.End, e.Data = set+ranged, nft.Cat(append(head, nft.Port(b.HostPort+b.more()))...), to.AsSlice()
			if b.HostPort != b.target.Port() {
				first, last, _ := b.window()
				set = strings.TrimSuffix(set, ranged) + shifted
				for suffix, port := range map[string]uint16{shiftFirst: first, shiftLast: last} {
					by[set+suffix] = append(by[set+suffix], nft.Elem{Key: e.Key, End: e.End, Data: nft.Port(port)})
				}
			}
		}
		by[set] = append(by[set], e)
	}
	return by
}

func addElements(tx *nft.Tx, table string, bindings []*binding) {
	for set, elems := range elements(bindings) {
		tx.AddElems(table, set, elems)
	}
}

func delElements(tx *nft.Tx, table string, bindings []*binding) {
	for set, elems := range elements(bindings) {
		tx.DelElems(table, set, elems)
	}
}

// bridgeElements are the entries of one network in the sets of bridges.
func bridgeElements(nw *network) map[string][]nft.Elem {
	name := nft.Name(nw.br)
	one := []nft.Elem{{Key: name}}
	by := map[string][]nft.Elem{setBridges: one, setSame: {{Key: nft.Cat(name, name)}}}
	if nw.rec.Internal {
		by[setInternal] = one
	}
	for _, from := range nw.trusted {
		by[setTrusted] = append(by[setTrusted], nft.Elem{Key: nft.Cat(nft.Name(from), name)})
	}
	for i, mode := range []gatewayMode{nw.mode4, nw.mode6} {
		snat, fam := nw.snat4, nft.Families[i].Name
		if i == 1 {
			snat = nw.snat6
		}
		switch {
		case nw.rec.Internal:
		case mode == modeRouted:
			by[setRouted+fam] = one
		case !nw.masq:
		case snat.IsValid():
			by[setSNAT+fam] = []nft.Elem{{Key: name, Data: snat.AsSlice()}}
		default:
			by[setMasq+fam] = one
		}
		if mode == modeOpen && !nw.rec.Internal {
			by[setOpen+fam] = one
		}
	}
	if nw.icc {
		by[setICC] = []nft.Elem{{Key: nft.Cat(name, name)}}
	}
	return by
}
