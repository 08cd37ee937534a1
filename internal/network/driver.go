package network

import (
	"context"
	"os"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
)

// driver makes the interfaces of one network; it holds what it read from the network's options. Everything that is alike for all kinds of networks is Local's: records,
// addresses, names, default routes, ports. Host and none have no driver: nothing is made for them.
//
//	Create, start of the engine   raise
//	Join, Connect                 plug, in the host's batch; then Local gives the interface its addresses and routes, inside, and waits for carriers to be up
//	Disconnect                    unplug; at the end of a container its interfaces go with their namespace
//	Remove, Close                 lower
//
// What a driver can do beyond that, it says by further methods, for which Local looks where it needs them.
type driver interface {
	// raise makes what the network needs on the host where it is not there yet, and sets network.index.
	raise(ctx context.Context) error
	// lower takes that away as far as it is there and our own.
	lower(ctx context.Context) error
	// plug asks for the interface ep.Interface, with the endpoint's hardware address, in the namespace.
	plug(b *netlink.Batch, ep Endpoint, ns *os.File) error
	// unplug takes it away from a container that runs on.
	unplug(ctx context.Context, ep Endpoint, ns *os.File) error
	// hostLink is the name of the host's end of the interface, while which is there the endpoint's addresses stay taken; empty where there is none.
	hostLink(ep Endpoint) string
	// carriers are the host's links that must be up before a packet gets through.
	carriers(ep Endpoint) []string
}

// publisher is a driver whose endpoints can be reached through ports of the host.
type publisher interface {
	driver
	// publishes says whether this network's are.
	publishes() bool
}

// byDevice says whether the default route of endpoints leads to their interface, and to no gateway behind it.
func (nw *network) byDevice() bool {
	d, ok := nw.drv.(*onParent)
	return ok && d.byDevice() && !nw.rec.Internal
}

// newDriver makes the driver of a network and has it read the network's options.
func (l *Local) newDriver(nw *network) (driver, error) {
	switch nw.rec.Driver {
	case nameBridge:
		return newBridge(l, nw)
	case nameHost, nameNone, driverNull:
		return nil, nil
	case driverMacvlan, driverIPvlan:
		return newOnParent(l, nw)
	case "overlay":
		return nil, errs.New(errs.NotImplemented, "network driver overlay needs a swarm, which this engine has not yet")
	}
	return newPluginDriver(l, nw)
}

// live makes the live side of a record; an error names the option that makes no sense.
func (l *Local) live(rec Network) (nw *network, err error) {
	nw = &network{rec: rec, eps: map[string]*Endpoint{}, replaying: make(chan struct{}, 1)}
	if rec.remoteIPAM() && !rec.ConfigOnly {
		if l.opt.Plugins.Set == nil {
			return nil, errs.New(errs.NotFound, "plugin %q not found", rec.IPAM.Driver)
		}
		if nw.ipam, err = l.opt.Plugins.IPAM(rec.IPAM.Driver); err != nil {
			return nil, err
		}
	}
	for _, p := range rec.IPAM.Pools {
		if !p.Subnet.IsValid() || anyAddress(p.Subnet) {
			continue
		}
		s := newSubnet(p)
		if p.Subnet.Addr().Is4() {
			nw.v4 = append(nw.v4, s)
		} else {
			nw.v6 = append(nw.v6, s)
		}
	}
	if nw.rates, err = ReadRates(rec.Options); err != nil {
		return nil, err
	}
	if nw.drv, err = l.newDriver(nw); err != nil {
		nw.drv = nil // what it is now is a nil of some kind, which is not nil
	}
	return nw, err
}

// hostLink is the driver's, of an endpoint whose network may be gone.
func (l *Local) hostLink(ep Endpoint) string {
	if nw := l.nets[ep.NetworkID]; nw != nil && nw.drv != nil {
		return nw.drv.hostLink(ep)
	}
	return l.linkName(ep)
}

// vacate takes the endpoint of someone who left off its network: its addresses are free when its link on the host is gone. mu is held.
func (l *Local) vacate(owner string, ep Endpoint, since time.Time) {
	link := l.hostLink(ep)
	l.dropEndpoint(owner, ep, link == "")
	if link != "" {
		l.reap.add(ep, since)
	}
}
