package network

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/network/egress"
	"golang.org/x/sys/unix"
)

// The drivers whose endpoints stand on an interface of the host, their parent, as hosts of their own in the network outside.
const (
	driverMacvlan = "macvlan"
	driverIPvlan  = "ipvlan"
)

const (
	optParent     = "parent"
	optMacMode    = "macvlan_mode"
	optIPMode     = "ipvlan_mode"
	optIPFlag     = "ipvlan_flag"
	modePassthru  = "passthru"
	ipvlanDefault = "l2"
)

var (
	macvlanModes = map[string]uint32{"bridge": 4, "private": 1, "vepa": 2, modePassthru: 8}
	ipvlanModes  = map[string]uint32{ipvlanDefault: 0, "l3": 1, "l3s": 2}
	ipvlanFlags  = map[string]uint32{"bridge": 0, "private": 1, "vepa": 2}
)

// onParent is the driver macvlan or ipvlan. The host itself cannot reach its endpoints through their parent: the kernel's rule. A parent NAME.ID that is not there is made, as the 802.1q
// interface ID of NAME; a network without a parent gets one that leads nowhere (a veth whose other end nobody listens at; one without
// a carrier would carry nothing), and is internal.
type onParent struct {
	l      *Local
	nw     *network
	parent string
	mode   string
	flag   string           // of ipvlan
	mac    net.HardwareAddr // the parent's
}

func newOnParent(l *Local, nw *network) (*onParent, error) {
	d := &onParent{l: l, nw: nw, mode: "bridge", flag: "bridge"}
	modes, optMode := macvlanModes, optMacMode
	if nw.rec.Driver == driverIPvlan {
		d.mode, modes, optMode = ipvlanDefault, ipvlanModes, optIPMode
	}
	for key, val := range nw.rec.Options {
		switch key {
		case optParent:
			d.parent = val
		case optMode:
			d.mode = val
		case optIPFlag:
			d.flag = val
		case optMTU:
			n, err := strconv.Atoi(val)
			if err != nil || n < 68 || n > 65535 {
				return nil, errs.New(errs.Invalid, "invalid MTU number: %s", val)
			}
			nw.mtu = n
		case optPrefix:
			if nw.prefix = val; !goodLinkName(val + "1000") {
				return nil, errs.New(errs.Invalid, "failed to parse %s value: %s (not the beginning of a name of an interface)", key, val)
			}
		case OptionEgress:
			if list, err := egress.Parse(val); err != nil || list != nil {
				return nil, errors.Join(err, l.checkFence(nw))
			}
		case OptionRateIngress:
			return nil, noHostEnd(nw)
		case optIPv4, optIPv6:
		default:
			if strings.HasPrefix(key, "com.docker.network.") || strings.HasSuffix(key, "vlan_mode") || strings.HasSuffix(key, "vlan_flag") {
				return nil, errs.New(errs.Invalid, "failed to parse %s value: %s (not supported by driver %s)", key, val, nw.rec.Driver)
			}
		}
	}
	if _, ok := modes[d.mode]; !ok {
		return nil, errs.New(errs.Invalid, "requested %s mode '%s' is not valid, '%s' mode is the %s driver default", nw.rec.Driver, d.mode, map[string]string{driverMacvlan: "bridge", driverIPvlan: ipvlanDefault}[nw.rec.Driver], nw.rec.Driver)
	}
	if _, ok := ipvlanFlags[d.flag]; !ok {
		return nil, errs.New(errs.Invalid, "requested ipvlan flag '%s' is not valid, 'bridge' is the ipvlan driver default", d.flag)
	}
	if d.parent == "" {
		if d.mode == modePassthru {
			return nil, errs.New(errs.Invalid, "macvlan mode passthru needs an interface: -o parent=NAME")
		}
		d.parent, nw.rec.Internal = "dm-"+nw.rec.ID[:12], true
	}
	if !goodLinkName(d.parent) {
		return nil, errs.New(errs.Invalid, "invalid parent interface %q", d.parent)
	}
	return d, nil
}

// own tells whether the parent is one that leads nowhere, made for this network alone.
func (d *onParent) own() bool { return d.parent == "dm-"+d.nw.rec.ID[:12] }

// vlanOf splits NAME.ID.
func vlanOf(parent string) (base string, id uint16, ok bool, err error) {
	base, text, ok := strings.Cut(parent, ".")
	if !ok {
		return "", 0, false, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, false, nil // a name with a dot in it
	}
	if n < 1 || n > 4094 {
		return "", 0, false, errs.New(errs.Invalid, "vlan id must be between 1-4094, received: %d", n)
	}
	return base, uint16(n), true, nil
}

func (d *onParent) raise(context.Context) error {
	if err := d.checkShare(); err != nil {
		return err
	}
	c, err := d.l.rt.Take()
	if err != nil {
		return err
	}
	defer d.l.rt.Give(c)
	link, err := c.LinkByName(d.parent)
	if errors.Is(err, unix.ENODEV) {
		if err := d.makeParent(c); err != nil {
			return err
		}
		link, err = c.LinkByName(d.parent)
	}
	if err != nil {
		return err
	}
	if !link.Up {
		var b netlink.Batch
		b.SetUp(link.Index)
		if err := c.Do(&b); err != nil {
			return err
		}
	}
	if d.nw.mtu == 0 {
		d.nw.mtu = link.MTU
	}
	d.nw.index, d.nw.foreign, d.mac = link.Index, link.Alias != d.l.bridgeAlias(), link.MAC
	return d.try(c)
}

// checkShare refuses a parent that one endpoint must have for itself.
func (d *onParent) checkShare() error {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	for _, other := range d.l.nets {
		if o, ok := other.drv.(*onParent); ok && other != d.nw && o.parent == d.parent && (o.mode == modePassthru || d.mode == modePassthru || o.nw.rec.Driver != d.nw.rec.Driver) {
			return errs.New(errs.Forbidden, "network %s is already using parent interface %s", other.rec.Name, d.parent)
		}
	}
	return nil
}

func (d *onParent) makeParent(c *netlink.Conn) error {
	var b netlink.Batch
	if d.own() {
		peer := "dp-" + d.nw.rec.ID[:12]
		b.AddVeth(netlink.Veth{Name: d.parent, Alias: d.l.bridgeAlias(), MTU: d.nw.mtu, PeerName: peer})
		b.SetUpName(peer)
		return c.Do(&b)
	}
	base, id, is, err := vlanOf(d.parent)
	if err != nil {
		return err
	}
	if !is {
		return errs.New(errs.Invalid, "-o parent=%s: there is no such interface on the host", d.parent)
	}
	master, err := c.LinkByName(base)
	if errors.Is(err, unix.ENODEV) {
		return errs.New(errs.Invalid, "-o parent=%s: there is no interface %s on the host to make the vlan %d of", d.parent, base, id)
	}
	if err != nil {
		return err
	}
	b.AddVLAN(d.parent, d.l.bridgeAlias(), master.Index, id)
	if err := c.Do(&b); errors.Is(err, unix.EOPNOTSUPP) {
		return errs.New(errs.NotImplemented, "-o parent=%s: the kernel makes no 802.1q interfaces (CONFIG_VLAN_8021Q, module 8021q)", d.parent)
	} else if err != nil {
		return err
	}
	return nil
}

// try makes an interface of the kind and takes it away again: a kernel that cannot says so when the network is made, not when a container starts.
func (d *onParent) try(c *netlink.Conn) error {
	d.l.mu.Lock()
	used := len(d.nw.eps) > 0
	d.l.mu.Unlock()
	if used {
		return nil
	}
	name := "ct-" + d.nw.rec.ID[:12]
	var b, del netlink.Batch
	if err := d.add(&b, name, nil, nil); err != nil {
		return err
	}
	del.DelLink(name)
	err := whileGoing(c.Do(&b), unix.EINVAL, func() error { return c.Do(&b) })
	switch {
	case err == nil:
		return c.Do(&del)
	case errors.Is(err, unix.EOPNOTSUPP):
		return errs.New(errs.NotImplemented, "the kernel makes no %s interfaces (CONFIG_%s, module %s)", d.nw.rec.Driver, strings.ToUpper(d.nw.rec.Driver), d.nw.rec.Driver)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		return errs.New(errs.Conflict, "%s on parent interface %s (mode %s): %w: it may be part of a bridge, or passed through, or carry the other kind already", d.nw.rec.Driver, d.parent, d.mode, err)
	case errors.Is(err, unix.EEXIST): // of an engine that was killed here
		return errors.Join(c.Do(&del), c.Do(&b), c.Do(&del))
	}
	return fmtLink(d, err)
}

func fmtLink(d *onParent, err error) error {
	return errs.New(errs.Unavailable, "%s on parent interface %s: %w", d.nw.rec.Driver, d.parent, err)
}

// onParent says whether the network's endpoints stand on a parent.
func (nw *network) onParent() bool {
	_, ok := nw.drv.(*onParent)
	return ok
}

// goneWait is how long the kernel is given to take down the namespace of a container that ended: its interface, which goes with it, may be in the way of the next one. It has the hardware address that belongs to the
// address (EADDRINUSE when the next one is switched on), or the parent is passed through to it, or keeps another one from that (EINVAL when it is made). There is nothing on the host that could be asked whether it is gone.
const goneWait = 5 * time.Second

// whileGoing does again, for a while, what failed with an errno.
func whileGoing(err, errno error, again func() error) error {
	for end := time.Now().Add(goneWait); errors.Is(err, errno) && time.Now().Before(end); err = again() {
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

// setUpOnParent switches an interface on that stands on a parent, before anything else of it is set. The caller's thread is in the namespace.
func (l *Local) setUpOnParent(in *netlink.Conn, link netlink.Link, ep Endpoint) error {
	l.mu.Lock()
	nw := l.nets[ep.NetworkID]
	l.mu.Unlock()
	if nw == nil || !nw.onParent() || link.Up {
		return nil
	}
	var b netlink.Batch
	b.SetUp(link.Index)
	err := whileGoing(in.Do(&b), unix.EADDRINUSE, func() error { return in.Do(&b) })
	if errors.Is(err, unix.EADDRINUSE) {
		return errs.New(errs.Conflict, "connect to network %s: another container on its parent interface has the hardware address %s", nw.rec.Name, ep.MAC)
	}
	return err
}

// mayJoin refuses a second container on a parent that one has for itself, which has the parent's hardware address, too. mu is held.
func (d *onParent) mayJoin(er *EndpointRequest) error {
	if d.mode != modePassthru {
		return nil
	}
	if er.MAC != "" && !strings.EqualFold(er.MAC, d.mac.String()) {
		return errs.New(errs.Invalid, "network %s: a container that has its parent interface for itself has the hardware address of that, too (%s), and no other", d.nw.rec.Name, d.mac)
	}
	er.MAC = d.mac.String()
	if len(d.nw.eps) == 0 {
		return nil
	}
	return errs.New(errs.Conflict, "network %s is full: its parent interface %s is passed through to one container", d.nw.rec.Name, d.parent)
}

// add asks for one interface.
func (d *onParent) add(b *netlink.Batch, name string, mac net.HardwareAddr, ns *os.File) error {
	on := netlink.OnParent{Kind: d.nw.rec.Driver, Name: name, Parent: d.nw.index, MTU: d.nw.mtu, MAC: mac, NS: ns, Mode: macvlanModes[d.mode]}
	if d.nw.rec.Driver == driverIPvlan {
		on.Mode, on.Flags, on.MAC = ipvlanModes[d.mode], ipvlanFlags[d.flag], nil // it has its parent's
	}
	b.AddOnParent(on)
	return nil
}

func (d *onParent) plug(b *netlink.Batch, ep Endpoint, ns *os.File) error {
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return err
	}
	return d.add(b, ep.Interface, mac, ns)
}

func (d *onParent) unplug(_ context.Context, ep Endpoint, ns *os.File) error {
	return d.l.inside(ns, func(in *netlink.Conn) error {
		var del netlink.Batch
		del.DelLink(ep.Interface)
		if err := in.Do(&del); !errors.Is(err, unix.ENODEV) {
			return err
		}
		return nil
	})
}

// hostLink: nothing stands on the host.
func (d *onParent) hostLink(Endpoint) string { return "" }

func (d *onParent) carriers(Endpoint) []string { return nil }

// byDevice says whether the default route names no gateway: in the modes of layer 3 the host routes, and answers nobody who asks for a hardware address.
func (d *onParent) byDevice() bool {
	return d.nw.rec.Driver == driverIPvlan && d.mode != ipvlanDefault
}

// lower removes a parent that we made, when no other network stands on it.
func (d *onParent) lower(context.Context) error {
	if d.nw.index == 0 || d.nw.foreign {
		return nil
	}
	d.l.mu.Lock()
	for _, other := range d.l.nets {
		if o, ok := other.drv.(*onParent); ok && other != d.nw && o.parent == d.parent {
			d.l.mu.Unlock()
			return nil
		}
	}
	d.l.mu.Unlock()
	var del netlink.Batch
	del.DelLink(d.parent)
	if err := d.l.rt.Do(&del); !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}
