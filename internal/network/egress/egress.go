// Package egress is the room of who may connect to where: lists of addresses and names, of containers by the addresses that they send from, and of networks by their bridges.
//
// It owns the lists that are in force, and in the network room's nftables table of the inet family the sets, chains and rules that judge by them (drawn in rules.go); a table of the same
// name in the bridge family, by which nobody with a list passes for a neighbour (guard.go); the addresses that names of lists were told to have, for as long as they hold (told.go); and
// what was counted (count.go). It knows no containers, networks or plugins: an owner is an opaque name, with the interfaces that it sends from.
//
// It promises: when Put or PutBridge returned, the kernel judges by that list and no other, also by what names were told; what is taken away is gone from the kernel, with its names and
// counts; on an error the list that was there is in force. A list that is the kernel's already is not touched, so that no packet of it notices an engine that comes back.
//
// How the network room uses it:
//
//	New ─ Note the bridges ─ (the whole table: Define, Rules, Judge, Elements; then Guard) ─ Adopt ─ Put what runs ─ Settle
//	Put, PutBridge      as containers and networks come, change and go
//	Admit               the name server has an answer for a name
//	Lets, Counts        what would be let through, and what was
package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// Options join the room with the table that it writes into; all but OnlyIPv4 are needed.
type Options struct {
	Table   string // of the inet and of the bridge family
	Bridges string // the set of the network room's bridges, in that table
	Conns   *nft.Conns
	// OnlyIPv4 leaves IPv6 to somebody else.
	OnlyIPv4 bool
	// Rewrite writes the whole table, now; Again soon. They are called when somebody else flushed it, with no lock held.
	Rewrite func() error
	Again   func()
}

// Source is one interface that an owner sends from.
type Source struct {
	Link  string           // the host's end, a port of a bridge
	MAC   net.HardwareAddr // may be nil
	Addrs []netip.Addr
}

// Lists are the lists in force. Its methods may be called by several goroutines.
type Lists struct {
	opt     Options
	changes atomic.Uint64

	write   sync.Mutex      // one change of an owner's at a time, and one writer of the bridge family's table: held over kernel work that only owners with lists wait for
	guarded map[string]bool // ports bound to their addresses; guarded by write

	mu      sync.Mutex // guards what follows; never held over a system call
	owners  map[string]owner
	bridges map[string]*List
	told    toldNames
}

// owner is one who has a list.
type owner struct {
	list *List
	from []Source
}

// New makes the room. It writes nothing.
func New(opt Options) *Lists {
	return &Lists{opt: opt, guarded: map[string]bool{}, owners: map[string]owner{}, bridges: map[string]*List{}, told: toldNames{}}
}

// Changes is how often the lists were changed: who writes the whole table writes it again when that was meanwhile.
func (l *Lists) Changes() uint64 { return l.changes.Load() }

// Note takes the list of a bridge for granted: the whole table is yet to be written. A nil list is none.
func (l *Lists) Note(bridge string, list *List) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setBridge(bridge, list)
}

func (l *Lists) setBridge(bridge string, list *List) {
	if list == nil {
		delete(l.bridges, bridge)
	} else {
		l.bridges[bridge] = list
	}
	l.changes.Add(1)
}

// PutBridge changes the list of a bridge; nil is none.
func (l *Lists) PutBridge(bridge string, list *List) error {
	tx := &nft.Tx{}
	l.mu.Lock()
	had := l.bridges[bridge]
	if had == nil && list == nil {
		l.mu.Unlock()
		return nil
	}
	l.setBridge(bridge, list)
	l.exchange(tx, bridgeElements(had, bridge), bridgeElements(list, bridge))
	l.keepTold(tx, byNet, nft.Name(bridge), list)
	l.mu.Unlock()
	err := l.commit(tx)
	if errors.Is(err, unix.ENOENT) { // flushed a moment ago
		l.opt.Again()
		return nil
	}
	if err != nil && list != nil {
		l.Note(bridge, had)
	}
	return err
}

// Put makes an owner's list, and where it sends from, what now says: a nil list is none. now is asked when it is this owner's turn, so that the last word is the right one.
// Before anything runs behind a new interface it must have returned.
func (l *Lists) Put(name string, now func() (*List, []Source)) error {
	list, flushed, err := l.put(name, now)
	switch {
	case !flushed:
		return err
	case list != nil:
		return l.opt.Rewrite()
	}
	l.opt.Again()
	return nil
}

func (l *Lists) put(name string, now func() (*List, []Source)) (list *List, flushed bool, err error) {
	l.write.Lock()
	defer l.write.Unlock()
	list, from := now()
	if list == nil {
		from = nil
	}
	l.mu.Lock()
	had, has := l.owners[name]
	l.mu.Unlock()
	if !has && list == nil {
		return nil, false, nil
	}
	if err := l.bind(from); err != nil {
		return list, false, err
	}
	tx := &nft.Tx{}
	l.mu.Lock()
	l.setOwner(name, owner{list, from})
	l.exchange(tx, had.elements(), owner{list, from}.elements())
	stays := addresses(from)
	for _, a := range addresses(had.from) {
		if slices.Contains(stays, a) {
			l.keepTold(tx, "", a.AsSlice(), list)
		} else {
			l.keepTold(tx, "", a.AsSlice(), nil)
		}
	}
	l.mu.Unlock()
	err = l.commit(tx)
	if flushed = errors.Is(err, unix.ENOENT); flushed { // a moment ago, by somebody else
		err = nil
	}
	if err != nil && list != nil {
		l.mu.Lock()
		l.setOwner(name, had)
		l.mu.Unlock()
		return list, false, errors.Join(err, l.unbind(from, had.from))
	}
	return list, flushed, errors.Join(err, l.unbind(had.from, from))
}

func (l *Lists) setOwner(name string, o owner) {
	if o.list == nil {
		delete(l.owners, name)
	} else {
		l.owners[name] = o
	}
	l.changes.Add(1)
}

// exchange has the elements replaced that differ.
func (l *Lists) exchange(tx *nft.Tx, had, want map[string][]nft.Elem) {
	in := func(all []nft.Elem, e nft.Elem) bool {
		return slices.ContainsFunc(all, func(o nft.Elem) bool { return slices.Equal(o.Key, e.Key) && slices.Equal(o.End, e.End) })
	}
	for set, elems := range had {
		tx.DelElems(l.opt.Table, set, slices.DeleteFunc(slices.Clone(elems), func(e nft.Elem) bool { return in(want[set], e) }))
	}
	for set, elems := range want {
		tx.AddElems(l.opt.Table, set, slices.DeleteFunc(slices.Clone(elems), func(e nft.Elem) bool { return in(had[set], e) }))
	}
}

// Lets says whether the lists of an owner and of its bridge let a packet from one of its addresses through.
func (l *Lists) Lets(name, bridge string, from netip.Addr, to netip.AddrPort, proto byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	let := func(list *List, kind string, whose []byte) bool {
		return list == nil || list.allows(to.Addr(), proto, to.Port()) || l.letTold(kind, whose, to, proto)
	}
	return let(l.owners[name].list, "", from.AsSlice()) && let(l.bridges[bridge], byNet, nft.Name(bridge))
}

// Settle takes away what an engine before this one left of those who are no more: call it once, when all that runs was put.
func (l *Lists) Settle() error { return errors.Join(l.settleTold(), l.settleCounts()) }

func (l *Lists) commit(tx *nft.Tx) error { return l.opt.Conns.Commit(tx) }

// again commits a transaction that takes things away; if they are gone with the table, it is being written anew.
func (l *Lists) again(tx *nft.Tx) error {
	err := l.commit(tx)
	if errors.Is(err, unix.ENOENT) {
		l.opt.Again()
		return nil
	}
	return err
}

func (l *Lists) elems(family uint8, set string) ([]nft.Elem, error) {
	all, err := l.opt.Conns.Elems(family, l.opt.Table, set)
	if err != nil {
		return nil, fmt.Errorf("read set %s: %w", set, err)
	}
	return all, nil
}

func addresses(from []Source) (all []netip.Addr) {
	for _, s := range from {
		all = append(all, s.Addrs...)
	}
	return all
}
