package network

import (
	"net/netip"

	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// The table, "inet corten" unless the engine was told another name:
//
//	map any4, any6     proto . port            : address . port    ports published on all addresses
//	map host4, host6   proto . address . port  : address . port    ports published on one address
//	set bridges        our bridges              set masq    bridges whose containers leave with the host's address
//	set same           bridge . bridge, for every network; set icc: for those whose containers may reach each other
//	set internal       bridges of internal networks
//	set self4, self6   address . the same address, of containers with published ports
//
//	chain corten-user  is the administrator's: made once, never changed or emptied by us, entered before any of our accepts. "accept" there ends
//	                   the administrator's own judging and ours; "drop" is final; "return", or the end, goes on with ours.
//
//	guard       (prerouting, raw)     from our bridges to 127.0.0.0/8: drop, because the bridges route it for published ports
//	prerouting  (nat, dstnat)         to an address of this host, not loopback from outside → ports
//	output      (nat, dstnat)         to an address of this host → ports
//	ports                             not for [::1]; dnat by the four maps, which no two ports can both be in
//	forward     (filter)              jump corten-user; established: accept; same network: accept; internal: drop; published: accept;
//	                                  other packets into our bridges: drop; out of them: accept
//	postrouting (nat, srcnat)         from 127.0.0.0/8 into our bridges, and published ports reached from their own network or container: masquerade;
//	                                  out of masq bridges to elsewhere: masquerade
//
// Only elements change while containers come and go. The rest is written at start and again, with all elements, in one transaction, when someone flushed it.
const (
	chainUser = "corten-user"

	setAny4, setAny6, setHost4, setHost6                                  = "any4", "any6", "host4", "host6"
	setBridges, setMasq, setSame, setICC, setInternal, setSelf4, setSelf6 = "bridges", "masq", "same", "icc", "internal", "self4", "self6"
	chainGuard, chainPre, chainOut, chainPorts                            = "guard", "prerouting", "output", "ports"
	chainForward, chainPost                                               = "forward", "postrouting"
	prioRaw, prioDstNAT, prioFilter, prioSrcNAT                           = -300, -100, 0, 100
	stateEstablished, stateRelated, statusDNATbit                         = 1 << 1, 1 << 2, 1 << 5
)

var (
	natMaps = []nft.Set{
		{Name: setAny4, Key: []nft.Type{nft.Proto, nft.Service}, Data: []nft.Type{nft.IPv4, nft.Service}},
		{Name: setAny6, Key: []nft.Type{nft.Proto, nft.Service}, Data: []nft.Type{nft.IPv6, nft.Service}},
		{Name: setHost4, Key: []nft.Type{nft.Proto, nft.IPv4, nft.Service}, Data: []nft.Type{nft.IPv4, nft.Service}},
		{Name: setHost6, Key: []nft.Type{nft.Proto, nft.IPv6, nft.Service}, Data: []nft.Type{nft.IPv6, nft.Service}},
	}
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
		{Name: setBridges, Key: []nft.Type{nft.IfName}}, {Name: setMasq, Key: []nft.Type{nft.IfName}},
		{Name: setSame, Key: []nft.Type{nft.IfName, nft.IfName}}, {Name: setICC, Key: []nft.Type{nft.IfName, nft.IfName}}, {Name: setInternal, Key: []nft.Type{nft.IfName}},
	}
)

// writeRules puts the whole table but its elements into the transaction.
func writeRules(tx *nft.Tx, table string) {
	tx.AddTable(table)
	for _, s := range natMaps {
		tx.AddSet(table, s)
	}
	for _, s := range append(selfSets[:2:2], bridgeSets...) {
		tx.AddSet(table, s)
	}
	tx.AddChain(table, nft.Chain{Name: chainUser})
	for _, c := range ownChains {
		tx.AddChain(table, c)
		tx.FlushChain(table, c.Name)
	}
	writeNAT(tx, table)
	writeFilter(tx, table)
}

func writeNAT(tx *nft.Tx, table string) {
	add := func(chain, note string, parts ...[]nft.Expr) {
		var all []nft.Expr
		for _, p := range parts {
			all = append(all, p...)
		}
		tx.AddRule(table, chain, note, all...)
	}
	one := func(e ...nft.Expr) []nft.Expr { return e }
	loopbackDst := append(isFamily(unix.NFPROTO_IPV4), loopbackAt(16)...)
	loopbackSrc := append(isFamily(unix.NFPROTO_IPV4), loopbackAt(12)...)
	local := one(nft.DaddrType(nft.R(0)), nft.Cmp(nft.R(0), nft.Host(unix.RTN_LOCAL), false))

	add(chainGuard, "loopback is not for containers", viaSet(unix.NFT_META_IIFNAME, setBridges, false), loopbackDst, one(nft.Drop()))
	add(chainPre, "loopback is not for others", one(nft.Meta(unix.NFT_META_IIFNAME, nft.R(0)), nft.Cmp(nft.R(0), nft.Name("lo"), true)), loopbackDst, one(nft.Return()))
	add(chainPre, "", local, one(nft.Jump(chainPorts)))
	add(chainOut, "", local, one(nft.Jump(chainPorts)))
	add(chainPorts, "no route leads from there: the port proxy", isFamily(unix.NFPROTO_IPV6),
		one(nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 24, 16, nft.R(0)), nft.Cmp(nft.R(0), netip.IPv6Loopback().AsSlice(), false), nft.Return()))
	for _, s := range natMaps {
		add(chainPorts, "", dnatBy(s))
	}
	dnated := one(nft.CtStatus(nft.R(0)), nft.And(nft.R(0), nft.Host(statusDNATbit)), nft.Cmp(nft.R(0), nft.Host(0), true))
	add(chainPost, "the host's loopback", viaSet(unix.NFT_META_OIFNAME, setBridges, false), loopbackSrc, one(nft.Masquerade()))
	add(chainPost, "published port reached from its own network", dnated, viaSet(unix.NFT_META_OIFNAME, setBridges, false), samePair(setSame), one(nft.Masquerade()))
	// Under br_netfilter such a packet never leaves its bridge, and the interface that it came from is not known here.
	add(chainPost, "published port reached from its own container", fromSelf(unix.NFPROTO_IPV4, 12, 4, setSelf4), one(nft.Masquerade()))
	add(chainPost, "published port reached from its own container", fromSelf(unix.NFPROTO_IPV6, 8, 16, setSelf6), one(nft.Masquerade()))
	add(chainPost, "to the outside", viaSet(unix.NFT_META_IIFNAME, setMasq, false), viaSet(unix.NFT_META_OIFNAME, setBridges, true), one(nft.Masquerade()))
}

func writeFilter(tx *nft.Tx, table string) {
	in := viaSet(unix.NFT_META_IIFNAME, setBridges, false)
	out := viaSet(unix.NFT_META_OIFNAME, setBridges, false)
	established := []nft.Expr{nft.CtState(nft.R(0)), nft.And(nft.R(0), nft.Host(stateEstablished|stateRelated)), nft.Cmp(nft.R(0), nft.Host(0), true)}
	dnated := []nft.Expr{nft.CtStatus(nft.R(0)), nft.And(nft.R(0), nft.Host(statusDNATbit)), nft.Cmp(nft.R(0), nft.Host(0), true)}
	add := func(note string, verdict nft.Expr, parts ...[]nft.Expr) {
		var all []nft.Expr
		for _, p := range parts {
			all = append(all, p...)
		}
		tx.AddRule(table, chainForward, note, append(all, verdict)...)
	}
	add("the administrator's own rules come first", nft.Jump(chainUser))
	add("", nft.Accept(), established, out)
	add("", nft.Accept(), established, in)
	add("within a network", nft.Accept(), samePair(setICC))
	add("internal networks", nft.Drop(), viaSet(unix.NFT_META_IIFNAME, setInternal, false))
	add("internal networks", nft.Drop(), viaSet(unix.NFT_META_OIFNAME, setInternal, false))
	add("published ports", nft.Accept(), dnated, out)
	add("everything else into a network", nft.Drop(), out)
	add("to the outside", nft.Accept(), in)
}

func isFamily(fam byte) []nft.Expr {
	return []nft.Expr{nft.Meta(unix.NFT_META_NFPROTO, nft.R(0)), nft.Cmp(nft.R(0), []byte{fam}, false)}
}

// loopbackAt matches 127.0.0.0/8 at the offset of the source (12) or destination (16).
func loopbackAt(offset uint32) []nft.Expr {
	return []nft.Expr{nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, 1, nft.R(0)), nft.Cmp(nft.R(0), []byte{127}, false)}
}

// fromSelf matches packets whose source and destination, side by side in the header, are a pair of the set.
func fromSelf(fam byte, offset, size uint32, set string) []nft.Expr {
	return append(isFamily(fam), nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, 2*size, nft.R(0)), nft.In(set, nft.R(0), false))
}

// viaSet matches packets by the interface they come from or go to.
func viaSet(key uint32, set string, not bool) []nft.Expr {
	return []nft.Expr{nft.Meta(key, nft.R(0)), nft.In(set, nft.R(0), not)}
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
	all := append(isFamily(fam), nft.Meta(unix.NFT_META_L4PROTO, nft.R(0)))
	next := nft.R(1)
	if len(s.Key) == 3 {
		all = append(all, nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, daddr, size, next))
		next += size / 4
	}
	return append(all, nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, next), nft.Map(s.Name, nft.R(0), nft.R(0)), nft.DNAT(uint32(fam), nft.R(0), nft.R(size/4)))
}

// elements sorts bindings into the maps.
func elements(bindings []*binding) map[string][]nft.Elem {
	by, seen := map[string][]nft.Elem{}, map[netip.Addr]bool{}
	for _, b := range bindings {
		if !b.rules {
			continue
		}
		self, to := setSelf4, b.target.Addr().AsSlice()
		if b.target.Addr().Is6() {
			self = setSelf6
		}
		if at := b.target.Addr(); !seen[at] {
			seen[at] = true
			by[self] = append(by[self], nft.Elem{Key: nft.Cat(to, to)})
		}
		set, key := setAny4, [][]byte{{protoNumber[b.Proto]}, b.HostIP.AsSlice(), nft.Port(b.HostPort)}
		switch {
		case b.HostIP.IsUnspecified() && b.HostIP.Is6():
			set = setAny6
		case b.HostIP.Is6():
			set = setHost6
		case !b.HostIP.IsUnspecified():
			set = setHost4
		}
		if b.HostIP.IsUnspecified() {
			key = [][]byte{key[0], key[2]}
		}
		by[set] = append(by[set], nft.Elem{Key: nft.Cat(key...), Data: nft.Cat(b.target.Addr().AsSlice(), nft.Port(b.target.Port()))})
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
	by := map[string][]nft.Elem{setBridges: {{Key: name}}, setSame: {{Key: nft.Cat(name, name)}}}
	if nw.rec.Internal {
		by[setInternal] = []nft.Elem{{Key: name}}
	} else if nw.masq {
		by[setMasq] = []nft.Elem{{Key: name}}
	}
	if nw.icc {
		by[setICC] = []nft.Elem{{Key: nft.Cat(name, name)}}
	}
	return by
}
