package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

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
	if !made {
		var lerr error
		made, lerr = l.astray(p, pid)
		err = errors.Join(err, lerr)
	}
	if made {
		err = errors.Join(err, l.restoreRoutes(ctx, bx, pid))
	}
	if err != nil {
		return fmt.Errorf("restore network of %s: %w", req.Name, err)
	}
	return nil
}

// astray says whether a default route of a running container is lost, or goes through another interface of an engine's than it should: so it may be when the last engine died while it connected or
// disconnected the container. One that goes somewhere else (into a tunnel, by somebody inside) is left as it is.
func (l *Local) astray(p plan, pid int) (bool, error) {
	l.mu.Lock()
	ours := map[string]bool{"eth": true}
	for _, nw := range l.nets {
		ours[nw.prefix] = true
	}
	l.mu.Unlock()
	for _, ep := range p.eps {
		ours[ep.Interface] = true
	}
	for _, f := range []struct {
		at   int
		file string
		dev  func(fields []string) string // of the default route's line
	}{{p.gw4, "route", defaultDev4}, {p.gw6, "ipv6_route", defaultDev6}} {
		if f.at < 0 {
			continue
		}
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, f.file))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) { // it ended a moment ago, or there is no IPv6
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read routes: %w", err)
		}
		dev := ""
		for line := range strings.Lines(string(table)) {
			if at := f.dev(strings.Fields(line)); at != "" && dev == "" {
				dev = at
			}
		}
		if dev == "" || dev != p.eps[f.at].Interface && (ours[dev] || ours[strings.TrimRight(dev, "0123456789")]) {
			return true, nil
		}
	}
	return false, nil
}

// defaultDev4 is the interface of a line of /proc/net/route (interface, destination, gateway, flags, …, mask at 7) that is a default route.
func defaultDev4(f []string) string {
	if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
		return ""
	}
	return f[0]
}

// defaultDev6 is the same of a line of /proc/net/ipv6_route (destination, its length, …, interface at 9). Without a default route the kernel shows one of its own, on lo.
func defaultDev6(f []string) string {
	if len(f) < 10 || f[0] != strings.Repeat("0", 32) || f[1] != "00" || f[9] == "lo" {
		return ""
	}
	return f[9]
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
