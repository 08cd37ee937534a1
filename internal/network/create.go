package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/task"
	"golang.org/x/sys/unix"
)

// Create makes a user-defined bridge network. Neither address family asked for means IPv4.
func (l *Local) Create(ctx context.Context, nw Network) (Network, error) {
	rec := clone(nw)
	made, way, err := l.createOwn(ctx, &rec)
	if way == nil {
		return made, err
	}
	return l.createPlugged(ctx, rec, way)
}

// createOwn checks and completes what was asked for, and makes a network that no plugin has a part in. For others it takes the name, and the rest is to be done without the lock.
func (l *Local) createOwn(ctx context.Context, rec *Network) (Network, *coming, error) {
	l.created.Lock()
	defer l.created.Unlock()
	if err := l.checkNew(rec); err != nil {
		return Network{}, nil, err
	}
	rec.ID, rec.Created, rec.Predefined = newID(), time.Now().UTC(), false
	if rec.ConfigOnly {
		nw, err := l.createConfig(*rec)
		return nw, nil, err
	}
	if err := errors.Join(l.fromConfig(rec), l.withDefaults(rec)); err != nil {
		return Network{}, nil, err
	}
	if rec.asksPlugins() {
		return Network{}, l.comes(rec), nil
	}
	nw, err := l.createBuiltIn(ctx, *rec)
	return nw, nil, err
}

// createBuiltIn makes a network of a driver and with addresses of the engine's own. created is held.
func (l *Local) createBuiltIn(ctx context.Context, rec Network) (Network, error) {
	if err := l.chooseSubnets(&rec); err != nil {
		return Network{}, err
	}
	made, err := l.live(rec)
	if err != nil {
		return Network{}, err
	}
	return l.makeNetwork(ctx, made)
}

// makeNetwork makes on the host what a network needs, and keeps it. created is held.
func (l *Local) makeNetwork(ctx context.Context, made *network) (_ Network, err error) {
	rec := made.rec
	if err := l.checkBridgeName(made.br); err != nil {
		return Network{}, err
	}
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	undo.Push(func(ctx context.Context) error { return l.lower(ctx, made) })
	if err := made.drv.raise(ctx); err != nil {
		return Network{}, fmt.Errorf("create network %s: %w", rec.Name, err)
	}
	if made.br != "" {
		if err := l.bridgeSysctls(made); err != nil {
			return Network{}, fmt.Errorf("create network %s: %w", rec.Name, err)
		}
	}
	rec = made.rec // a driver may have made it internal
	if !l.opt.NoRules && made.br != "" {
		tx := &nft.Tx{}
		addBridge(tx, l.opt.Table, made)
		if err := l.commit(tx); err != nil && !errors.Is(err, unix.ENOENT) { // flushed a moment ago: it is being written again, with this one
			return Network{}, fmt.Errorf("create network %s: %w", rec.Name, err)
		}
		if err := l.egress.PutBridge(made.br, made.egress); err != nil {
			return Network{}, fmt.Errorf("create network %s: %w", rec.Name, err)
		}
	}
	if err := l.save(rec); err != nil {
		return Network{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(made)
	l.rules.changes++
	return clone(rec), nil
}

// createConfig keeps a configuration-only network.
func (l *Local) createConfig(rec Network) (Network, error) {
	for _, p := range rec.IPAM.Pools {
		if p.Subnet.IsValid() {
			if err := checkPool(p); err != nil {
				return Network{}, err
			}
		}
	}
	rec.Driver = driverNull // as Docker: which driver is for those to say that use it
	if err := l.save(rec); err != nil {
		return Network{}, err
	}
	made, err := l.live(rec)
	if err != nil {
		return Network{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(made)
	return clone(rec), nil
}

func (l *Local) checkNew(rec *Network) error {
	if strings.TrimSpace(rec.Name) == "" { // as Docker: everything else is a name
		return errs.New(errs.Invalid, "invalid name: name is empty")
	}
	switch rec.Name {
	case nameBridge, nameHost, nameNone, "default":
		return errs.New(errs.Forbidden, "operation is not permitted on predefined %s network", rec.Name)
	}
	if rec.ConfigOnly {
		if err := checkConfigOnly(rec); err != nil {
			return err
		}
	}
	switch rec.Driver {
	case "":
		rec.Driver = nameBridge
	case nameHost, driverNull:
		return errs.New(errs.Forbidden, "only one instance of %q network is allowed", rec.Driver)
	case nameNone: // a name for users, whose driver is called otherwise
		return errs.New(errs.NotFound, "plugin %q not found", rec.Driver)
	}
	if rec.IPAM.Driver == "" {
		rec.IPAM.Driver = ipamDefault
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errs.New(errs.Unavailable, "network room is closed")
	}
	_, taken := l.names[rec.Name]
	for _, c := range l.coming {
		taken = taken || c.name == rec.Name
	}
	if taken {
		return errs.New(errs.Conflict, "network with name %s already exists", rec.Name)
	}
	return nil
}

func (l *Local) checkBridgeName(br string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, other := range l.nets {
		if br != "" && other.br == br {
			return errs.New(errs.Forbidden, "bridge name %s conflicts with network %s: networks have same bridge name", br, other.rec.Name)
		}
	}
	return nil
}

// Remove removes a network that nobody is on.
func (l *Local) Remove(ctx context.Context, ref string) error {
	h, err := l.removeOwn(ctx, ref)
	if h == nil {
		return err
	}
	var list []*held // endpoints that are owed yet, then the network
	l.mu.Lock()
	for _, e := range l.held {
		if e.Network == h.Network && e != h {
			list = append(list, e)
		}
	}
	l.mu.Unlock()
	l.owe(ctx, append(list, h)...) // as Docker: what a plugin says to it keeps no network
	return err
}

// removeOwn removes what is ours of a network, and returns what plugins hold of it, nil where the network is still there.
func (l *Local) removeOwn(ctx context.Context, ref string) (*held, error) {
	l.created.Lock()
	defer l.created.Unlock()
	l.mu.Lock()
	nw, err := l.find(ref)
	if err == nil && nw.rec.Predefined {
		err = errs.New(errs.Forbidden, "%s is a pre-defined network and cannot be removed", nw.rec.Name)
	}
	if err == nil && len(nw.eps) > 0 {
		err = l.inUse(nw)
	}
	if err == nil && l.madeFrom(nw) != "" {
		err = errs.New(errs.Forbidden, "error while removing network: configuration network %q is in use", nw.rec.Name)
	}
	if err != nil {
		l.mu.Unlock()
		return nil, err
	}
	delete(l.nets, nw.rec.ID) // nobody can join any more
	delete(l.names, nw.rec.Name)
	h := l.held[nw.rec.ID]
	l.rules.changes++
	l.mu.Unlock()
	if err := l.forget(nw.rec.ID); err != nil {
		l.mu.Lock()
		l.put(nw)
		l.mu.Unlock()
		return nil, err
	}
	return h, l.lower(ctx, nw)
}

// inUse is Docker's refusal to remove a network. mu is held.
func (l *Local) inUse(nw *network) error {
	var who []string
	for owner := range nw.eps {
		name := owner
		if bx := l.boxes[owner]; bx != nil && bx.req.Name != "" {
			name = bx.req.Name
		}
		who = append(who, fmt.Sprintf("name:%q id:%q", name, short(owner)))
	}
	slices.Sort(who)
	return errs.New(errs.Forbidden, "error while removing network: network %s id %s has active endpoints (%s)", nw.rec.Name, nw.rec.ID, strings.Join(who, ", "))
}

func short(id string) string { return id[:min(12, len(id))] }

// lower takes what was made for a network, and its entries in the table, away, as far as they are there.
func (l *Local) lower(ctx context.Context, nw *network) error {
	var all []error
	if !l.opt.NoRules && nw.br != "" {
		tx := &nft.Tx{}
		for set, elems := range bridgeElements(nw) {
			tx.DelElems(l.opt.Table, set, elems)
		}
		if err := l.commit(tx); errors.Is(err, unix.ENOENT) {
			l.rules.again()
		} else {
			all = append(all, err)
		}
		all = append(all, l.egress.PutBridge(nw.br, nil))
	}
	if nw.drv != nil {
		all = append(all, nw.drv.lower(ctx))
	}
	return errors.Join(all...)
}
