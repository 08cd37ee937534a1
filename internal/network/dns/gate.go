package dns

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/network/resident"
	"golang.org/x/net/dns/dnsmessage"
)

// An owner with an egress list gets answers only for the names of the list, and may reach what they say. The rules are the engine's: this process has no rights. So the engine opens one
// more connection, the gate, on which, after its request, the server asks:
//
//	engine                                       server
//	{"op":"gate"}                             ─▶
//	  ◀─ {"op":"admit","owner":…,"name":…,"addrs":[…]}    before the answer is given; the engine checks the name against the list that it has itself
//	{} or {"err":…}                           ─▶ the answer, or "server failure"
//	  ◀─ {"op":"refused","owner":…,"name":…}              a name that is not in the list
//	{}                                        ─▶
//
// What was admitted stays for a while (Lifetime), so that names which are asked often are answered also while no engine runs; others have to wait for it.

// Fence is what an egress list says about names: a name, "*." and a name, or "*".
type Fence struct {
	Names []string `json:"names,omitempty"`
}

// Told is an address of an answer, and for how long it says so, in seconds.
type Told struct {
	Addr netip.Addr `json:"addr"`
	TTL  uint32     `json:"ttl"`
}

// GateRequest is what the server asks of the engine.
type GateRequest struct {
	Op    string `json:"op"`
	Owner string `json:"owner"`
	Name  string `json:"name"`
	Addrs []Told `json:"addrs,omitempty"`
}

// Lifetime is how long an address can be reached that was told with this time to live: a program may use it a little later than it asked.
func Lifetime(ttl uint32) time.Duration {
	return min(max(time.Duration(ttl)*time.Second, time.Minute), 24*time.Hour) + 30*time.Second
}

// Match says whether a name, in lower case and without the last dot, is meant by a pattern of a list.
func Match(pattern, name string) bool {
	if pattern == "*" {
		return true
	}
	if end, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(name, end) && len(name) > len(end)
	}
	return pattern == name
}

func (f *Fence) match(name string) bool {
	for _, pattern := range f.Names {
		if Match(pattern, name) {
			return true
		}
	}
	return false
}

// Fenced says whether only some names are answered.
func (e *Entry) Fenced() bool {
	if e.Egress != nil {
		return true
	}
	for _, m := range e.Networks {
		if m.Egress != nil {
			return true
		}
	}
	return false
}

// listed says whether a name of the world outside may be asked for: by the owner's own list, and by that of a network, if all by which it could leave have one.
func (e *Entry) listed(name string) bool {
	if e.Egress != nil && !e.Egress.match(name) {
		return false
	}
	open, byOne := false, false
	for _, m := range e.Networks {
		switch {
		case m.Internal:
		case m.Egress == nil:
			open = true
		default:
			byOne = byOne || m.Egress.match(name)
		}
	}
	return open || byOne
}

// Keeper is what a Directory also is that has owners with lists.
type Keeper interface {
	// Listed says whether the owner may ask for the name; fenced is false for owners without a list.
	Listed(owner, name string) (fenced, ok bool)
	// Admit lets the owner reach the addresses; with an error it must not be told them.
	Admit(owner, name string, addrs []Told) error
	// Refused takes notice of a name that was not in the list. It does not wait.
	Refused(owner, name string)
}

// admit gives an answer of upstream to the owner, once what it says can be reached.
func (s *Server) admit(owner string, answer []byte, q *question) []byte {
	keeper, ok := s.dir.(Keeper)
	if !ok {
		return answer
	}
	if fenced, ok := keeper.Listed(owner, q.name); !fenced {
		return answer
	} else if !ok { // the list changed meanwhile
		return build(q, dnsmessage.RCodeNameError, nil)
	}
	if err := keeper.Admit(owner, q.name, addresses(answer, q.end)); err != nil {
		s.log.Warn("name of an egress list is not answered", "owner", owner, "name", q.name, "err", err)
		return q.failed()
	}
	return answer
}

// addresses are those in the answers of a packet whose records begin at from.
func addresses(p []byte, from int) (all []Told) {
	if len(p) < 12 || from > len(p) {
		return nil
	}
	at := from
	for range int(binary.BigEndian.Uint16(p[6:])) {
		if at > len(p) {
			return all
		}
		at += nameLen(p[at:])
		if at+10 > len(p) {
			return all
		}
		typ, class, size := binary.BigEndian.Uint16(p[at:]), binary.BigEndian.Uint16(p[at+2:]), int(binary.BigEndian.Uint16(p[at+8:]))
		end := at + 10 + size
		if end > len(p) {
			return all
		}
		if class == 1 && (typ == 1 && size == 4 || typ == 28 && size == 16) {
			addr, _ := netip.AddrFromSlice(p[at+10 : end])
			all = append(all, Told{addr.Unmap(), binary.BigEndian.Uint32(p[at+4:])})
		}
		at = end
	}
	return all
}

const (
	gateWait  = 3 * time.Second // for an engine that is just being replaced
	gateTime  = 2 * time.Second
	maxKnown  = 4096 // of one owner
	maxNotice = 64
)

// gate is the server's side of that connection.
type gate struct {
	turn sync.Mutex // one question at a time

	mu     sync.Mutex
	conn   *net.UnixConn
	opened chan struct{}                      // closed when there is a connection
	known  map[string]map[knownName]time.Time // owner: what it can reach, and until when
	notice chan GateRequest
}

type knownName struct {
	name string
	addr netip.Addr
}

func newGate() *gate {
	return &gate{opened: make(chan struct{}), known: map[string]map[knownName]time.Time{}, notice: make(chan GateRequest, maxNotice)}
}

// open takes a connection. A new engine knows of nothing that was admitted before: it is asked again.
func (g *gate) open(conn *net.UnixConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn == nil {
		close(g.opened)
	} else {
		_ = g.conn.Close() // of an engine before
	}
	g.conn = conn
	clear(g.known)
}

// lost forgets a connection that failed.
func (g *gate) lost(conn *net.UnixConn) {
	_ = conn.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn == conn {
		g.conn, g.opened = nil, make(chan struct{})
	}
}

func (g *gate) forget(owner string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.known, owner)
}

var errNoEngine = errors.New("no engine is there that could let it through")

// close ends it.
func (g *gate) close() {
	g.mu.Lock()
	conn := g.conn
	g.mu.Unlock()
	if conn != nil {
		g.lost(conn)
	}
}

// ask sends a request and waits for the answer. A connection may be that of an engine which is no more: then another is waited for.
func (g *gate) ask(req GateRequest) (err error) {
	g.turn.Lock()
	defer g.turn.Unlock()
	for range 3 {
		g.mu.Lock()
		conn, opened := g.conn, g.opened
		g.mu.Unlock()
		if conn == nil {
			select {
			case <-opened:
				continue
			case <-time.After(gateWait):
				return errNoEngine
			}
		}
		var ans Answer
		if ans, err = g.exchange(conn, req); err == nil && ans.Err != "" {
			return errors.New(ans.Err)
		} else if err == nil {
			return nil
		}
		g.lost(conn)
	}
	return errors.Join(errNoEngine, err)
}

func (g *gate) exchange(conn *net.UnixConn, req GateRequest) (ans Answer, err error) {
	if err := conn.SetDeadline(time.Now().Add(gateTime)); err != nil {
		return ans, err
	}
	if err := resident.Send(conn, req, nil); err != nil {
		return ans, err
	}
	buf := make([]byte, 4<<10)
	n, err := conn.Read(buf)
	if err != nil {
		return ans, err
	}
	return ans, json.Unmarshal(buf[:n], &ans)
}

// admit asks for those addresses that were not admitted for long enough.
func (g *gate) admit(owner, name string, addrs []Told) error {
	now := time.Now()
	var ask []Told
	g.mu.Lock()
	for _, t := range addrs {
		if until, ok := g.known[owner][knownName{name, t.Addr}]; !ok || until.Before(now.Add(time.Duration(t.TTL)*time.Second+time.Second)) {
			ask = append(ask, t)
		}
	}
	g.mu.Unlock()
	if len(ask) == 0 {
		return nil
	}
	if err := g.ask(GateRequest{Op: "admit", Owner: owner, Name: name, Addrs: ask}); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known[owner]) > maxKnown || g.known[owner] == nil {
		g.known[owner] = map[knownName]time.Time{}
	}
	for _, t := range ask {
		g.known[owner][knownName{name, t.Addr}] = now.Add(Lifetime(t.TTL))
	}
	return nil
}

// tell passes notices on until done is closed; those that no engine hears are lost.
func (g *gate) tell(done <-chan struct{}) {
	for {
		select {
		case req := <-g.notice:
			_ = g.ask(req) // it was only to be told
		case <-done:
			return
		}
	}
}

// Listed implements [Keeper].
func (b *book) Listed(owner, name string) (fenced, ok bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	e := b.entries[owner]
	if !e.Fenced() {
		return false, true
	}
	return true, e.listed(name)
}

// Admit implements [Keeper].
func (b *book) Admit(owner, name string, addrs []Told) error { return b.gate.admit(owner, name, addrs) }

// Refused implements [Keeper].
func (b *book) Refused(owner, name string) {
	select {
	case b.gate.notice <- GateRequest{Op: "refused", Owner: owner, Name: name}:
	default: // more than anyone reads
	}
}

var _ Keeper = (*book)(nil)
