package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network/dns"
	"corten.dev/corten/internal/network/egress"
	"corten.dev/corten/internal/network/resident"
)

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

// admit lets an owner reach the addresses that a name has, as far as lists have the name.
func (l *Local) admit(req dns.GateRequest) error {
	l.mu.Lock()
	bx := l.boxes[req.Owner]
	if bx == nil {
		l.mu.Unlock()
		return errs.New(errs.NotFound, "sandbox of %s not found", short(req.Owner))
	}
	var bridges []string
	for _, ep := range bx.sb.Endpoints {
		if nw := l.nets[ep.NetworkID]; nw != nil && nw.br != "" {
			bridges = append(bridges, nw.br)
		}
	}
	l.mu.Unlock()
	return l.egress.Admit(req.Owner, bridges, req.Name, req.Addrs)
}

// readWishes reads what a container asks for that is text.
func (bx *box) readWishes() (err error) {
	bx.egress, err = readList(bx.req.Egress)
	return err
}

// readList reads a list, of which an empty one lets everything through.
func readList(text string) (*egress.List, error) {
	if text == "" {
		return nil, nil
	}
	return egress.Parse(text)
}

// fenceOf is what the name server is told of a list.
func fenceOf(e *egress.List) *dns.Fence {
	if e == nil {
		return nil
	}
	return &dns.Fence{Names: e.Patterns()}
}
