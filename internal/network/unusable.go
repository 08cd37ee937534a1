package network

import (
	"context"
	"os"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
)

// unusable is the driver of a stored network whose settings this engine cannot follow, such as an egress list when it was told to write no rules. The network is listed, can be left and removed, and nobody can join.
type unusable struct {
	l   *Local
	nw  *network
	why error
}

func (d *unusable) raise(context.Context) error { return d.why }

// lower removes the bridge that an earlier engine made, if it is there.
func (d *unusable) lower(context.Context) error {
	c, err := d.l.rt.Take()
	if err != nil {
		return err
	}
	defer d.l.rt.Give(c)
	link, err := c.LinkByName(d.nw.br)
	if err != nil || link.Alias != d.l.bridgeAlias() {
		return nil // it is gone, or not ours
	}
	var del netlink.Batch
	del.DelLink(d.nw.br)
	return c.Do(&del)
}

func (d *unusable) plug(*netlink.Batch, Endpoint, *os.File) error { return d.refuse() }

func (d *unusable) refuse() error {
	return errs.New(errs.Unavailable, "network %s is not usable: %w", d.nw.rec.Name, d.why)
}

// unplug removes the host's end of an interface from before.
func (d *unusable) unplug(ctx context.Context, ep Endpoint, ns *os.File) error {
	return (&bridge{d.l, d.nw}).unplug(ctx, ep, ns)
}

func (d *unusable) hostLink(ep Endpoint) string { return d.l.linkName(ep) }

func (d *unusable) carriers(Endpoint) []string { return nil }
