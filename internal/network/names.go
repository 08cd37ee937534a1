package network

import (
	"context"
	"os"
	"slices"
	"strings"
)

// dnsNames are the names by which a container is found on a user-defined network: its own, its aliases, its short id and host name.
func dnsNames(nw *network, req *JoinRequest, aliases []string) (names []string) {
	if nw.rec.Predefined {
		return nil
	}
	for _, n := range append([]string{req.Name}, append(slices.Clone(aliases), short(req.Owner), req.Hostname)...) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// enter puts an endpoint on the network, under its names. Local.mu is held.
func (nw *network) enter(owner string, ep Endpoint) {
	nw.eps[owner] = &ep
	for _, n := range ep.DNSNames {
		key := strings.ToLower(n)
		if nw.dns[key] == nil {
			nw.dns[key] = map[string]bool{}
		}
		nw.dns[key][owner] = true
	}
}

// leave takes it off again. Local.mu is held.
func (nw *network) leave(owner string) {
	ep := nw.eps[owner]
	if ep == nil {
		return
	}
	delete(nw.eps, owner)
	for _, n := range ep.DNSNames {
		key := strings.ToLower(n)
		delete(nw.dns[key], owner)
		if len(nw.dns[key]) == 0 {
			delete(nw.dns, key)
		}
	}
}

func (l *Local) serveNames(bx *box, ns *os.File) error                { return nil }
func (l *Local) closeNames(bx *box)                                   {}
func (l *Local) proxyFor(proto string) bool                           { return false }
func (l *Local) proxyAdd(ctx context.Context, list []*binding) error  { return nil }
func (l *Local) proxyDrop(ctx context.Context, list []*binding) error { return nil }

// refreshNames serves names to a container whose networks changed, or no more, and renews its resolv.conf.
func (l *Local) refreshNames(bx *box, ns *os.File) error {
	l.mu.Lock()
	p, req := l.planOf(bx), bx.req
	l.mu.Unlock()
	conf, err := l.resolvConf(req, p.userDefined(), false)
	if err != nil {
		return err
	}
	l.mu.Lock()
	bx.sb.ResolvConf = conf
	l.mu.Unlock()
	if p.userDefined() {
		return l.serveNames(bx, ns)
	}
	l.closeNames(bx)
	return nil
}

// holdAgain holds a host port after a restart.
func (l *Local) holdAgain(_ context.Context, b *binding) (err error) {
	b.file, err = hold(b)
	return err
}
