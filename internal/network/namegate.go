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

// toldNames are the elements that the answers for names of lists put into the kernel, by set and key.
type toldNames map[toldElem]saying

type toldElem struct{ set, key string }

type saying struct {
	until time.Time
	name  string // which it was told for, as far as this engine knows
}

// maxTold bounds what foreign name servers can put into the kernel.
const maxTold = 32768

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

// closeGate ends it when nobody is left who needs it.
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
	full := l.told.note(by, req.Name, time.Now())
	l.mu.Unlock()
	if full {
		return errs.New(errs.Unavailable, "names of egress lists have more than %d addresses", maxTold)
	}
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
	return err
}

// prune forgets what has ended. Local.mu is held.
func (t toldNames) prune(now time.Time) {
	for e, what := range t {
		if what.until.Before(now) {
			delete(t, e)
		}
	}
}

// note takes elements down, unless they are too many.
func (t toldNames) note(by map[string][]nft.Elem, name string, now time.Time) (full bool) {
	t.prune(now)
	for set, elems := range by {
		for _, e := range elems {
			if len(t) >= maxTold {
				return true
			}
			t[toldElem{set, string(e.Key)}] = saying{now.Add(e.Timeout), name}
		}
	}
	return false
}

// tell adds the elements for one address of a name.
func (e *Egress) tell(by map[string][]nft.Elem, kind string, whose []byte, name string, t dns.Told) {
	add := func(set string, key ...[]byte) {
		set = kind + set + familyDigit(t.Addr)
		by[set] = append(by[set], nft.Elem{Key: nft.Cat(append([][]byte{whose, t.Addr.AsSlice()}, key...)...), Timeout: dns.Lifetime(t.TTL)})
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
		if what, known := l.told[toldElem{kind + set + digit, string(key)}]; known && what.until.After(now) {
			return true
		}
	}
	return false
}

// untell takes what was told for a list away, in the kernel with the transaction.
func (l *Local) untell(tx *nft.Tx, kind string, whose []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := range l.told {
		if e.belongs(kind, whose) {
			l.drop(tx, e)
		}
	}
}

// belongs says whether an element is of that list.
func (e toldElem) belongs(kind string, whose []byte) bool {
	return strings.HasPrefix(e.set, byNet) == (kind == byNet) && strings.HasPrefix(e.key, string(whose)) && (kind == byNet || strings.HasSuffix(e.set, map[int]string{4: "4", 16: "6"}[len(whose)]))
}

// drop takes one element away; it may have gone by itself, so it is made first. mu is held.
func (l *Local) drop(tx *nft.Tx, e toldElem) {
	elem := []nft.Elem{{Key: []byte(e.key), Timeout: time.Second}}
	tx.AddElems(l.opt.Table, e.set, elem)
	tx.DelElems(l.opt.Table, e.set, elem)
	delete(l.told, e)
}

// readTold finds what an earlier engine put there.
func (l *Local) readTold() error {
	now := time.Now()
	for _, s := range toldSets {
		elems, err := l.nf.Elems(0, l.opt.Table, s.Name)
		if err != nil {
			return fmt.Errorf("read set %s: %w", s.Name, err)
		}
		l.told.note(map[string][]nft.Elem{s.Name: elems}, "", now)
	}
	return nil
}

// settleTold takes away what belongs to nobody any more.
func (l *Local) settleTold() error {
	l.mu.Lock()
	whose := map[string]bool{}
	for _, bx := range l.boxes {
		for _, ep := range bx.sb.Endpoints {
			for _, a := range ep.sources() {
				whose[familyDigit(a)+string(a.AsSlice())] = bx.egress != nil
			}
		}
	}
	for _, nw := range l.nets {
		whose[byNet+string(nft.Name(nw.br))] = nw.egress != nil
	}
	tx := &nft.Tx{}
	for e := range l.told {
		key := e.set[len(e.set)-1:]
		size := map[string]int{"4": 4, "6": 16}[key]
		if strings.HasPrefix(e.set, byNet) {
			key, size = byNet, unix.IFNAMSIZ
		}
		if !whose[key+e.key[:size]] {
			l.drop(tx, e)
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
	l.told.prune(now)
	for e, what := range l.told {
		tx.AddElems(l.opt.Table, e.set, []nft.Elem{{Key: []byte(e.key), Timeout: what.until.Sub(now)}})
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
