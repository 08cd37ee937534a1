package network

import (
	"context"
	"maps"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
)

// find looks a network up by id, name or unique prefix of an id, in this order. mu is held.
func (l *Local) find(ref string) (*network, error) {
	if ref == "default" {
		ref = nameBridge
	}
	if nw := l.nets[ref]; nw != nil {
		return nw, nil
	}
	if nw := l.nets[l.names[ref]]; nw != nil {
		return nw, nil
	}
	var found *network
	for id, nw := range l.nets {
		if ref != "" && strings.HasPrefix(id, ref) {
			if found != nil {
				return nil, errs.New(errs.Invalid, "network %s is ambiguous: several ids begin so", ref)
			}
			found = nw
		}
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "network %s not found", ref)
	}
	return found, nil
}

// Get finds a network by id, name or unique prefix of an id.
func (l *Local) Get(_ context.Context, ref string) (Network, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	nw, err := l.find(ref)
	if err != nil {
		return Network{}, err
	}
	return clone(nw.rec), nil
}

// List lists the networks, the oldest first.
func (l *Local) List(context.Context) ([]Network, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Network, 0, len(l.nets))
	for _, nw := range l.nets {
		all = append(all, clone(nw.rec))
	}
	slices.SortFunc(all, func(a, b Network) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all, nil
}

// Usage counts the addresses of a network's subnets.
func (l *Local) Usage(_ context.Context, ref string) ([]SubnetUsage, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	nw, err := l.find(ref)
	if err != nil {
		return nil, err
	}
	var all []SubnetUsage
	for _, s := range slices.Concat(nw.v4, nw.v6) {
		all = append(all, s.usage())
	}
	return all, nil
}

// Endpoints lists who is on a network.
func (l *Local) Endpoints(_ context.Context, ref string) (map[string]Endpoint, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	nw, err := l.find(ref)
	if err != nil {
		return nil, err
	}
	all := make(map[string]Endpoint, len(nw.eps))
	for owner, ep := range nw.eps {
		all[owner] = *ep
	}
	return all, nil
}

// clone copies a record so that its receiver cannot change ours.
func clone(nw Network) Network {
	nw.Options, nw.Labels, nw.IPAM.Options = maps.Clone(nw.Options), maps.Clone(nw.Labels), maps.Clone(nw.IPAM.Options)
	nw.Before = maps.Clone(nw.Before)
	nw.IPAM.Pools = slices.Clone(nw.IPAM.Pools)
	for i := range nw.IPAM.Pools {
		nw.IPAM.Pools[i].Aux = maps.Clone(nw.IPAM.Pools[i].Aux)
	}
	return nw
}
