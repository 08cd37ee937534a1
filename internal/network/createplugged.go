package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network/remote"
	"corten.dev/corten/internal/task"
)

// ipamNull is the address manager that gives no addresses. It is for drivers that are plugins: our own want some, as Docker's.
const ipamNull = "null"

// localSpace is the space of addresses of the engine's own address manager, as Docker tells it to drivers.
const localSpace = "LocalDefault"

// coming is a network that is being made by way of plugins, while others may be made: its name and its subnets are taken.
type coming struct {
	name  string
	pools []Pool
}

// asksPlugins says whether a plugin has a part in making a network.
func (rec *Network) asksPlugins() bool {
	return !rec.ConfigOnly && (!isBuiltIn(rec.Driver) || rec.remoteIPAM())
}

// remoteIPAM says whether the network's addresses are a plugin's.
func (rec *Network) remoteIPAM() bool {
	return rec.IPAM.Driver != "" && rec.IPAM.Driver != ipamDefault && rec.IPAM.Driver != ipamNull
}

func isBuiltIn(driver string) bool {
	switch driver {
	case nameBridge, nameHost, nameNone, driverNull, driverMacvlan, driverIPvlan, "overlay":
		return true
	}
	return false
}

// comes takes the name of a network that plugins have a part in. created is held, so that nobody else has it.
func (l *Local) comes(rec *Network) *coming {
	l.mu.Lock()
	defer l.mu.Unlock()
	way := &coming{name: rec.Name}
	l.coming[rec.ID] = way
	return way
}

// createPlugged makes a network that plugins have a part in, and lets go of way. Their calls are made without the lock by which networks are made one after the other.
func (l *Local) createPlugged(ctx context.Context, rec Network, way *coming) (_ Network, err error) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.coming, rec.ID)
	}()
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	made, err := l.live(rec)
	if err != nil {
		return Network{}, err
	}
	d, _ := made.drv.(*pluginDriver)
	var skips remote.Skips
	if d != nil {
		if skips, err = d.remote.Admit(ctx, told(rec)); err != nil {
			return Network{}, notFound(rec.Driver, err)
		}
	}
	h := &held{ID: rec.ID, Network: rec.ID}
	if made.ipam != nil {
		h.IPAM = rec.IPAM.Driver
	}
	l.hold(h)
	undo.Push(func(ctx context.Context) error { l.owe(ctx, h); return nil })
	if err := l.choosePlugged(ctx, made.ipam, &rec, h, skips, way); err != nil {
		return Network{}, err
	}
	if made, err = l.live(rec); err != nil {
		return Network{}, err
	}
	made.replayed = true
	if d != nil {
		h.Driver, h.Made = rec.Driver, true
		if err := l.note(h); err != nil {
			return Network{}, err
		}
		if err := d.remote.CreateNetwork(ctx, told(rec)); err != nil {
			return Network{}, said(err)
		}
	}
	l.created.Lock()
	defer l.created.Unlock()
	return l.makeNetwork(ctx, made)
}

// told is what a plugin is told of a network.
func told(rec Network) remote.Network {
	nw := remote.Network{ID: rec.ID, Options: rec.Options, IPv4: rec.EnableIPv4, IPv6: rec.EnableIPv6, Internal: rec.Internal}
	for _, p := range rec.IPAM.Pools {
		out := remote.Pool{Space: p.Space, Subnet: p.Subnet, Aux: p.Aux}
		if out.Space == "" {
			out.Space = localSpace
		}
		if p.Gateway.IsValid() {
			out.Gateway = netip.PrefixFrom(p.Gateway, p.Subnet.Bits())
		}
		nw.Pools = append(nw.Pools, out)
	}
	return nw
}

// notFound is Docker's word for a plugin of which there is no trace.
func notFound(name string, err error) error {
	if errors.Is(err, errs.NotFound) && !isSaid(err) {
		return errs.New(errs.NotFound, "plugin %q not found", name)
	}
	return err
}

// choosePlugged finds the network's subnets and gateways: the engine's own address manager, the one that has none, or a plugin.
func (l *Local) choosePlugged(ctx context.Context, m *remote.IPAM, rec *Network, h *held, skips remote.Skips, way *coming) error {
	given := map[netip.Prefix]bool{} // subnets whose makers name a gateway
	for _, p := range rec.IPAM.Pools {
		given[p.Subnet] = p.Gateway.IsValid()
	}
	if m != nil {
		if err := l.checkPools(rec); err != nil {
			return err
		}
		return l.requestPools(ctx, m, rec, h, skips)
	}
	l.created.Lock()
	defer l.created.Unlock()
	if err := l.chooseSubnets(rec); err != nil {
		return err
	}
	for i, p := range rec.IPAM.Pools {
		if !given[p.Subnet] && (p.Subnet.Addr().Is4() && skips.IPv4 || p.Subnet.Addr().Is6() && skips.IPv6) {
			rec.IPAM.Pools[i].Gateway = netip.Addr{}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	way.pools = rec.IPAM.Pools
	return nil
}

// requestPools asks an address manager for the network's subnets.
func (l *Local) requestPools(ctx context.Context, m *remote.IPAM, rec *Network, h *held, skips remote.Skips) error {
	if _, err := m.Capabilities(ctx); err != nil {
		return notFound(rec.IPAM.Driver, err)
	}
	space, err := m.Space(ctx)
	if err != nil {
		return said(err)
	}
	var pools []Pool
	for _, is4 := range []bool{true, false} {
		if is4 && !rec.EnableIPv4 || !is4 && !rec.EnableIPv6 {
			continue
		}
		wanted := slices.DeleteFunc(slices.Clone(rec.IPAM.Pools), func(p Pool) bool { return p.Subnet.Addr().Is4() != is4 })
		if len(wanted) == 0 {
			wanted = []Pool{{}} // the plugin chooses
		}
		for _, want := range wanted {
			want.Space = space
			p, err := l.requestPool(ctx, m, rec, h, want, is4)
			if err != nil {
				return err
			}
			if err := l.requestKept(ctx, m, h, &p, is4 && skips.IPv4 || !is4 && skips.IPv6); err != nil {
				return err
			}
			pools = append(pools, p)
		}
	}
	rec.IPAM.Pools = pools
	return nil
}

// mostPools is how many subnets an address manager is asked for, one after the other, of which each meets one of the host's.
const mostPools = 16

// requestPool asks for one subnet. When the plugin chooses one that meets the host's routes or another network it is asked for the next, and has the others back then, as with Docker.
func (l *Local) requestPool(ctx context.Context, m *remote.IPAM, rec *Network, h *held, want Pool, is4 bool) (_ Pool, err error) {
	taken, _, err := l.takenSubnets("")
	if err != nil {
		return Pool{}, err
	}
	var refusedIDs []string
	defer func() {
		for _, id := range refusedIDs {
			if e := l.refused(h, m.ReleasePool(ctx, id)); e != nil {
				h.Pools = append(h.Pools, id)
			}
		}
	}()
	for range mostPools {
		got, err := m.RequestPool(ctx, remote.PoolRequest{Space: want.Space, Subnet: want.Subnet, Range: want.Range, Options: rec.IPAM.Options, V6: !is4})
		if err != nil {
			if got.ID != "" {
				refusedIDs = append(refusedIDs, got.ID)
			}
			return Pool{}, said(err)
		}
		if !want.Subnet.IsValid() && !anyAddress(got.Subnet) && overlapsAny(got.Subnet, taken) {
			refusedIDs = append(refusedIDs, got.ID)
			continue
		}
		h.Pools = append(h.Pools, got.ID)
		if err := l.note(h); err != nil {
			return Pool{}, err
		}
		p := want
		p.ID, p.Chosen, p.Subnet = got.ID, !want.Subnet.IsValid(), got.Subnet
		if !p.Gateway.IsValid() {
			p.Gateway = got.Gateway.Addr()
		}
		if !want.Gateway.IsValid() && got.Gateway.IsValid() { // it keeps that one itself
			p.keptByPlugin = true
		}
		return p, nil
	}
	return Pool{}, errs.New(errs.Conflict, "plugin %s: %d subnets in a row meet those of this host: name one with --subnet", rec.IPAM.Driver, mostPools)
}

// requestKept asks for the addresses of a subnet that no container gets: the gateway's and those kept for something else.
func (l *Local) requestKept(ctx context.Context, m *remote.IPAM, h *held, p *Pool, noGateway bool) error {
	take := func(what string, req remote.AddressRequest) (netip.Addr, error) {
		req.Pool, req.Subnet = p.ID, p.Subnet
		got, err := m.RequestAddress(ctx, req)
		if got.IsValid() {
			l.gave(h, heldAddr{p.ID, got.Addr()})
		}
		if err == nil {
			err = l.note(h)
		}
		if err != nil {
			return netip.Addr{}, fmt.Errorf("failed to allocate %s: %w", what, said(err))
		}
		return got.Addr(), nil
	}
	if p.Gateway.IsValid() && !p.keptByPlugin || !p.Gateway.IsValid() && !noGateway && !anyAddress(p.Subnet) {
		shown := ""
		if p.Gateway.IsValid() {
			shown = p.Gateway.String()
		}
		gw, err := take(fmt.Sprintf("gateway (%s)", shown), remote.AddressRequest{Want: p.Gateway, Gateway: true})
		if err != nil {
			return err
		}
		p.Gateway = gw
	}
	for name, a := range p.Aux {
		if _, err := take(fmt.Sprintf("secondary ip address (%s:%s)", name, a), remote.AddressRequest{Want: a}); err != nil {
			return err
		}
	}
	return nil
}

// noAddresses gives a network the pools of the address manager "null", of no address each.
func (rec *Network) noAddresses() error {
	switch {
	case slices.ContainsFunc(rec.IPAM.Pools, func(p Pool) bool { return p.Subnet.IsValid() }):
		return errs.New(errs.Invalid, "null ipam driver does not handle specific address pool requests")
	case isBuiltIn(rec.Driver) && rec.EnableIPv4:
		return errs.New(errs.Invalid, "ipv4 pool is empty")
	case isBuiltIn(rec.Driver) && rec.EnableIPv6:
		return errs.New(errs.Invalid, "ipv6 pool is empty")
	}
	rec.IPAM.Pools = nil
	for all, wanted := range map[netip.Prefix]bool{default4: rec.EnableIPv4, default6: rec.EnableIPv6} {
		if wanted {
			rec.IPAM.Pools = append(rec.IPAM.Pools, Pool{Subnet: all, Chosen: true, Space: ipamNull, ID: ipamNull + "/" + all.String()})
		}
	}
	rec.sortPools()
	return nil
}

// replay asks an address manager that forgets (RequiresRequestReplay) once more for all that it gave to a network, once for each run of the engine, before it is asked for anything else there.
func (l *Local) replay(ctx context.Context, nw *network) error {
	select {
	case nw.replaying <- struct{}{}:
		defer func() { <-nw.replaying }()
	case <-ctx.Done():
		return errs.New(errs.Unavailable, "wait for plugin %s: %w", nw.rec.IPAM.Driver, context.Cause(ctx))
	}
	if nw.replayed {
		return nil
	}
	caps, err := nw.ipam.Capabilities(ctx)
	if err != nil {
		return err
	}
	if caps.RequiresRequestReplay {
		if err := l.replayAll(ctx, nw); err != nil {
			return err
		}
	}
	nw.replayed = true
	return nil
}

func (l *Local) replayAll(ctx context.Context, nw *network) error {
	for _, p := range nw.rec.IPAM.Pools {
		got, err := nw.ipam.RequestPool(ctx, remote.PoolRequest{Space: p.Space, Subnet: p.Subnet, Range: p.Range, Options: nw.rec.IPAM.Options, V6: p.Subnet.Addr().Is6()})
		if err == nil && got.ID != p.ID {
			err = errs.New(errs.Unavailable, "plugin %s: the pool %s is %q now, and was %q", nw.rec.IPAM.Driver, p.Subnet, got.ID, p.ID)
		}
		if err := l.replayed(nw, p.Subnet.String(), err); err != nil {
			return err
		}
	}
	l.mu.Lock()
	var list []remote.AddressRequest
	for _, h := range l.held {
		if h.Network != nw.rec.ID || h.owed {
			continue
		}
		for _, a := range h.Addrs {
			for _, p := range nw.rec.IPAM.Pools {
				if p.ID == a.Pool {
					list = append(list, remote.AddressRequest{Pool: a.Pool, Want: a.Addr, Subnet: p.Subnet, Gateway: a.Addr == p.Gateway})
				}
			}
		}
	}
	l.mu.Unlock()
	for _, req := range list {
		_, err := nw.ipam.RequestAddress(ctx, req)
		if err := l.replayed(nw, req.Want.String(), err); err != nil {
			return err
		}
	}
	return nil
}

// replayed tells of what was refused and goes on, as Docker: a plugin that remembers, after all, says that it is taken.
func (l *Local) replayed(nw *network, what string, err error) error {
	if isSaid(err) {
		l.log.Warn("address manager refuses what it gave before", "plugin", nw.rec.IPAM.Driver, "network", nw.rec.Name, "what", what, "err", err)
		return nil
	}
	return err
}

// replaySoon replays all networks in the background: the engine does not wait for plugins.
func (l *Local) replaySoon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, nw := range l.nets {
		if nw.ipam == nil {
			continue
		}
		l.work.Go(func() {
			var err error
			defer task.Contain(l.log, "replay addresses of network "+nw.rec.Name, &err)
			ctx, cancel := l.untilClosed(time.Minute)
			defer cancel()
			if err := l.replay(ctx, nw); err != nil {
				l.log.Warn("address manager does not answer; it is asked again when it is needed", "plugin", nw.rec.IPAM.Driver, "network", nw.rec.Name, "err", err)
			}
		})
	}
}
