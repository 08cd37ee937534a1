package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/network/dns"
	"corten.dev/corten/internal/network/resident"
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

// gating keeps the gate of the name server (package dns) open while somebody it serves has an egress list.
type gating struct {
	conn    *net.UnixConn // guarded by nameLink.mu, as are the others
	running bool
	refused map[string]uint64 // owner: names that were not answered
}

// openGate has the gate opened if it must be and is not, and waits for that a moment.
func (l *Local) openGate(ctx context.Context) {
	n := l.dns
	n.mu.Lock()
	start := !n.gate.running && n.fenced()
	n.gate.running = n.gate.running || start
	n.mu.Unlock()
	if !start {
		return
	}
	opened := make(chan struct{})
	l.work.Go(func() { l.keepGate(opened) })
	select {
	case <-opened:
	case <-ctx.Done():
	case <-l.done:
	}
}

// fenced says whether anybody has a list. mu is held.
func (n *nameLink) fenced() bool {
	for _, s := range n.want {
		if s.entry.Fenced() {
			return true
		}
	}
	return false
}

// keepGate serves the gate, and opens it again when the server was replaced, until nobody needs it.
func (l *Local) keepGate(opened chan struct{}) {
	n := l.dns
	for first := true; ; {
		conn, err := n.dial()
		n.mu.Lock()
		if !n.fenced() || l.ended() {
			n.gate.running, n.gate.conn = false, nil
			n.mu.Unlock()
			if err == nil {
				_ = conn.Close() // nothing was sent
			}
			if first {
				close(opened)
			}
			return
		}
		n.gate.conn = conn
		n.mu.Unlock()
		if err == nil {
			err = resident.Send(conn, dns.Request{Op: "gate"}, nil)
			if first {
				first = false
				close(opened)
			}
			stop := make(chan struct{})
			l.work.Go(func() {
				select {
				case <-l.done:
				case <-stop:
				}
				_ = conn.Close() // what it was asked is answered, or lost with it
			})
			if err == nil {
				err = l.serveGate(conn)
			}
			close(stop)
		}
		l.log.Debug("gate of the name server", "err", err)
		select {
		case <-l.done:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *Local) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// closeGate ends it if it is open and nobody is left who needs it.
func (n *nameLink) closeGate() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gate.conn != nil && !n.fenced() {
		_ = n.gate.conn.Close() // keepGate sees it
	}
}

// serveGate answers the name server until the connection ends.
func (l *Local) serveGate(conn *net.UnixConn) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		var req dns.GateRequest
		var ans dns.Answer
		if err := json.Unmarshal(buf[:n], &req); err != nil {
			return err
		}
		switch req.Op {
		case "admit":
			err = l.admit(req)
		case "refused":
			l.refuse(req)
		default:
			err = fmt.Errorf("unknown request %q", req.Op)
		}
		if err != nil {
			l.log.Warn("addresses of a name are not let through", "owner", short(req.Owner), "name", req.Name, "err", err)
			ans.Err = err.Error()
		}
		if err := resident.Send(conn, ans, nil); err != nil {
			return err
		}
	}
}

// refuse notes a name that was not answered: the first ones, then ever fewer of them, so that nobody fills the log.
func (l *Local) refuse(req dns.GateRequest) {
	n := l.dns
	n.mu.Lock()
	if n.gate.refused == nil {
		n.gate.refused = map[string]uint64{}
	}
	n.gate.refused[req.Owner]++
	count := n.gate.refused[req.Owner]
	n.mu.Unlock()
	if count <= 20 || count&(count-1) == 0 {
		l.log.Info("name is not in the egress list", "container", short(req.Owner), "name", req.Name, "refused", count)
	}
}

// admit puts the addresses that a name of a list has into the kernel. The name server is not believed: the name must be in the list.
func (l *Local) admit(req dns.GateRequest) error {
	l.mu.Lock()
	bx := l.boxes[req.Owner]
	if bx == nil {
		l.mu.Unlock()
		return errs.New(errs.NotFound, "sandbox of %s not found", short(req.Owner))
	}
	by := map[string][]nft.Elem{}
	note := func(list *Egress, kind string, whose []byte, digit string) {
		for _, t := range req.Addrs {
			if nameable(t.Addr) && familyDigit(t.Addr) == digit {
				list.tell(by, kind, whose, req.Name, t)
			}
		}
	}
	for _, ep := range bx.sb.Endpoints {
		if bx.egress != nil {
			for _, a := range ep.sources() {
				note(bx.egress, "", a.AsSlice(), familyDigit(a))
			}
		}
		if nw := l.nets[ep.NetworkID]; nw != nil && nw.egress != nil {
			for _, f := range families {
				note(nw.egress, byNet, nft.Name(nw.br), f.name)
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
func (l *Local) putTold(by map[string][]nft.Elem) error {
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
				l.drop(gone, key)
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
func (e *Egress) tell(by map[string][]nft.Elem, kind string, whose []byte, name string, t dns.Told) {
	add := func(set string, key ...[]byte) {
		set = kind + set + familyDigit(t.Addr)
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
		for _, proto := range []byte{protoNumber["tcp"], protoNumber["udp"]} {
			for port := int(n.First); port <= int(n.Last) && (n.Proto == 0 || n.Proto == proto); port++ {
				add(setTold, []byte{proto}, nft.Port(uint16(port)))
			}
		}
	}
}

// tells says whether the list says of the name what an element says.
func (e *Egress) tells(elem toldElem, kind string, whose []byte, name string) bool {
	size := map[byte]int{'4': 4, '6': 16}[elem.set[len(elem.set)-1]]
	addr, ok := netip.AddrFromSlice([]byte(elem.key[len(whose):][:size]))
	by := map[string][]nft.Elem{}
	if ok && name != "" {
		e.tell(by, kind, whose, name, dns.Told{Addr: addr})
	}
	return slices.ContainsFunc(by[elem.set], func(o nft.Elem) bool { return string(o.Key) == elem.key })
}

// letTold says whether a packet gets through by what was told for names. mu is held.
func (l *Local) letTold(kind string, whose []byte, to netip.Addr, proto byte, port uint16) bool {
	digit, now := familyDigit(to), time.Now()
	for set, key := range map[string][]byte{
		setTold: nft.Cat(whose, to.AsSlice(), []byte{proto}, nft.Port(port)), setToldProto: nft.Cat(whose, to.AsSlice(), []byte{proto}), setToldAny: nft.Cat(whose, to.AsSlice()),
	} {
		if what, known := l.told[listKey(kind, whose)][toldElem{kind + set + digit, string(key)}]; known && what.until.After(now) {
			return true
		}
	}
	return false
}

// untell takes what was told for a list away, in the kernel with the transaction.
func (l *Local) untell(tx *nft.Tx, kind string, whose []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := range l.told[listKey(kind, whose)] {
		l.drop(tx, e)
	}
}

// drop takes one element away; it may have gone by itself, so it is made first. mu is held.
func (l *Local) drop(tx *nft.Tx, e toldElem) {
	elem := []nft.Elem{{Key: []byte(e.key), Timeout: time.Second}}
	tx.AddElems(l.opt.Table, e.set, elem)
	tx.DelElems(l.opt.Table, e.set, elem)
	l.told.forget(e)
}

// readTold finds what an earlier engine put there.
func (l *Local) readTold() error {
	now := time.Now()
	for _, s := range toldSets {
		elems, err := l.nf.Elems(0, l.opt.Table, s.Name)
		if err != nil {
			return fmt.Errorf("read set %s: %w", s.Name, err)
		}
		l.told.note(map[string][]nft.Elem{s.Name: elems}, now)
	}
	return nil
}

// lists tells whose lists there are, as listOf does. mu is held.
func (l *Local) lists() map[string]bool {
	whose := map[string]bool{}
	for _, bx := range l.boxes {
		for _, ep := range bx.sb.Endpoints {
			for _, a := range ep.sources() {
				whose[listKey("", a.AsSlice())] = bx.egress != nil
			}
		}
	}
	for _, nw := range l.nets {
		if nw.br != "" {
			whose[listKey(byNet, nft.Name(nw.br))] = nw.egress != nil
		}
	}
	return whose
}

// settleTold takes away what belongs to nobody any more.
func (l *Local) settleTold() error {
	l.mu.Lock()
	whose := l.lists()
	tx := &nft.Tx{}
	for list, elems := range l.told {
		for e := range elems {
			if !whose[list] {
				l.drop(tx, e)
			}
		}
	}
	l.mu.Unlock()
	if err := l.commit(tx); !errors.Is(err, unix.ENOENT) {
		return err
	}
	l.rules.again()
	return nil
}

// nameable says whether a name can let an address through: whoever owns the name must not open the host's own network, or the services that clouds have at link-local addresses.
func nameable(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified()
}

// addFences puts the lists of containers, and what was told for names, into the whole table. mu is held.
func (l *Local) addFences(tx *nft.Tx) {
	for _, bx := range l.boxes {
		if bx.egress == nil || bx.leaving {
			continue
		}
		for _, ep := range bx.sb.Endpoints {
			for set, elems := range fenceElements(bx.egress, ep) {
				tx.AddElems(l.opt.Table, set, elems)
			}
		}
	}
	now := time.Now()
	for _, elems := range l.told {
		for e, what := range elems {
			if left := what.until.Sub(now); left > 0 {
				tx.AddElems(l.opt.Table, e.set, []nft.Elem{{Key: []byte(e.key), Timeout: left, Note: what.name}})
			}
		}
	}
}

// readWishes reads what a container asks for that is text.
func (bx *box) readWishes() (err error) {
	bx.egress, err = readList(bx.req.Egress)
	return err
}

// readList reads a list, of which an empty one lets everything through.
func readList(text string) (*Egress, error) {
	if text == "" {
		return nil, nil
	}
	return ParseEgress(text)
}

// fenceOf is what the name server is told of a list.
func fenceOf(e *Egress) *dns.Fence {
	if e == nil {
		return nil
	}
	return &dns.Fence{Names: e.Patterns()}
}
