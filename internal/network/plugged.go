package network

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/network/remote"
	"corten.dev/corten/internal/plugin"
	"golang.org/x/sys/unix"
)

// pluginDriver is the driver of a network that a program outside makes (see package remote). What it is asked and when:
//
//	Create      Admit, (addresses), CreateNetwork                                                createPlugged
//	Join        (addresses), CreateEndpoint, Join; its interface moves in; Program…Connectivity  enroll, plug, steer
//	Connect     the same, live
//	Disconnect  Revoke…Connectivity, Leave; its interface moves out; DeleteEndpoint              giveBack
//	Leave       the same
//	Remove      DeleteNetwork, (addresses)                                                       giveBack
//
// So the methods of [driver], which take turns with the kernel only, have little to do.
type pluginDriver struct {
	l      *Local
	nw     *network
	remote *remote.Driver
}

func newPluginDriver(l *Local, nw *network) (*pluginDriver, error) {
	if l.opt.Plugins.Set == nil {
		return nil, errs.New(errs.NotFound, "plugin %q not found", nw.rec.Driver)
	}
	d, err := l.opt.Plugins.Driver(nw.rec.Driver)
	return &pluginDriver{l, nw, d}, err
}

// raise: the plugin keeps its networks itself, as with Docker.
func (d *pluginDriver) raise(context.Context) error { return nil }

// lower: see giveBack.
func (d *pluginDriver) lower(context.Context) error { return nil }

// plug moves the interface that Join named into the container.
func (d *pluginDriver) plug(b *netlink.Batch, ep Endpoint, ns *os.File) error {
	h := d.l.heldOf(ep)
	if h == nil || h.source == 0 {
		return nil // the driver does that itself
	}
	h.Interface = ep.Interface
	b.MoveLink(h.source, ep.Interface, ns)
	return d.l.note(h)
}

// lookAt finds the interface that Join named, on the host, and the other end of it, if that is a port of a bridge there.
func (d *pluginDriver) lookAt(name string) (link netlink.Link, port string, err error) {
	c, err := d.l.rt.Take()
	if err != nil {
		return link, "", err
	}
	defer d.l.rt.Give(c)
	link, err = c.LinkByName(name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return link, "", errs.New(errs.Unavailable, "plugin %s: NetworkDriver.Join: there is no interface %q on the host", d.nw.rec.Driver, name)
	case err != nil:
		return link, "", err
	case strings.HasPrefix(link.Alias, "corten "):
		return link, "", errs.New(errs.Unavailable, "plugin %s: NetworkDriver.Join: the interface %q belongs to another network", d.nw.rec.Driver, name)
	case link.Kind != "veth" || link.PeerNS:
		return link, "", nil
	}
	veths, err := c.Links("veth")
	for _, other := range veths {
		if other.Index == link.PeerIndex && other.Master != 0 && other.Up {
			port = other.Name
		}
	}
	return link, port, err
}

// unplug: see giveBack.
func (d *pluginDriver) unplug(context.Context, Endpoint, *os.File) error { return nil }

func (d *pluginDriver) hostLink(Endpoint) string { return "" }

// carriers is the port of the plugin's bridge, where there is one: before it carries packets the neighbours do not hear whose the address is now, and those who knew another hardware address of it keep to that, up to a minute.
func (d *pluginDriver) carriers(ep Endpoint) []string {
	if h := d.l.heldOf(ep); h != nil && h.port != "" {
		return []string{h.port}
	}
	return nil
}

// heldOf is what plugins hold for an endpoint.
func (l *Local) heldOf(ep Endpoint) *held {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[ep.ID]
}

// byPlugin says whether the network's driver is a plugin.
func (nw *network) byPlugin() bool {
	_, ok := nw.drv.(*pluginDriver)
	return ok
}

// plugged says whether a plugin has a part in the network's endpoints.
func (nw *network) plugged() bool { return nw.byPlugin() || nw.ipam != nil }

// said gives a plugin's own words the mark by which Docker's users know them.
func said(err error) error {
	var e *plugin.Error
	if errors.As(err, &e) && e.Status == 200 {
		return errs.As(errs.Unavailable, &remoteError{err})
	}
	return err
}

// isSaid tells whether an error is a plugin's answer.
func isSaid(err error) bool {
	var e *plugin.Error
	return errors.As(err, &e)
}

type remoteError struct{ err error }

func (r *remoteError) Error() string { return "remote: " + r.err.Error() }
func (r *remoteError) Unwrap() error { return r.err }

// pluggedBefore and pluggedAfter ask for what only a plugin's interface needs, before it is set up and after: the hardware address that the plugin named, and its static routes.
func (l *Local) pluggedBefore(b *netlink.Batch, link netlink.Link, ep Endpoint) {
	if h := l.heldOf(ep); h == nil || h.Joined == nil {
		return
	}
	if mac, err := net.ParseMAC(ep.MAC); err == nil && !bytes.Equal(mac, link.MAC) {
		b.SetMAC(link.Index, mac)
	}
}

func (l *Local) pluggedAfter(b *netlink.Batch, link netlink.Link, ep Endpoint) {
	h := l.heldOf(ep)
	if h == nil || h.Joined == nil {
		return
	}
	for _, connected := range []bool{true, false} { // next hops may be reached by way of the others
		for _, r := range h.Joined.Routes {
			if connected != r.Via.IsValid() {
				b.AddRoute(link.Index, r.Dst, r.Via)
			}
		}
	}
}

// unfit names the plugin whose addresses or routes the kernel may have refused.
func (l *Local) unfit(eps []Endpoint, err error) error {
	for _, ep := range eps {
		if h := l.heldOf(ep); h != nil && h.Joined != nil {
			return errs.New(errs.Unavailable, "plugin %s: NetworkDriver.Join: the kernel refuses its addresses or routes: %w", h.Driver, err)
		}
	}
	return err
}

// reaches says whether an endpoint's way to everywhere is among its static routes.
func (l *Local) reaches(ep Endpoint, is4 bool) bool {
	h := l.held[ep.ID]
	return h != nil && h.Joined != nil && h.Joined.HasDefault(is4)
}

// anyAddress is the pool of an address manager whose addresses are of no subnet.
func anyAddress(p netip.Prefix) bool { return p.IsValid() && p.Bits() == 0 }
