package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/task"
	"golang.org/x/sys/unix"
)

// Create makes a user-defined bridge network. Neither address family asked for means IPv4.
func (l *Local) Create(ctx context.Context, nw Network) (_ Network, err error) {
	l.created.Lock()
	defer l.created.Unlock()
	rec := clone(nw)
	if err := l.checkNew(&rec); err != nil {
		return Network{}, err
	}
	rec.ID, rec.Created, rec.Predefined = newID(), time.Now().UTC(), false
	if err := l.chooseSubnets(&rec); err != nil {
		return Network{}, err
	}
	made, err := l.live(rec)
	if err != nil {
		return Network{}, err
	}
	if err := l.checkBridgeName(made.br); err != nil {
		return Network{}, err
	}
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	undo.Push(func(ctx context.Context) error { return l.lower(ctx, made) })
	if err := made.drv.raise(ctx); err != nil {
		return Network{}, fmt.Errorf("create network %s: %w", rec.Name, err)
	}
	if err := l.bridgeSysctls(made); err != nil {
		return Network{}, fmt.Errorf("create network %s: %w", rec.Name, err)
	}
	if !l.opt.NoRules && made.br != "" {
		tx := &nft.Tx{}
		addBridge(tx, l.opt.Table, made)
		if err := l.commit(tx); err != nil && !errors.Is(err, unix.ENOENT) { // flushed a moment ago: it is being written again, with this one
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

func (l *Local) checkNew(rec *Network) error {
	if strings.TrimSpace(rec.Name) == "" || len(rec.Name) > 255 || strings.ContainsFunc(rec.Name, func(r rune) bool { return r == '/' || unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return errs.New(errs.Invalid, "invalid network name: %q", rec.Name)
	}
	switch rec.Name {
	case nameBridge, nameHost, nameNone, "default":
		return errs.New(errs.Forbidden, "operation is not permitted on predefined %s network", rec.Name)
	}
	switch rec.Driver {
	case "":
		rec.Driver = nameBridge
	case nameHost, "null":
		return errs.New(errs.Forbidden, "only one instance of %q network is allowed", rec.Driver)
	}
	if d := rec.IPAM.Driver; d != "" && d != "default" {
		return errs.New(errs.NotFound, "plugin %q not found", d)
	}
	rec.IPAM.Driver = "default"
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errs.New(errs.Unavailable, "network room is closed")
	}
	if _, taken := l.names[rec.Name]; taken {
		return errs.New(errs.Conflict, "network with name %s already exists", rec.Name)
	}
	return nil
}

func (l *Local) checkBridgeName(br string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, other := range l.nets {
		if other.br == br {
			return errs.New(errs.Forbidden, "bridge name %s is already used by network %s", br, other.rec.Name)
		}
	}
	return nil
}

// chooseSubnets checks the pools that were asked for and finds those that were not.
func (l *Local) chooseSubnets(rec *Network) error {
	var have4, have6 int
	for i, p := range rec.IPAM.Pools {
		if !p.Subnet.IsValid() {
			if p.Range.IsValid() || p.Gateway.IsValid() || len(p.Aux) > 0 {
				return errs.New(errs.Invalid, "invalid subnet: a gateway, ip-range or auxiliary address needs one")
			}
			continue
		}
		var err error
		if rec.IPAM.Pools[i], err = checkPool(p); err != nil {
			return err
		}
		if p.Subnet.Addr().Is4() {
			have4++
		} else {
			have6++
		}
	}
	if have6 > 0 && !rec.EnableIPv6 { // as Docker: files that name a subnet of each family are common, and IPv6 is asked for apart
		l.log.Warn("IPv6 subnet is left out: IPv6 is not enabled for the network", "network", rec.Name)
		have6 = 0
	}
	rec.IPAM.Pools = slices.DeleteFunc(rec.IPAM.Pools, func(p Pool) bool { return !p.Subnet.IsValid() || p.Subnet.Addr().Is6() && !rec.EnableIPv6 })
	if have4 > 1 || have6 > 1 {
		return errs.New(errs.Forbidden, "bridge driver doesn't support multiple subnets")
	}
	rec.EnableIPv4 = rec.EnableIPv4 || have4 > 0 || !rec.EnableIPv6
	taken, _, err := l.takenSubnets("")
	if err != nil {
		return err
	}
	ours := l.ourSubnets()
	for _, p := range rec.IPAM.Pools {
		if overlapsAny(p.Subnet, ours) {
			return errs.New(errs.Forbidden, "invalid pool request: Pool overlaps with other one on this address space")
		}
	}
	if rec.EnableIPv4 && have4 == 0 {
		subnet, err := freeSubnet(l.opt.Pools, taken)
		if err != nil {
			return err
		}
		rec.IPAM.Pools = append(rec.IPAM.Pools, Pool{Subnet: subnet, Gateway: subnet.Addr().Next()})
	}
	if rec.EnableIPv6 && have6 == 0 {
		subnet := uniqueLocal(newID())
		rec.IPAM.Pools = append(rec.IPAM.Pools, Pool{Subnet: subnet, Gateway: subnet.Addr().Next()})
	}
	return nil
}

func (l *Local) ourSubnets() (all []netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, nw := range l.nets {
		for _, p := range nw.rec.IPAM.Pools {
			all = append(all, p.Subnet)
		}
	}
	return all
}

// Remove removes a network that nobody is on.
func (l *Local) Remove(ctx context.Context, ref string) error {
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
	if err != nil {
		l.mu.Unlock()
		return err
	}
	delete(l.nets, nw.rec.ID) // nobody can join any more
	delete(l.names, nw.rec.Name)
	l.rules.changes++
	l.mu.Unlock()
	if err := l.forget(nw.rec.ID); err != nil {
		l.mu.Lock()
		l.put(nw)
		l.mu.Unlock()
		return err
	}
	return l.lower(ctx, nw)
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
	}
	return errors.Join(append(all, nw.drv.lower(ctx))...)
}
