package network

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"corten.dev/corten/internal/errs"
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
	stateNew                                = 1 << 3
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
		for _, f := range families {
			to := nft.IPv4
			if f.proto == unix.NFPROTO_IPV6 {
				to = nft.IPv6
			}
			from := to
			if kind == byNet {
				from = nft.IfName
			}
			for _, s := range sets(from, to) {
				s.Name = kind + s.Name + f.name
				all = append(all, s)
			}
		}
	}
	return all
}

// whoseList loads what a list is found by into register 0: the bridge that a packet comes from, or its source address. It tells which register is the next free one.
func whoseList(kind string, f family) (load nft.Expr, next uint32) {
	if kind == byNet {
		return nft.Meta(unix.NFT_META_IIFNAME, nft.R(0)), nft.R(4)
	}
	return nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, f.daddr-f.size, f.size, nft.R(0)), nft.R(f.size / 4)
}

// writeEgress writes the two chains, and input; judge goes into forward.
func writeEgress(tx *nft.Tx, table string, fams []family) {
	isNew := []nft.Expr{nft.CtState(nft.R(0)), nft.And(nft.R(0), nft.Host(stateNew)), nft.Cmp(nft.R(0), nft.Host(0), true)}
	for kind, chain := range map[string]string{byNet: chainEgressNet, "": chainEgress} {
		counted(tx, table, chain, kind, setAsked, fams)
		for _, f := range fams {
			load, next := whoseList(kind, f)
			to := append(isFamily(f.proto), load, nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, f.daddr, f.size, next))
			next += f.size / 4
			proto, service := nft.Meta(unix.NFT_META_L4PROTO, next), nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, next+1)
			for _, in := range []struct {
				set  string
				rest []nft.Expr
			}{{setAllow, []nft.Expr{proto, service}}, {setTold, []nft.Expr{proto, service}}, {setToldProto, []nft.Expr{proto}}, {setToldAny, nil}} {
				all := append(append([]nft.Expr{}, to...), in.rest...)
				tx.AddRule(table, chain, "", append(all, nft.In(kind+in.set+f.name, nft.R(0), false), nft.Return())...)
			}
		}
		counted(tx, table, chain, kind, setDenied, fams)
		tx.AddRule(table, chain, "not in the list", nft.Counter(), nft.Drop())
	}
	judge(tx, table, chainInput, fams, isNew)
}

// counted counts packets for those whose list it is.
func counted(tx *nft.Tx, table, chain, kind, set string, fams []family) {
	for _, f := range fams {
		load, _ := whoseList(kind, f)
		if kind == byNet {
			tx.AddRule(table, chain, "", load, nft.In(byNet+set, nft.R(0), false))
			return
		}
		tx.AddRule(table, chain, "", append(isFamily(f.proto), load, nft.In(set+f.name, nft.R(0), false))...)
	}
}

// judge sends packets from those who have a list through the chains.
func judge(tx *nft.Tx, table, chain string, fams []family, which []nft.Expr) {
	add := func(note, to string, parts ...[]nft.Expr) {
		all := append([]nft.Expr{}, which...)
		for _, p := range parts {
			all = append(all, p...)
		}
		tx.AddRule(table, chain, note, append(all, nft.Jump(to))...)
	}
	add("networks with an egress list", chainEgressNet, viaSet(unix.NFT_META_IIFNAME, setFenceNet, false))
	for _, f := range fams {
		from, _ := whoseList("", f)
		add("containers with an egress list", chainEgress, viaSet(unix.NFT_META_IIFNAME, setBridges, false), isFamily(f.proto), []nft.Expr{from, nft.In(setFence+f.name, nft.R(0), false)})
	}
}

// elements are what a list says, in the kernel's sets of its kind.
func (e *Egress) elements(whose []byte, digit string) []nft.Elem {
	var all []nft.Elem
	for _, b := range e.boxes() {
		if familyDigit(b.from) == digit {
			all = append(all, nft.Elem{Key: nft.Cat(whose, b.from.AsSlice(), []byte{b.proto}, nft.Port(b.port)), End: nft.Cat(whose, b.to.AsSlice(), []byte{b.protoE}, nft.Port(b.portE))})
		}
	}
	return all
}

// fenceNet are the elements of a network with a list.
func (e *Egress) fenceNet(by map[string][]nft.Elem, br string) {
	for _, set := range []string{setFenceNet, byNet + setAsked, byNet + setDenied} {
		by[set] = []nft.Elem{{Key: nft.Name(br)}}
	}
	for _, f := range families {
		if elems := e.elements(nft.Name(br), f.name); len(elems) > 0 {
			by[byNet+setAllow+f.name] = elems
		}
	}
}

func familyDigit(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// fenceElements are the elements of an endpoint whose container has a list.
func fenceElements(e *Egress, ep Endpoint) map[string][]nft.Elem {
	by := map[string][]nft.Elem{}
	for _, a := range ep.sources() {
		digit := familyDigit(a)
		for _, set := range []string{setFence, setAsked, setDenied} {
			by[set+digit] = append(by[set+digit], nft.Elem{Key: a.AsSlice()})
		}
		by[setAllow+digit] = append(by[setAllow+digit], e.elements(a.AsSlice(), digit)...)
	}
	return by
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

// checkFence says why a container with a list cannot be on the network, if so.
func (l *Local) checkFence(nw *network) error {
	switch {
	case nw.rec.Predefined && nw.rec.Driver == driverNull:
		return nil
	case nw.br == "":
		return errs.New(errs.NotImplemented, "an egress list needs networks of driver bridge: packets of network %s (%s) do not pass this host's rules", nw.rec.Name, nw.rec.Driver)
	case l.opt.NoRules:
		return errs.New(errs.NotImplemented, "an egress list needs nftables rules, and this engine was told to write none")
	case l.opt.NoRules6 && nw.v6 != nil:
		return errs.New(errs.NotImplemented, "an egress list on network %s with IPv6 needs nftables rules for it, and this engine was told to write none", nw.rec.Name)
	}
	return nil
}

// readEgress reads the list of a network.
func (nw *network) readEgress(l *Local) (err error) {
	text, given := nw.rec.Options[OptionEgress]
	if !given {
		return nil
	}
	if nw.egress, err = ParseEgress(text); err != nil || nw.egress == nil {
		return err
	}
	return l.checkFence(nw)
}

// fence puts the lists of a container's endpoints into the kernel, before anything runs there.
func (l *Local) fence(bx *box, eps []Endpoint) error {
	if bx.egress == nil {
		return nil
	}
	tx := &nft.Tx{}
	for _, ep := range eps {
		for set, elems := range fenceElements(bx.egress, ep) {
			tx.AddElems(l.opt.Table, set, elems)
		}
	}
	err := l.guard(eps)
	if err != nil {
		return err
	}
	if err = l.commit(tx); errors.Is(err, unix.ENOENT) { // flushed a moment ago
		err = l.applyRules(false)
	}
	l.mu.Lock()
	l.rules.changes++
	l.mu.Unlock()
	return err
}

// unfence takes them away, with what was told for names, before the addresses are another's.
func (l *Local) unfence(bx *box, eps []Endpoint) error {
	if bx.egress == nil || len(eps) == 0 {
		return nil
	}
	tx := &nft.Tx{}
	for _, ep := range eps {
		for set, elems := range fenceElements(bx.egress, ep) {
			tx.AddElems(l.opt.Table, set, elems) // so that all are there, also when a start failed early
			tx.DelElems(l.opt.Table, set, elems)
		}
		for _, a := range ep.sources() {
			l.untell(tx, "", a.AsSlice())
		}
	}
	err := l.commit(tx)
	if errors.Is(err, unix.ENOENT) {
		l.rules.again()
		err = nil
	}
	return errors.Join(err, l.unguard(eps))
}
