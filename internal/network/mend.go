package network

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/netlink"
)

// mend gives a running container back what its interfaces lost while no engine ran:
//
//	the host's end is in no bridge   the bridge was removed, and raised again by us: it joins the new one. No connection notices.
//	no interface                     someone removed it, or the last engine died while it took it away: it is made anew, with its addresses
//
// Of a veth only the host's end is looked at: the two live and die together. It says whether interfaces were made; their routes are still to be set.
func (l *Local) mend(bx *box, p plan, pid int) (made bool, err error) {
	host, err := l.rt.Take()
	if err != nil {
		return false, err
	}
	defer l.rt.Give(host)
	gone := plan{gw4: -1, gw6: -1}
	for i, ep := range p.eps {
		nw := p.nets[i]
		if nw.drv == nil || nw.index == 0 { // a network that is not usable was told already
			continue
		}
		there, err := l.attached(host, bx, p, i, pid)
		if err != nil {
			return false, fmt.Errorf("look at the interface on network %s: %w", nw.rec.Name, err)
		}
		if !there {
			l.log.Warn("interface of a running container was gone and is made again", "owner", bx.req.Owner, "network", nw.rec.Name)
			ep.sysctls = bx.req.sysctlsOn(ep)
			gone.nets, gone.eps = append(gone.nets, nw), append(gone.eps, ep)
		}
	}
	if len(gone.eps) == 0 {
		return false, nil
	}
	ns, err := nsOf(pid)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	gone.told = true
	if err := l.inside(ns, func(in *netlink.Conn) error { return l.furnish(host, in, gone, ns) }); err != nil {
		return false, fmt.Errorf("make the interface again: %w", err)
	}
	return true, l.shapeNew(bx, gone.nets, gone.eps, ns)
}

// attached tells whether an interface is there, and puts its end on the host where it belongs.
func (l *Local) attached(host *netlink.Conn, bx *box, p plan, i, pid int) (bool, error) {
	ep, nw := p.eps[i], p.nets[i]
	name := nw.drv.hostLink(ep)
	if name == "" {
		return l.hasInside(ep, pid)
	}
	link, err := host.LinkByName(name)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil || link.Master == nw.index && link.Up {
		return true, err
	}
	l.log.Warn("interface of a running container was not in its bridge, and joins it again", "owner", bx.req.Owner, "network", nw.rec.Name)
	var b netlink.Batch
	b.Enslave(link.Index, nw.index)
	if !nw.icc {
		b.Isolate(name)
	}
	if at, _ := bx.portEndpoint(p); at.ID == ep.ID && len(bx.req.Ports) > 0 {
		b.Hairpin(name)
	}
	return true, host.Do(&b)
}

// hasInside looks for an interface that has no end on the host.
func (l *Local) hasInside(ep Endpoint, pid int) (there bool, err error) {
	ns, err := nsOf(pid)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	err = l.inside(ns, func(in *netlink.Conn) error {
		_, err := in.LinkByName(ep.Interface)
		there = err == nil
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
	return there, err
}

// sysctlsOn are the settings that were asked for the interface on an endpoint's network; they were read when it was first made.
func (req *JoinRequest) sysctlsOn(ep Endpoint) []setting {
	for _, er := range req.Endpoints {
		var read Endpoint
		if (er.Network == ep.Network || er.Network == ep.NetworkID) && read.readOptions(er.Options, true) == nil {
			return read.sysctls
		}
	}
	return nil
}
