package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// A veth goes when the namespace of its other end goes: the kernel does that by itself, many at once, with nobody waiting. So an endpoint that
// was left is only remembered here, its address still taken, until its link is gone; one that lingers (someone else holds the namespace) is removed.
const (
	reapFirst  = 50 * time.Millisecond
	reapEvery  = 500 * time.Millisecond
	reapAtLast = 3 * time.Second
)

// reaper owns the endpoints that were left. Its maps are guarded by Local.mu.
type reaper struct {
	l     *Local
	dying map[string]dying // by link name
	kick  chan struct{}
}

type dying struct {
	ep     Endpoint
	since  time.Time
	orphan bool // found at start, perhaps of a container that still runs: only Settle or a Restore decides
}

func newReaper(l *Local) *reaper {
	return &reaper{l: l, dying: map[string]dying{}, kick: make(chan struct{}, 1)}
}

// add remembers an endpoint. mu is held.
func (r *reaper) add(ep Endpoint, since time.Time) {
	r.dying[r.l.linkName(ep)] = dying{ep: ep, since: since}
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// holds says whether an address of the subnet is about to be free, holdsAddr whether this one is. mu is held.
func (r *reaper) holds(s *subnet) bool {
	for _, d := range r.dying {
		if !d.orphan && (s.prefix.Contains(d.ep.IPv4.Addr()) || s.prefix.Contains(d.ep.IPv6.Addr())) {
			return true
		}
	}
	return false
}

func (r *reaper) holdsAddr(a netip.Addr) bool {
	for _, d := range r.dying {
		if !d.orphan && (d.ep.IPv4.Addr() == a || d.ep.IPv6.Addr() == a) {
			return true
		}
	}
	return false
}

// unclaimed says whether links were found at start that may be those of running containers. mu is held.
func (r *reaper) unclaimed() bool {
	for _, d := range r.dying {
		if d.orphan {
			return true
		}
	}
	return false
}

// orphans makes what was found at start and claimed by nobody go.
func (r *reaper) orphans() {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	for name, d := range r.dying {
		if d.orphan {
			d.orphan, d.since = false, time.Time{}
			r.dying[name] = d
		}
	}
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *reaper) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
			timer.Reset(reapFirst)
		case <-timer.C:
			if r.sweep(reapAtLast, netip.Addr{}) > 0 {
				timer.Reset(reapEvery)
			}
		}
	}
}

// force removes the link that holds an address, or (of the zero Addr) the links of all that were left, now.
func (r *reaper) force(a netip.Addr) { r.sweep(0, a) }

// sweep gives back the addresses of links that are gone, removes those that lingered longer than patience, and returns how many are still there. A
// valid address means only the link that has it.
func (r *reaper) sweep(patience time.Duration, only netip.Addr) int {
	r.l.mu.Lock()
	todo := make(map[string]dying, len(r.dying))
	for name, d := range r.dying {
		if !d.orphan && (!only.IsValid() || d.ep.IPv4.Addr() == only || d.ep.IPv6.Addr() == only) {
			todo[name] = d
		}
	}
	r.l.mu.Unlock()
	if len(todo) == 0 {
		return 0
	}
	c, err := r.l.rt.Take()
	if err != nil {
		r.l.log.Warn("look after left links", "err", err)
		return len(todo)
	}
	defer r.l.rt.Give(c)
	var gone []dying
	for name, d := range todo {
		_, err := c.LinkByName(name)
		if err == nil && time.Since(d.since) >= patience {
			var b netlink.Batch
			b.DelLink(name)
			err = c.Do(&b)
			if err == nil {
				err = unix.ENODEV
			}
		}
		if errors.Is(err, unix.ENODEV) {
			gone = append(gone, d)
		} else if err != nil {
			r.l.log.Warn("remove left link", "link", name, "err", err)
		}
	}
	if len(gone) > 0 {
		r.l.pool.wake() // it may have been waiting for a port or an address
	}
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	for _, d := range gone {
		name := r.l.linkName(d.ep)
		if now, ok := r.dying[name]; ok && now.ep.ID == d.ep.ID {
			delete(r.dying, name)
			if nw := r.l.nets[d.ep.NetworkID]; nw != nil {
				nw.free(d.ep)
			}
		}
	}
	return len(todo) - len(gone)
}

// alias is the note on the host's end of a veth, by which a later engine knows it: whose it is, and which addresses are taken.
//
//	corten <table> <network id, 12> <IPv4/bits or -> <IPv6/bits or ->
func (l *Local) alias(ep Endpoint) string {
	note := func(p netip.Prefix) string {
		if !p.IsValid() {
			return "-"
		}
		return p.String()
	}
	return fmt.Sprintf("corten %s %s %s %s %s", l.opt.Table, ep.NetworkID[:12], note(ep.IPv4), note(ep.IPv6), ep.ID[:12])
}

func parseAlias(s string) (table, network string, ep Endpoint, ok bool) {
	f := strings.Fields(s)
	if len(f) != 6 || f[0] != "corten" {
		return "", "", ep, false
	}
	ep.ID = f[5]
	ep.IPv4, _ = netip.ParsePrefix(f[3])
	ep.IPv6, _ = netip.ParsePrefix(f[4])
	return f[1], f[2], ep, true
}

// adopt finds the links of an earlier engine: their addresses stay taken until a Restore claims them or Settle lets them go.
func (l *Local) adopt() error {
	c, err := l.rt.Take()
	if err != nil {
		return err
	}
	defer l.rt.Give(c)
	if err := l.dropStrayBridges(c); err != nil {
		return err
	}
	links, err := c.Links("veth")
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, link := range links {
		table, short, ep, ok := parseAlias(link.Alias)
		if !ok || table != l.opt.Table || link.Name != l.linkName(Endpoint{ID: ep.ID, IPv4: ep.IPv4}) {
			continue
		}
		for id, nw := range l.nets {
			if id[:12] == short {
				ep.NetworkID = id
				nw.claim(ep)
			}
		}
		l.reap.dying[link.Name] = dying{ep: ep, orphan: true}
	}
	return nil
}

// dropStrayBridges removes bridges of ours, and parents of other networks, that belong to no network: an engine was killed between making one and recording its network, or between forgetting
// a network and removing its bridge.
func (l *Local) dropStrayBridges(c *netlink.Conn) error {
	links, err := c.Links("bridge")
	if err != nil {
		return err
	}
	vlans, err := c.Links("vlan")
	if err != nil {
		return err
	}
	l.mu.Lock()
	known := make(map[string]bool, len(l.nets))
	for _, nw := range l.nets {
		known[nw.br] = true
		if d, ok := nw.drv.(*onParent); ok {
			known[d.parent] = true
		}
	}
	l.mu.Unlock()
	veths, err := c.Links("veth")
	if err != nil {
		return err
	}
	for _, link := range slices.Concat(links, vlans, veths) {
		if link.Alias != l.bridgeAlias() || known[link.Name] {
			continue
		}
		var b netlink.Batch
		b.DelLink(link.Name)
		if err := c.Do(&b); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove stray interface %s: %w", link.Name, err)
		}
		l.log.Info("removed an interface that belonged to no network", "interface", link.Name)
	}
	return nil
}
