package network

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"corten.dev/corten/internal/errs"
)

// Restore re-claims what a running container has, after an engine restart: pid is its first process. What is there already in the kernel is left alone,
// so no packet of the container notices; what was taken from it meanwhile is made again.
func (l *Local) Restore(ctx context.Context, req JoinRequest, sb Sandbox, pid int) error {
	bx := newBox(req, sb)
	bx.pid, bx.ready = pid, true
	bx.turn <- struct{}{}
	defer func() { <-bx.turn }()
	ctx, done := bx.during(ctx)
	defer done()
	if err := bx.readWishes(); err != nil { // it was read when the container was made
		return err
	}
	bx.sb.NS = nil
	bx.sb.Endpoints = slices.Clone(sb.Endpoints)
	l.mu.Lock()
	if l.boxes[req.Owner] != nil {
		l.mu.Unlock()
		return errs.New(errs.Conflict, "sandbox of %s is there already", req.Owner)
	}
	var lost []string
	for _, ep := range bx.sb.Endpoints {
		nw := l.nets[ep.NetworkID]
		if nw == nil {
			lost = append(lost, ep.Network)
			continue
		}
		l.claimHeld(ep)
		delete(l.reap.dying, l.linkName(ep))
		nw.claim(ep)
		nw.enter(req.Owner, ep)
	}
	l.boxes[req.Owner] = bx
	p := l.planOf(bx)
	l.mu.Unlock()
	for _, name := range lost {
		l.log.Warn("network of a running container is gone", "owner", req.Owner, "network", name)
	}
	made, err := l.mend(bx, p, pid)
	err = errors.Join(err, l.fence(bx), l.rebind(ctx, bx, p, sb.Ports))
	if p.asksUs(bx) {
		err = errors.Join(err, l.restoreNames(ctx, bx, pid))
	}
	if made || p.userDefined() {
		err = errors.Join(err, l.restoreRoutes(ctx, bx, pid))
	}
	if err != nil {
		return fmt.Errorf("restore network of %s: %w", req.Name, err)
	}
	return nil
}

// restoreRoutes sets the default routes of a container that may have been leaving a network, with its default route, when the last engine died.
func (l *Local) restoreRoutes(ctx context.Context, bx *box, pid int) error {
	ns, err := nsOf(pid)
	if err != nil {
		return err
	}
	return errors.Join(l.reroute(ctx, bx, ns), ns.Close())
}

// rebind publishes ports on the very host ports that they had. One that a host process took meanwhile stays published, because the rules
// come before any process; only the log tells.
func (l *Local) rebind(ctx context.Context, bx *box, p plan, ports []Port) error {
	ep, nw := bx.portEndpoint(p)
	if len(ports) == 0 || nw == nil || l.opt.NoRules {
		return nil
	}
	var made []*binding
	for _, port := range ports {
		wants, err := l.hostAddrs(port, ep, nw)
		if err != nil {
			l.log.Warn("port is not published again", "owner", bx.req.Owner, "port", portText(port), "err", err)
			continue
		}
		for _, want := range wants {
			b := want
			b.owner = bx.req.Owner
			ok := b.direct && !b.rules
			if !ok {
				l.mu.Lock()
				_, ok = l.ports.claim(&b)
				l.mu.Unlock()
			}
			if !ok {
				l.log.Warn("port is not published again: another container has it", "owner", bx.req.Owner, "port", b.HostPort)
				continue
			}
			if err := l.holdAgain(&b); err != nil {
				l.log.Warn("host port is held by another process too", "port", b.HostPort, "err", err)
			}
			made = append(made, &b)
		}
	}
	l.mu.Lock()
	bx.bindings = made
	bx.sb.Ports = slices.Clone(ports)
	l.rules.changes++
	l.mu.Unlock()
	return l.expose(made)
}
