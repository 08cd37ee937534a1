package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/task"
)

// Connect gives a running container an interface on one more network. Its resolv.conf may change by it: see Sandbox.
func (l *Local) Connect(ctx context.Context, owner string, pid int, req EndpointRequest) (_ Endpoint, err error) {
	bx, ctx, done, err := l.change(ctx, owner)
	if err != nil {
		return Endpoint{}, err
	}
	defer done()
	nw, ep, err := l.reserveConnect(bx, req)
	if err != nil {
		return Endpoint{}, err
	}
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	undo.Push(func(ctx context.Context) error {
		err := l.dismiss(ctx, owner, []Endpoint{ep})
		l.mu.Lock()
		defer l.mu.Unlock()
		l.vacate(owner, ep, time.Time{})
		return err
	})
	undo.Push(func(context.Context) error { return l.fence(bx) })
	undo.Push(func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		bx.forgetEndpoint(ep)
		return nil
	})
	ns, err := nsOf(pid)
	if err != nil {
		return Endpoint{}, err
	}
	defer ns.Close()
	if nw.plugged() {
		if ep, err = l.enrollLive(ctx, bx, nw, ep, req, ns); err != nil {
			return Endpoint{}, err
		}
	}
	if err := l.fence(bx); err != nil { // its addresses are known now, also those of plugins
		return Endpoint{}, err
	}
	if err := l.plugLive(nw, ep, ns); err != nil {
		return Endpoint{}, err
	}
	if err := l.shapeNew(bx, []*network{nw}, []Endpoint{ep}, ns); err != nil {
		return Endpoint{}, err
	}
	if err := l.turn(ctx, bx, ns); err != nil {
		return Endpoint{}, err
	}
	l.mu.Lock()
	ep = *nw.eps[owner]
	opens := l.opens(owner)
	l.mu.Unlock()
	if opens {
		err = l.reopen()
	}
	return ep, errors.Join(err, l.refreshNames(ctx, bx, ns))
}

// turn gives a running container whose networks changed its way to the outside: default routes, published ports, and what plugins have to do for it.
func (l *Local) turn(ctx context.Context, bx *box, ns *os.File) error {
	l.mu.Lock()
	plugins := len(l.held) > 0
	l.mu.Unlock()
	if !plugins {
		return l.reroute(ctx, bx, ns)
	}
	if err := errors.Join(l.mendWayOut(ctx, bx, ns), l.reroute(ctx, bx, ns)); err != nil {
		return err
	}
	l.mu.Lock()
	p := l.planOf(bx)
	l.mu.Unlock()
	return l.steer(ctx, bx, p, false)
}

// plugLive makes one more interface in a container that runs.
func (l *Local) plugLive(nw *network, ep Endpoint, ns *os.File) error {
	l.mu.Lock()
	told := nw.unexpected(ep) || nw.byPlugin()
	l.mu.Unlock()
	host, err := l.rt.Take()
	if err != nil {
		return err
	}
	defer l.rt.Give(host)
	err = l.inside(ns, func(in *netlink.Conn) error {
		if !ep.IPv6.IsValid() {
			if err := l.quietIPv6([]Endpoint{ep}); err != nil {
				return err
			}
		} else if err := l.innerSysctl("net/ipv6/conf/default/disable_ipv6", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		var b netlink.Batch
		if err := nw.drv.plug(&b, ep, ns); err != nil {
			return err
		}
		if err := l.makeLinks(host, &b, []*network{nw}, []Endpoint{ep}); err != nil {
			return err
		}
		if err := l.configure(in, plan{eps: []Endpoint{ep}, gw4: -1, gw6: -1}); err != nil {
			return err
		}
		if err := l.settleHost(host, []*network{nw}, []Endpoint{ep}); err != nil || !told {
			return err
		}
		return l.announce(in, []Endpoint{ep})
	})
	if err != nil {
		return fmt.Errorf("connect to network %s: %w", nw.rec.Name, err)
	}
	return nil
}

func (l *Local) reserveConnect(bx *box, req EndpointRequest) (*network, Endpoint, error) {
	owner := bx.req.Owner
	l.mu.Lock()
	defer l.mu.Unlock()
	nw, err := l.find(req.Network)
	if err != nil {
		return nil, Endpoint{}, err
	}
	if nw.rec.ConfigOnly {
		return nil, Endpoint{}, errConfigOnly
	}
	if nw.drv == nil {
		return nil, Endpoint{}, errs.New(errs.Forbidden, "container cannot be connected to %s network while it runs", nw.rec.Name)
	}
	if bx.egress != nil {
		if err := l.checkFence(nw); err != nil {
			return nil, Endpoint{}, err
		}
	}
	if len(bx.sb.Endpoints) == 0 {
		for _, er := range bx.req.Endpoints {
			if at, err := l.find(er.Network); err == nil && at.rec.Driver == nameHost {
				return nil, Endpoint{}, errs.New(errs.Forbidden, "container cannot be disconnected from %s network or connected to %s network", at.rec.Name, nw.rec.Name)
			}
		}
	}
	if nw.eps[owner] != nil {
		return nil, Endpoint{}, errs.New(errs.Forbidden, "endpoint with name %s already exists in network %s", bx.req.Name, nw.rec.Name)
	}
	ep, err := l.newEndpoint(nw, req, "")
	if err != nil {
		return nil, Endpoint{}, err
	}
	if !nw.plugged() { // else plugins have a say in it
		named := []Endpoint{ep}
		if err := nameInterfaces(named, []string{nw.prefix}, bx.sb.Endpoints); err != nil {
			l.dropEndpoint("", ep, true)
			return nil, Endpoint{}, err
		}
		ep = named[0]
	}
	ep.Aliases = req.Aliases
	ep.DNSNames = dnsNames(nw, &bx.req, req.Aliases)
	nw.enter(owner, ep)
	if len(bx.sb.Endpoints) == 0 {
		bx.req.Endpoints = nil // none, where it was until now
	}
	bx.sb.Endpoints = append(slices.Clone(bx.sb.Endpoints), ep)
	bx.req.Endpoints = append(slices.Clone(bx.req.Endpoints), req)
	return nw, ep, nil
}

// forgetEndpoint takes an endpoint out of the sandbox. Local.mu is held.
func (bx *box) forgetEndpoint(ep Endpoint) {
	bx.sb.Endpoints = slices.DeleteFunc(slices.Clone(bx.sb.Endpoints), func(o Endpoint) bool { return o.ID == ep.ID })
	bx.req.Endpoints = slices.DeleteFunc(slices.Clone(bx.req.Endpoints), func(o EndpointRequest) bool { return o.Network == ep.Network || o.Network == ep.NetworkID })
}

// Disconnect takes a running container off a network. When its process or its interface cannot be had, nothing has changed.
func (l *Local) Disconnect(ctx context.Context, owner string, pid int, network string) error {
	l.mu.Lock()
	nw, err := l.find(network)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	bx, ctx, done, err := l.change(ctx, owner)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	not := errs.New(errs.Forbidden, "container %s is not connected to network %s", short(owner), nw.rec.Name)
	if err != nil {
		return not
	}
	defer done()
	ns, err := nsOf(pid) // before anything changes: of a container that just ended, Leave gives everything back
	if err != nil {
		return err
	}
	defer ns.Close()
	l.mu.Lock()
	at := nw.eps[owner]
	if at == nil {
		l.mu.Unlock()
		return not
	}
	ep := *at
	l.remember(owner, ep)
	l.mu.Unlock()
	if err := l.unplugLive(ctx, bx, nw, ep, ns); err != nil {
		return err
	}
	l.mu.Lock()
	opens := l.opens(owner)
	l.mu.Unlock()
	if opens {
		err = l.reopen()
	}
	return errors.Join(err, l.turn(ctx, bx, ns), l.refreshNames(ctx, bx, ns))
}

// unplugLive takes an interface of a container that runs away, with its list and its addresses. An interface that the kernel does not let go stays the container's.
func (l *Local) unplugLive(ctx context.Context, bx *box, nw *network, ep Endpoint, ns *os.File) error {
	owner := bx.req.Owner
	l.mu.Lock()
	was := bx.req.Endpoints
	l.dropEndpoint(owner, ep, false)
	bx.forgetEndpoint(ep)
	l.mu.Unlock()
	if err := nw.drv.unplug(ctx, ep, ns); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		nw.enter(owner, ep)
		bx.sb.Endpoints, bx.req.Endpoints = append(slices.Clone(bx.sb.Endpoints), ep), was
		return fmt.Errorf("disconnect from network %s: %w", nw.rec.Name, err)
	}
	err := errors.Join(l.fence(bx), l.dismiss(ctx, owner, []Endpoint{ep}))
	l.mu.Lock()
	defer l.mu.Unlock()
	nw.free(ep)
	return err
}

// planOf rebuilds the plan of a sandbox from what it has.
func (l *Local) planOf(bx *box) plan {
	p := plan{}
	var reqs []EndpointRequest
	for _, ep := range bx.sb.Endpoints {
		nw := l.nets[ep.NetworkID]
		if nw == nil {
			continue
		}
		p.nets, p.eps = append(p.nets, nw), append(p.eps, ep)
		er := EndpointRequest{}
		for _, r := range bx.req.Endpoints {
			if r.Network != "" && (r.Network == ep.Network || strings.HasPrefix(ep.NetworkID, r.Network)) {
				er = r
			}
		}
		reqs = append(reqs, er)
	}
	p.gateways(reqs)
	return p
}

// reroute sets the default routes and the targets of published ports after the interfaces changed.
func (l *Local) reroute(ctx context.Context, bx *box, ns *os.File) error {
	l.mu.Lock()
	p := l.planOf(bx)
	l.mu.Unlock()
	err := l.inside(ns, func(in *netlink.Conn) error {
		var b netlink.Batch
		for i, ep := range p.eps {
			if i != p.gw4 && i != p.gw6 {
				continue
			}
			link, err := in.LinkByName(ep.Interface)
			if err != nil {
				return err
			}
			if i == p.gw4 {
				b.AddRoute(link.Index, default4, ep.Gateway4)
			}
			if i == p.gw6 {
				b.AddRoute(link.Index, default6, ep.Gateway6)
			}
		}
		return in.Do(&b)
	})
	if err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	return l.republish(ctx, bx, p)
}

// republish moves the published ports to the endpoint that has the default route now; without one they are taken back.
func (l *Local) republish(ctx context.Context, bx *box, p plan) error {
	if len(bx.req.Ports) == 0 {
		return nil
	}
	ep, nw := bx.portEndpoint(p)
	l.mu.Lock()
	same := nw != nil && len(bx.bindings) > 0
	for _, b := range bx.bindings {
		same = same && (b.target.Addr() == ep.IPv4.Addr() || b.target.Addr() == ep.IPv6.Addr())
	}
	chosen := bx.sb.Ports
	l.mu.Unlock()
	if same {
		return nil
	}
	if err := l.unpublish(ctx, bx); err != nil || nw == nil {
		return err
	}
	if len(chosen) == 0 {
		return l.publish(bx, p, bx.req.Ports)
	}
	return l.rebind(ctx, bx, p, chosen)
}

// Rename changes the DNS name of a running container.
func (l *Local) Rename(ctx context.Context, owner, name string) error {
	host := l.hostServers()
	l.mu.Lock()
	bx := l.boxes[owner]
	if bx == nil {
		l.mu.Unlock()
		return nil
	}
	bx.req.Name = name
	eps := slices.Clone(bx.sb.Endpoints)
	for i, ep := range eps {
		if nw := l.nets[ep.NetworkID]; nw != nil {
			eps[i].DNSNames = dnsNames(nw, &bx.req, ep.Aliases)
			nw.enter(owner, eps[i])
		}
	}
	bx.sb.Endpoints = eps
	served := l.writeEntry(bx, host)
	l.mu.Unlock()
	if !served {
		return nil
	}
	return l.dns.sync(ctx, l.done, owner)
}
