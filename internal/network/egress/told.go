package egress

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/network/dns"
	"golang.org/x/sys/unix"
)

// toldNames are the elements that the answers for names of lists put into the kernel, by whose list it is (listOf), set and key.
type toldNames map[string]map[toldElem]saying

type toldElem struct{ set, key string }

type saying struct {
	until time.Time
	name  string // which it was told for; the kernel has it too, as the element's comment
}

// What foreign name servers can put into the kernel: in all, and for one list, so that nobody who may ask for every name keeps the others' names out.
const maxTold, maxToldEach = 65536, 8192

// Admit puts the addresses that a name has into the kernel, as far as the list of an owner and those of its bridges have the name. Whoever answers names is not believed: it must be in a list.
func (l *Lists) Admit(name string, bridges []string, asked string, addrs []dns.Told) error {
	by := map[string][]nft.Elem{}
	note := func(list *List, kind string, whose []byte, digit string) {
		for _, t := range addrs {
			if nameable(t.Addr) && nft.FamilyOf(t.Addr).Name == digit {
				list.tell(by, kind, whose, asked, t)
			}
		}
	}
	l.mu.Lock()
	o := l.owners[name]
	for _, a := range addresses(o.from) {
		note(o.list, "", a.AsSlice(), nft.FamilyOf(a).Name)
	}
	for _, bridge := range bridges {
		if list := l.bridges[bridge]; list != nil {
			for _, f := range nft.Families {
				note(list, byNet, nft.Name(bridge), f.Name)
			}
		}
	}
	now := time.Now()
	err := l.told.room(by, now)
	if err == nil {
		l.told.note(by, now)
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.putTold(by)
}

// putTold puts noted elements into the kernel.
func (l *Lists) putTold(by map[string][]nft.Elem) error {
	tx := &nft.Tx{}
	for set, elems := range by { // one that is there keeps its time, so it must go; and to go it must be there
		tx.AddElems(l.opt.Table, set, elems)
		tx.DelElems(l.opt.Table, set, elems)
		tx.AddElems(l.opt.Table, set, elems)
	}
	err := l.commit(tx)
	for i := 0; i < 10 && errors.Is(err, unix.ENOENT); i++ { // one ended just now; or all was flushed, and is being written
		time.Sleep(20 * time.Millisecond)
		err = l.commit(tx)
	}
	if err != nil {
		return err
	}
	gone := &nft.Tx{} // its list went, or was changed, after they were noted: that must not come to nothing by this
	l.mu.Lock()
	for set, elems := range by {
		for _, e := range elems {
			if key := (toldElem{set, string(e.Key)}); !l.told.has(key) {
				l.forget(gone, key)
			}
		}
	}
	l.mu.Unlock()
	return l.commit(gone)
}

// listOf tells whose list an element of a set is of: a bridge's, or an address's. Only the beginning of the key counts, which is the bridge or the address.
func listOf(set, key string) string {
	switch digit := set[len(set)-1:]; {
	case strings.HasPrefix(set, byNet):
		return byNet + key[:unix.IFNAMSIZ]
	case digit == "4":
		return digit + key[:4]
	default:
		return digit + key[:16]
	}
}

// listKey is what listOf says of the elements of a bridge or an address.
func listKey(kind string, whose []byte) string {
	if kind == "" {
		kind = map[int]string{4: "4", 16: "6"}[len(whose)]
	}
	return kind + string(whose)
}

// prune forgets what has ended of a list.
func (t toldNames) prune(list string, now time.Time) {
	for e, what := range t[list] {
		if what.until.Before(now) {
			t.forget(e)
		}
	}
}

func (t toldNames) forget(e toldElem) {
	list := listOf(e.set, e.key)
	delete(t[list], e)
	if len(t[list]) == 0 {
		delete(t, list)
	}
}

func (t toldNames) has(e toldElem) bool {
	_, ok := t[listOf(e.set, e.key)][e]
	return ok
}

// room says whether elements are too many for their lists, or for all together. mu is held.
func (t toldNames) room(by map[string][]nft.Elem, now time.Time) error {
	fresh, all := map[string]int{}, 0
	for set, elems := range by {
		for _, elem := range elems {
			list := listOf(set, string(elem.Key))
			if _, seen := fresh[list]; !seen {
				t.prune(list, now)
				fresh[list] = 0
			}
			if !t.has(toldElem{set, string(elem.Key)}) {
				fresh[list]++
				all++
			}
		}
	}
	for list, n := range fresh {
		if len(t[list])+n > maxToldEach {
			return errs.New(errs.Unavailable, "the names of an egress list have more than %d addresses and ports", maxToldEach)
		}
	}
	for _, elems := range t {
		all += len(elems)
	}
	if all > maxTold {
		for list := range t { // for the next one
			t.prune(list, now)
		}
		return errs.New(errs.Unavailable, "the names of all egress lists have more than %d addresses and ports", maxTold)
	}
	return nil
}

// note takes elements down, with the names that they are for as their notes.
func (t toldNames) note(by map[string][]nft.Elem, now time.Time) {
	for set, elems := range by {
		for _, elem := range elems {
			e := toldElem{set, string(elem.Key)}
			list := listOf(e.set, e.key)
			if t[list] == nil {
				t[list] = map[toldElem]saying{}
			}
			t[list][e] = saying{now.Add(elem.Timeout), elem.Note}
		}
	}
}

// tell adds the elements for one address of a name.
func (e *List) tell(by map[string][]nft.Elem, kind string, whose []byte, name string, t dns.Told) {
	add := func(set string, key ...[]byte) {
		set = kind + set + nft.FamilyOf(t.Addr).Name
		by[set] = append(by[set], nft.Elem{Key: nft.Cat(append([][]byte{whose, t.Addr.AsSlice()}, key...)...), Timeout: dns.Lifetime(t.TTL), Note: name})
	}
	for _, n := range e.Names {
		if !dns.Match(n.Name, name) {
			continue
		}
		switch {
		case n.First == 0 && n.Proto == 0:
			add(setToldAny)
			continue
		case n.First == 0:
			add(setToldProto, []byte{n.Proto})
			continue
		}
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			for port := int(n.First); port <= int(n.Last) && (n.Proto == 0 || n.Proto == proto); port++ {
				add(setTold, []byte{proto}, nft.Port(uint16(port)))
			}
		}
	}
}

// tells says whether the list says of the name what an element says.
func (e *List) tells(elem toldElem, kind string, whose []byte, name string) bool {
	size := map[byte]int{'4': 4, '6': 16}[elem.set[len(elem.set)-1]]
	addr, ok := netip.AddrFromSlice([]byte(elem.key[len(whose):][:size]))
	by := map[string][]nft.Elem{}
	if ok && name != "" {
		e.tell(by, kind, whose, name, dns.Told{Addr: addr})
	}
	return slices.ContainsFunc(by[elem.set], func(o nft.Elem) bool { return string(o.Key) == elem.key })
}

// letTold says whether a packet gets through by what was told for names. mu is held.
func (l *Lists) letTold(kind string, whose []byte, to netip.AddrPort, proto byte) bool {
	addr, now := to.Addr().AsSlice(), time.Now()
	told := l.told[listKey(kind, whose)]
	for set, key := range map[string][]byte{
		setTold: nft.Cat(whose, addr, []byte{proto}, nft.Port(to.Port())), setToldProto: nft.Cat(whose, addr, []byte{proto}), setToldAny: nft.Cat(whose, addr),
	} {
		if what, known := told[toldElem{kind + set + nft.FamilyOf(to.Addr()).Name, string(key)}]; known && what.until.After(now) {
			return true
		}
	}
	return false
}

// keepTold takes away what was told for names that the list, which may be nil, does not have so. mu is held.
func (l *Lists) keepTold(tx *nft.Tx, kind string, whose []byte, list *List) {
	for e, what := range l.told[listKey(kind, whose)] {
		if list == nil || !list.tells(e, kind, whose, what.name) {
			l.forget(tx, e)
		}
	}
}

// forget takes one element away; it may have gone by itself, so it is made first. mu is held.
func (l *Lists) forget(tx *nft.Tx, e toldElem) {
	elem := []nft.Elem{{Key: []byte(e.key), Timeout: time.Second}}
	tx.AddElems(l.opt.Table, e.set, elem)
	tx.DelElems(l.opt.Table, e.set, elem)
	l.told.forget(e)
}

// Adopt reads what names were told before this engine came: once, when the whole table was written.
func (l *Lists) Adopt() error {
	now := time.Now()
	for _, s := range toldSets {
		elems, err := l.elems(0, s.Name)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.told.note(map[string][]nft.Elem{s.Name: elems}, now)
		l.mu.Unlock()
	}
	return nil
}

// known tells whose lists there are, as listOf does. mu is held.
func (l *Lists) known() map[string]bool {
	whose := map[string]bool{}
	for _, o := range l.owners {
		for _, a := range addresses(o.from) {
			whose[listKey("", a.AsSlice())] = true
		}
	}
	for bridge := range l.bridges {
		whose[listKey(byNet, nft.Name(bridge))] = true
	}
	return whose
}

// settleTold takes away what belongs to nobody any more.
func (l *Lists) settleTold() error {
	l.mu.Lock()
	whose := l.known()
	tx := &nft.Tx{}
	for list, elems := range l.told {
		for e := range elems {
			if !whose[list] {
				l.forget(tx, e)
			}
		}
	}
	l.mu.Unlock()
	return l.again(tx)
}

// nameable says whether a name can let an address through: whoever owns the name must not open the host's own network, or the services that clouds have at link-local addresses.
func nameable(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified()
}

// addTold adds what was told for names. mu is held.
func (l *Lists) addTold(tx *nft.Tx) {
	now := time.Now()
	for _, elems := range l.told {
		for e, what := range elems {
			if left := what.until.Sub(now); left > 0 {
				tx.AddElems(l.opt.Table, e.set, []nft.Elem{{Key: []byte(e.key), Timeout: left, Note: what.name}})
			}
		}
	}
}
