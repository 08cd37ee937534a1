package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
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
	err = errors.Join(err, l.restoreRoutes(ctx, bx, p, pid, made))
	if err != nil {
		return fmt.Errorf("restore network of %s: %w", req.Name, err)
	}
	return nil
}

// restoreRoutes sets the default routes of a container whose interfaces were made again, or whose routes are astray.
func (l *Local) restoreRoutes(ctx context.Context, bx *box, p plan, pid int, made bool) error {
	if !made && p.gw4 < 0 && p.gw6 < 0 {
		return nil
	}
	ns, err := nsOf(pid)
	if !made && errors.Is(err, os.ErrNotExist) { // it ended a moment ago
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	if !made {
		if err := l.inside(ns, func(in *netlink.Conn) (err error) { made, err = l.astray(in, p); return err }); err != nil {
			return fmt.Errorf("look at the default routes: %w", err)
		}
	}
	if !made {
		return nil
	}
	return l.reroute(ctx, bx, ns)
}

// astray says whether a default route of a running container is lost, or goes through another interface of an engine's than it should: so it may be when the last engine died while it connected or
// disconnected the container. One that goes somewhere else (into a tunnel, by somebody inside) is left as it is.
func (l *Local) astray(in *netlink.Conn, p plan) (bool, error) {
	routes, err := in.Routes()
	if err != nil {
		return false, err
	}
	links, err := in.Links("")
	if err != nil {
		return false, err
	}
	ours := map[string]bool{"eth": true}
	l.mu.Lock()
	for _, nw := range l.nets {
		ours[nw.prefix] = true
	}
	l.mu.Unlock()
	for _, ep := range p.eps {
		ours[ep.Interface] = true
	}
	for _, way := range []struct {
		is4 bool
		at  int
	}{{true, p.gw4}, {false, p.gw6}} {
		if way.at < 0 {
			continue
		}
		i := slices.IndexFunc(routes, func(r netlink.Route) bool {
			return r.Is4 == way.is4 && !r.Dst.IsValid() && r.Table == unix.RT_TABLE_MAIN
		})
		if i < 0 {
			return true, nil
		}
		dev := ""
		for _, link := range links {
			if link.Index == routes[i].Index {
				dev = link.Name
			}
		}
		if dev != p.eps[way.at].Interface && (ours[dev] || ours[strings.TrimRight(dev, "0123456789")]) {
			return true, nil
		}
	}
	return false, nil
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
