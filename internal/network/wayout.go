package network

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"corten.dev/corten/internal/errs"
)

// nameWayOut is the network by which a container reaches the outside whose own networks' drivers are plugins that give no gateway, and leave it to the engine. The name is Docker's. It is a bridge network like
// any other: made when it is first needed, unless somebody made one of that name, with other options, before; its containers do not reach each other; published ports lead to it.
const nameWayOut = "docker_gwbridge"

// needsWayOut says whether nothing leads to the outside but what the engine would give: some plugin left that to it. An internal network is not meant to.
func (l *Local) needsWayOut(p plan) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := false
	for i, ep := range p.eps {
		nw := p.nets[i]
		if ep.WayOut || nw.rec.Internal {
			continue
		}
		if ep.Gateway4.IsValid() || nw.byDevice() || l.reaches(ep, true) {
			return false
		}
		h := l.held[ep.ID]
		left = left || nw.byPlugin() && h != nil && h.Joined != nil && !h.Joined.NoGatewayService
	}
	return left
}

// wayOut finds the network, or makes it.
func (l *Local) wayOut(ctx context.Context) (Network, error) {
	nw, err := l.Get(ctx, nameWayOut)
	if !errors.Is(err, errs.NotFound) {
		return nw, err
	}
	made, err := l.Create(ctx, Network{Name: nameWayOut, Driver: nameBridge, EnableIPv4: true, Options: map[string]string{optICC: "false", optMasq: "true"}})
	if errors.Is(err, errs.Conflict) { // somebody else was faster; or there is another reason, such as that all subnets are taken
		if nw, gerr := l.Get(ctx, nameWayOut); gerr == nil {
			return nw, nil
		}
	}
	return made, err
}

// reserveWayOut takes an endpoint there.
func (l *Local) reserveWayOut(ctx context.Context, bx *box, others []Endpoint) (*network, Endpoint, error) {
	rec, err := l.wayOut(ctx)
	if err != nil {
		return nil, Endpoint{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	nw := l.nets[rec.ID]
	if nw == nil || nw.drv == nil || nw.rec.ConfigOnly || nw.plugged() {
		return nil, Endpoint{}, errs.New(errs.Unavailable, "network %s is not one of driver bridge: it cannot be the way out", nameWayOut)
	}
	ep, err := l.newEndpoint(nw, EndpointRequest{}, "")
	if err != nil {
		return nil, ep, err
	}
	named := []Endpoint{ep}
	if err := nameInterfaces(named, []string{nw.prefix}, others); err != nil {
		l.dropEndpoint("", ep, true)
		return nil, ep, err
	}
	ep = named[0]
	ep.WayOut = true
	nw.enter(bx.req.Owner, ep)
	bx.sb.Endpoints = append(slices.Clone(bx.sb.Endpoints), ep)
	return nw, ep, nil
}

// addWayOut adds it to a plan that is not carried out yet.
func (l *Local) addWayOut(ctx context.Context, bx *box, p *plan, reqs []EndpointRequest) ([]EndpointRequest, error) {
	nw, ep, err := l.reserveWayOut(ctx, bx, p.eps)
	if err != nil {
		return reqs, err
	}
	p.nets, p.eps = append(slices.Clone(p.nets), nw), append(slices.Clone(p.eps), ep)
	return append(slices.Clone(reqs), EndpointRequest{Network: nameWayOut}), nil
}

// mendWayOut gives a running container the way out, or takes it, after its networks changed.
func (l *Local) mendWayOut(ctx context.Context, bx *box, ns *os.File) error {
	l.mu.Lock()
	p := l.planOf(bx)
	l.mu.Unlock()
	has := slices.IndexFunc(p.eps, func(ep Endpoint) bool { return ep.WayOut })
	switch needs := l.needsWayOut(p); {
	case needs && has < 0:
		nw, ep, err := l.reserveWayOut(ctx, bx, p.eps)
		if err != nil {
			return err
		}
		if err = l.plugLive(nw, ep, ns); err == nil {
			err = l.shapeNew(bx, []*network{nw}, []Endpoint{ep}, ns)
		}
		if err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.vacate(bx.req.Owner, ep, time.Time{})
			bx.forgetEndpoint(ep)
			return err
		}
	case !needs && has >= 0:
		return l.unplugLive(ctx, bx, p.nets[has], p.eps[has], ns)
	}
	return nil
}
