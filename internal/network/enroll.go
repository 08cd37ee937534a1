package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network/remote"
)

// plugged says whether plugins have a part in a plan.
func (p plan) plugged() bool { return slices.ContainsFunc(p.nets, (*network).plugged) }

// buildPlugged is build for a plan that plugins have a part in: they are asked before anything is made, and may leave the way to the outside to us. What they hold then, leave has them take back.
func (l *Local) buildPlugged(ctx context.Context, bx *box, p *plan, reqs []EndpointRequest) (_ *os.File, err error) {
	var ns *os.File
	if p.bare != nil {
		ns = p.bare.ns
	} else if ns, err = l.inNew(nil); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ns.Close())
		}
	}()
	if slices.ContainsFunc(p.nets, (*network).byPlugin) {
		if err := l.keep(bx.req.Owner, ns); err != nil {
			return nil, err
		}
	}
	for i := range p.eps {
		if p.nets[i].plugged() {
			if err := l.enroll(ctx, bx, p, i, reqs[i]); err != nil {
				return nil, err
			}
		}
	}
	if err := l.nameAll(bx, p, nil); err != nil {
		return nil, err
	}
	if l.needsWayOut(*p) {
		if reqs, err = l.addWayOut(ctx, bx, p, reqs); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	p.gateways(reqs)
	l.mu.Unlock()
	p.told = true // whose hardware addresses are a plugin's are known by others
	if err := l.buildIn(*p, ns); err != nil {
		return nil, err
	}
	return ns, l.steer(ctx, bx, *p, false)
}

// enroll asks the plugins of one network for an endpoint: its addresses, then the endpoint itself, then how it is put into the container.
func (l *Local) enroll(ctx context.Context, bx *box, p *plan, i int, er EndpointRequest) error {
	nw, ep := p.nets[i], p.eps[i]
	h := &held{ID: ep.ID, Network: nw.rec.ID, Owner: bx.req.Owner}
	if nw.ipam != nil {
		h.IPAM = nw.rec.IPAM.Driver
	}
	l.repayOwner(ctx, bx.req.Owner, nw.rec.ID)
	l.hold(h)
	set := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		p.eps[i] = ep
		nw.enter(bx.req.Owner, ep)
		bx.replace(ep)
	}
	if nw.ipam != nil {
		err := l.requestAddresses(ctx, nw, h, er, &ep)
		nw.findGateways(&ep)
		set() // also what it got before one was refused
		if err != nil {
			return err
		}
	}
	d, ok := nw.drv.(*pluginDriver)
	if !ok {
		if ep.MAC == "" {
			ep.MAC = derivedMAC(ep).String()
		}
		set()
		return nil
	}
	h.Driver, h.Made = nw.rec.Driver, true
	if err := l.note(h); err != nil {
		return err
	}
	published, exposed := portsFor(bx)
	ref := remote.Ref{NetworkID: nw.rec.ID, EndpointID: ep.ID}
	made, err := d.remote.CreateEndpoint(ctx, remote.Endpoint{Ref: ref, Interface: remote.Interface{IPv4: ep.IPv4, IPv6: ep.IPv6, MAC: ep.MAC}, Options: er.Options, Published: published, Exposed: exposed})
	if err != nil {
		return said(err)
	}
	ep.IPv4, ep.IPv6, ep.MAC = made.IPv4, made.IPv6, made.MAC
	set()
	h.Joined = &remote.Joined{}
	if err := l.note(h); err != nil {
		return err
	}
	joined, err := d.remote.Join(ctx, ref, l.key(bx.req.Owner), published, exposed)
	if err != nil {
		return said(err)
	}
	h.Joined = &joined
	if err := l.note(h); err != nil {
		return err
	}
	ep.Gateway4, ep.Gateway6 = joined.Gateway4, joined.Gateway6
	mac, err := d.remote.HardwareAddress(ctx, ref)
	if err != nil {
		l.log.Debug("plugin tells nothing of an endpoint", "plugin", nw.rec.Driver, "err", err)
	}
	if ep.MAC == "" {
		ep.MAC = mac
	}
	if joined.Src != "" {
		link, port, err := d.lookAt(joined.Src)
		if err != nil {
			return err
		}
		h.port = port
		if h.source = link.Index; ep.MAC == "" {
			ep.MAC = link.MAC.String()
		}
	}
	set()
	return nil
}

// enrollLive is enroll for a container that runs.
func (l *Local) enrollLive(ctx context.Context, bx *box, nw *network, ep Endpoint, req EndpointRequest, ns *os.File) (Endpoint, error) {
	if nw.byPlugin() && !l.kept(bx.req.Owner) {
		if err := l.keep(bx.req.Owner, ns); err != nil {
			return ep, err
		}
	}
	p := plan{nets: []*network{nw}, eps: []Endpoint{ep}}
	if err := l.enroll(ctx, bx, &p, 0, req); err != nil {
		return p.eps[0], err // with the addresses that it has got
	}
	l.mu.Lock()
	others := slices.DeleteFunc(slices.Clone(bx.sb.Endpoints), func(o Endpoint) bool { return o.ID == ep.ID })
	l.mu.Unlock()
	err := l.nameAll(bx, &p, others)
	return p.eps[0], err
}

// repayOwner has what someone held of a network the last time taken back, if it can be: the addresses may be wanted again.
func (l *Local) repayOwner(ctx context.Context, owner, network string) {
	var list []*held
	l.mu.Lock()
	for _, h := range l.held {
		if h.owed && h.Owner == owner && h.Network == network {
			list = append(list, h)
		}
	}
	l.mu.Unlock()
	l.owe(ctx, list...)
}

// requestAddresses asks an address manager for the addresses of an endpoint.
func (l *Local) requestAddresses(ctx context.Context, nw *network, h *held, er EndpointRequest, ep *Endpoint) error {
	if err := l.replay(ctx, nw); err != nil {
		return said(err)
	}
	caps, err := nw.ipam.Capabilities(ctx)
	if err != nil {
		return said(err)
	}
	if caps.RequiresMACAddress && ep.MAC == "" {
		ep.MAC = randomMAC().String()
	}
	asked := ""
	if caps.RequiresMACAddress {
		asked = ep.MAC
	}
	for _, pool := range nw.rec.IPAM.Pools {
		want, at, list := er.IPv4, &ep.IPv4, nw.v4
		if pool.Subnet.Addr().Is6() {
			want, at, list = er.IPv6, &ep.IPv6, nw.v6
		}
		if at.IsValid() || want.IsValid() && !pool.Subnet.Contains(want) { // of several subnets the one that the address is of, else the first: as Docker
			continue
		}
		got, err := nw.ipam.RequestAddress(ctx, remote.AddressRequest{Pool: pool.ID, Want: want, Subnet: pool.Subnet, MAC: asked})
		ours := got.IsValid() && l.mayHave(h, heldAddr{pool.ID, got.Addr()})
		if ours {
			l.gave(h, heldAddr{pool.ID, got.Addr()})
			if err := l.note(h); err != nil {
				return err
			}
		}
		switch {
		case err != nil:
			return said(err)
		case !ours || list != nil && !l.claimGiven(list, got.Addr()):
			return errs.New(errs.Unavailable, "plugin %s: IpamDriver.RequestAddress: the address %s is in use on network %s", nw.rec.IPAM.Driver, got.Addr(), nw.rec.Name)
		}
		*at = got
	}
	return nil
}

// mayHave tells whether an address that a plugin gave is nobody else's: else it would be given back for the wrong one.
func (l *Local) mayHave(h *held, a heldAddr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.held {
		if o != h && !o.owed && o.IPAM == h.IPAM && slices.Contains(o.Addrs, a) {
			return false
		}
	}
	return true
}

// claimGiven notes an address that a plugin gave. A link that is about to go may have it yet.
func (l *Local) claimGiven(list subnets, a netip.Addr) bool {
	claim := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return list.claim(a)
	}
	if claim() {
		return true
	}
	l.reap.force(a)
	return claim()
}

// nameAll names the interfaces of a plan, now that the plugins said by what prefix.
func (l *Local) nameAll(bx *box, p *plan, others []Endpoint) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.namePlugged(p.eps, p.nets, others); err != nil {
		return err
	}
	for i, ep := range p.eps {
		p.nets[i].enter(bx.req.Owner, ep)
		bx.replace(ep)
	}
	return nil
}

// namePlugged is nameInterfaces, with what plugins said of theirs. mu is held.
func (l *Local) namePlugged(eps []Endpoint, nets []*network, others []Endpoint) error {
	var at []int
	var list []Endpoint
	var prefixes []string
	for i, ep := range eps {
		prefix := nets[i].prefix
		if h := l.held[ep.ID]; h != nil && h.Driver != "" {
			if h.Joined == nil || h.Joined.Src == "" {
				continue // it has none
			}
			if prefix = h.Joined.Prefix; ep.Interface == "" {
				ep.Interface = h.Joined.Name
			}
		}
		at, list, prefixes = append(at, i), append(list, ep), append(prefixes, prefix)
	}
	if err := nameInterfaces(list, prefixes, others); err != nil {
		return err
	}
	for j, i := range at {
		eps[i].Interface = list[j].Interface
	}
	return nil
}

// replace puts an endpoint in the place of its earlier self. Local.mu is held.
func (bx *box) replace(ep Endpoint) {
	bx.sb.Endpoints = slices.Clone(bx.sb.Endpoints)
	for i, o := range bx.sb.Endpoints {
		if o.ID == ep.ID {
			bx.sb.Endpoints[i] = ep
		}
	}
}

// portsFor are the ports of a container, as plugins are told of them.
func portsFor(bx *box) (published, exposed []remote.Port) {
	for p := range Each(bx.req.Ports) {
		if p.Proto == "" {
			p.Proto = "tcp"
		}
		published = append(published, remote.Port{Proto: protoNumber[p.Proto], Port: p.ContainerPort, HostIP: p.HostIP, HostPort: p.HostPort, HostPortEnd: p.HostPortEnd})
	}
	seen := map[remote.Port]bool{}
	for _, list := range [][]Port{bx.req.Exposed, bx.req.Ports} {
		for p := range Each(list) {
			if p.Proto == "" {
				p.Proto = "tcp"
			}
			if one := (remote.Port{Proto: protoNumber[p.Proto], Port: p.ContainerPort}); !seen[one] {
				seen[one] = true
				exposed = append(exposed, one)
			}
		}
	}
	return published, exposed
}

// steer tells drivers that are plugins whose endpoint is the container's way to the outside now, and which is not any more. With anew, those that were told are told again: its ports changed.
func (l *Local) steer(ctx context.Context, bx *box, p plan, anew bool) error {
	published, exposed := portsFor(bx)
	for i, ep := range p.eps {
		d, ok := p.nets[i].drv.(*pluginDriver)
		h := l.heldOf(ep)
		if !ok || h == nil {
			continue
		}
		ref := remote.Ref{NetworkID: h.Network, EndpointID: h.ID}
		want := (i == p.gw4 || i == p.gw6) && !p.nets[i].rec.Internal
		if h.Open && (!want || anew) {
			if err := l.refused(h, d.remote.Revoke(ctx, ref)); err != nil {
				l.log.Warn("plugin does not take back the way to the outside", "plugin", h.Driver, "owner", h.Owner, "err", err)
			}
			h.Open = false
			if err := l.note(h); err != nil {
				return err
			}
		}
		if !want || h.Open {
			continue
		}
		h.Open = true
		if err := l.note(h); err != nil {
			return err
		}
		if err := d.remote.Program(ctx, ref, published, exposed); err != nil {
			return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", bx.req.Name, ep.ID, said(err))
		}
	}
	return nil
}

// randomMAC is a hardware address that belongs to no address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

// dismiss has plugins take back what someone who leaves had.
func (l *Local) dismiss(ctx context.Context, owner string, eps []Endpoint) error {
	var list []*held
	for _, ep := range eps {
		if h := l.heldOf(ep); h != nil {
			list = append(list, h)
		}
	}
	if len(list) == 0 {
		return nil
	}
	l.owe(ctx, list...)
	l.mu.Lock()
	for _, h := range l.held {
		if h.Owner == owner && !h.owed && h.Driver != "" {
			l.mu.Unlock()
			return nil // it has another plugin's interface yet
		}
	}
	l.mu.Unlock()
	return l.dropKey(owner)
}
