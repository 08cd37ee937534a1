package network

import (
	"context"
	"fmt"
	"net/netip"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/conntrack"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/network/egress"
)

// OptionEgress is the option of a network, and the annotation of a container, that says where they may connect to (package egress); JoinRequest.Egress holds a container's. Where both say so, both
// must allow it. What belongs to a connection from outside (a published port) is always let through, and containers of one network always reach each other.
const OptionEgress = "dev.corten.egress"

// EgressCount and Traffic are what lists let through and dropped.
type (
	EgressCount = egress.Count
	Traffic     = egress.Traffic
)

// fence binds what a container has in its networks now to its list, if it has one: before anything runs behind a new interface, and before its addresses are another's.
func (l *Local) fence(bx *box) error {
	l.mu.Lock()
	bx.listed = bx.listed || bx.egress != nil
	listed := bx.listed
	l.mu.Unlock()
	if !listed { // it waits for nobody who has one
		return nil
	}
	return l.egress.Put(bx.req.Owner, func() (*egress.List, []egress.Source) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if bx.egress == nil || bx.leaving {
			return nil, nil
		}
		var from []egress.Source
		for _, ep := range bx.sb.Endpoints {
			from = append(from, egress.Source{Link: l.linkName(ep), MAC: ep.hardware(), Addrs: ep.sources()})
		}
		return bx.egress, from
	})
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
	if nw.egress, err = egress.Parse(text); err != nil || nw.egress == nil {
		return err
	}
	return l.checkFence(nw)
}

// EgressCounts tells what the lists of containers, by owner, and of networks, by id, let through and dropped. Those without a list are not there.
func (l *Local) EgressCounts(context.Context) (owners, networks map[string]EgressCount, err error) {
	owners, bridges, err := l.egress.Counts()
	networks = map[string]EgressCount{}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, nw := range l.nets {
		if c, has := bridges[nw.br]; has {
			networks[id] = c
		}
	}
	return owners, networks, err
}

// endFlows ends the connections of containers that their lists do not have: the kernel forgets them, so that the next packet is judged as a new one's, and the containers' sockets fail.
func (l *Local) endFlows(all []*member) error {
	type end struct {
		m  *member
		ep Endpoint
		nw *network
	}
	by := map[netip.Addr]end{}
	for _, m := range all {
		for i, ep := range m.p.eps {
			for _, a := range ep.sources() {
				by[a] = end{m, ep, m.p.nets[i]}
			}
		}
	}
	sockets := map[*member][]conntrack.Flow{}
	flows, err := conntrack.Forget(func(f conntrack.Flow) bool {
		e, known := by[f.From.Addr()]
		if !known {
			return false
		}
		l.mu.Lock()
		near := e.nw.within(f.At.Addr())
		l.mu.Unlock()
		return !near && !l.egress.Lets(e.m.bx.req.Owner, e.nw.br, f.From.Addr(), f.At, f.Proto)
	})
	if err != nil {
		return fmt.Errorf("end connections: %w", err)
	}
	for _, f := range flows {
		if m := by[f.From.Addr()].m; m.ns != nil {
			sockets[m] = append(sockets[m], f)
		}
	}
	for m, flows := range sockets {
		if err := l.inside(m.ns, func(*netlink.Conn) error { return conntrack.Abort(flows) }); err != nil {
			return fmt.Errorf("end connections: %w", err)
		}
	}
	return nil
}

// within says whether an address is that of a neighbour on the network, and not the host's own on it. mu is held.
func (nw *network) within(a netip.Addr) bool {
	for _, p := range nw.rec.IPAM.Pools {
		if p.Subnet.Contains(a) {
			return !nw.onBridge(p) || p.Gateway != a
		}
	}
	return false
}
