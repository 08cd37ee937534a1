package egress

import (
	"slices"

	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// What the table has for egress lists. A list belongs to a network, by its bridge, or to a container, by its addresses:
//
//	set fencenet                    bridge
//	set fence4, fence6              address
//	set allow4, allow6, netallow4 … address (or bridge) . addresses . protocols . ports      what the list itself says
//	set told4, told6, nettold4 …    address (or bridge) . address . protocol . port          what the DNS answered for a name of the list, with a time limit;
//	set toldp4 … nettolda6          … . address . protocol, … . address                      where the list names no port, and no protocol
//
//	set asked4, asked6, netasked    address (or bridge), with what the list was asked for: set denied4, denied6, netdenied with what it dropped of that
//
//	input                           (filter)  new, to the host itself: as in forward
//	egress-network, -container      count; allowed, told: return; else count, and drop
//
// A packet is judged by where it goes, for a port that another container publishes by that container's address, and only the first one of a connection is.
const (
	setFenceNet, setFence, setAllow         = "fencenet", "fence", "allow" // all but the first: and 4 or 6
	setTold, setToldProto, setToldAny       = "told", "toldp", "tolda"
	setAsked, setDenied                     = "asked", "denied"
	byNet                                   = "net" // before the names of those that are for networks
	chainInput, chainEgressNet, chainEgress = "input", "egress-network", "egress-container"
	prioFilter, stateNew                    = 0, 1 << 3
)

var (
	fenceNetSet = nft.Set{Name: setFenceNet, Key: []nft.Type{nft.IfName}}
	fenceSets   = slices.Concat([]nft.Set{{Name: setFence + "4", Key: []nft.Type{nft.IPv4}}, {Name: setFence + "6", Key: []nft.Type{nft.IPv6}}},
		listSets(func(from, to nft.Type) []nft.Set {
			return []nft.Set{{Name: setAllow, Key: []nft.Type{from, to, nft.Proto, nft.Service}, Ranges: true}}
		}))
	// countSets are not written anew either, so that no count is lost.
	countSets = []nft.Set{
		{Name: setAsked + "4", Key: []nft.Type{nft.IPv4}, Counters: true}, {Name: setAsked + "6", Key: []nft.Type{nft.IPv6}, Counters: true},
		{Name: setDenied + "4", Key: []nft.Type{nft.IPv4}, Counters: true}, {Name: setDenied + "6", Key: []nft.Type{nft.IPv6}, Counters: true},
		{Name: byNet + setAsked, Key: []nft.Type{nft.IfName}, Counters: true}, {Name: byNet + setDenied, Key: []nft.Type{nft.IfName}, Counters: true},
	}
	// toldSets are not written anew at the start of an engine: what the one before it put there is read.
	toldSets = listSets(func(from, to nft.Type) []nft.Set {
		return []nft.Set{{Name: setTold, Key: []nft.Type{from, to, nft.Proto, nft.Service}, Timeout: true},
			{Name: setToldProto, Key: []nft.Type{from, to, nft.Proto}, Timeout: true}, {Name: setToldAny, Key: []nft.Type{from, to}, Timeout: true}}
	})
)

// listSets makes sets for both kinds of lists and both families.
func listSets(sets func(from, to nft.Type) []nft.Set) (all []nft.Set) {
	for _, kind := range []string{"", byNet} {
		for _, f := range nft.Families {
			to := f.Addr
			from := to
			if kind == byNet {
				from = nft.IfName
			}
			for _, s := range sets(from, to) {
				s.Name = kind + s.Name + f.Name
				all = append(all, s)
			}
		}
	}
	return all
}

// whoseList loads what a list is found by into register 0: the bridge that a packet comes from, or its source address. It tells which register is the next free one.
func whoseList(kind string, f nft.Family) (load nft.Expr, next uint32) {
	if kind == byNet {
		return nft.Meta(unix.NFT_META_IIFNAME, nft.R(0)), nft.R(4)
	}
	return nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, f.Dst-f.Size, f.Size, nft.R(0)), nft.R(f.Size / 4)
}

// families are those that are judged.
func (l *Lists) families() []nft.Family {
	if l.opt.OnlyIPv4 {
		return nft.Families[:1]
	}
	return nft.Families
}

// Define adds the sets and the chains, which are emptied, to a transaction that adds the table.
func (l *Lists) Define(tx *nft.Tx) {
	for _, s := range slices.Concat([]nft.Set{fenceNetSet}, fenceSets, countSets, toldSets) {
		tx.AddSet(l.opt.Table, s)
	}
	for _, c := range []nft.Chain{{Name: chainEgressNet}, {Name: chainEgress}, {Name: chainInput, Type: "filter", Hook: unix.NF_INET_LOCAL_IN, Priority: prioFilter}} {
		tx.AddChain(l.opt.Table, c)
		tx.FlushChain(l.opt.Table, c.Name)
	}
}

// Rules writes the rules of the chains.
func (l *Lists) Rules(tx *nft.Tx) {
	table, fams := l.opt.Table, l.families()
	isNew := []nft.Expr{nft.CtState(nft.R(0)), nft.And(nft.R(0), nft.Host(stateNew)), nft.Cmp(nft.R(0), nft.Host(0), true)}
	for kind, chain := range map[string]string{byNet: chainEgressNet, "": chainEgress} {
		counted(tx, table, chain, kind, setAsked, fams)
		for _, f := range fams {
			load, next := whoseList(kind, f)
			to := append(nft.IsFamily(f.Proto), load, nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, f.Dst, f.Size, next))
			next += f.Size / 4
			proto, service := nft.Meta(unix.NFT_META_L4PROTO, next), nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, next+1)
			for _, in := range []struct {
				set  string
				rest []nft.Expr
			}{{setAllow, []nft.Expr{proto, service}}, {setTold, []nft.Expr{proto, service}}, {setToldProto, []nft.Expr{proto}}, {setToldAny, nil}} {
				all := append(append([]nft.Expr{}, to...), in.rest...)
				tx.AddRule(table, chain, "", append(all, nft.In(kind+in.set+f.Name, nft.R(0), false), nft.Return())...)
			}
		}
		counted(tx, table, chain, kind, setDenied, fams)
		tx.AddRule(table, chain, "not in the list", nft.Counter(), nft.Drop())
	}
	l.judge(tx, chainInput, isNew)
}

// counted counts packets for those whose list it is.
func counted(tx *nft.Tx, table, chain, kind, set string, fams []nft.Family) {
	for _, f := range fams {
		load, _ := whoseList(kind, f)
		if kind == byNet {
			tx.AddRule(table, chain, "", load, nft.In(byNet+set, nft.R(0), false))
			return
		}
		tx.AddRule(table, chain, "", append(nft.IsFamily(f.Proto), load, nft.In(set+f.Name, nft.R(0), false))...)
	}
}

// Judge adds the rules to a chain of packets that are passed on, by which those from who has a list go through the chains. Connections that are there already must have left it.
func (l *Lists) Judge(tx *nft.Tx, chain string) { l.judge(tx, chain, nil) }

func (l *Lists) judge(tx *nft.Tx, chain string, which []nft.Expr) {
	add := func(note, to string, parts ...[]nft.Expr) {
		all := append([]nft.Expr{}, which...)
		for _, p := range parts {
			all = append(all, p...)
		}
		tx.AddRule(l.opt.Table, chain, note, append(all, nft.Jump(to))...)
	}
	add("networks with an egress list", chainEgressNet, nft.Via(unix.NFT_META_IIFNAME, setFenceNet, false))
	for _, f := range l.families() {
		from, _ := whoseList("", f)
		add("containers with an egress list", chainEgress, nft.Via(unix.NFT_META_IIFNAME, l.opt.Bridges, false), nft.IsFamily(f.Proto), []nft.Expr{from, nft.In(setFence+f.Name, nft.R(0), false)})
	}
}

// Elements adds all elements, and with all takes away whatever else is there: only once everything that runs was put, because until then the kernel knows more than we do.
func (l *Lists) Elements(tx *nft.Tx, all bool) {
	tx.FlushSet(l.opt.Table, fenceNetSet.Name)
	if all {
		for _, s := range fenceSets {
			tx.FlushSet(l.opt.Table, s.Name)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for bridge, list := range l.bridges {
		l.add(tx, bridgeElements(list, bridge))
	}
	for _, o := range l.owners {
		l.add(tx, o.elements())
	}
	l.addTold(tx)
}

func (l *Lists) add(tx *nft.Tx, by map[string][]nft.Elem) {
	for set, elems := range by {
		tx.AddElems(l.opt.Table, set, elems)
	}
}

// elements are what a list says, in the kernel's sets of its kind.
func (e *List) elements(whose []byte, digit string) []nft.Elem {
	var all []nft.Elem
	for _, b := range e.boxes() {
		if nft.FamilyOf(b.from).Name == digit {
			all = append(all, nft.Elem{Key: nft.Cat(whose, b.from.AsSlice(), []byte{b.proto}, nft.Port(b.port)), End: nft.Cat(whose, b.to.AsSlice(), []byte{b.protoE}, nft.Port(b.portE))})
		}
	}
	return all
}

// bridgeElements are the elements of a bridge with a list.
func bridgeElements(list *List, bridge string) map[string][]nft.Elem {
	by := map[string][]nft.Elem{}
	if list == nil {
		return by
	}
	for _, set := range []string{setFenceNet, byNet + setAsked, byNet + setDenied} {
		by[set] = []nft.Elem{{Key: nft.Name(bridge)}}
	}
	for _, f := range nft.Families {
		if elems := list.elements(nft.Name(bridge), f.Name); len(elems) > 0 {
			by[byNet+setAllow+f.Name] = elems
		}
	}
	return by
}

// elements are the elements of an owner.
func (o owner) elements() map[string][]nft.Elem {
	by := map[string][]nft.Elem{}
	for _, a := range addresses(o.from) {
		digit := nft.FamilyOf(a).Name
		for _, set := range []string{setFence, setAsked, setDenied} {
			by[set+digit] = append(by[set+digit], nft.Elem{Key: a.AsSlice()})
		}
		by[setAllow+digit] = append(by[setAllow+digit], o.list.elements(a.AsSlice(), digit)...)
	}
	return by
}
