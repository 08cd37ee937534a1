package metrics

import (
	"context"
	"slices"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/engine/networks"
)

// egress tells what egress lists let through and dropped. Where nobody has a list, there is nothing to tell, and the kernel is not asked.
func (o *Options) egress(ctx context.Context, p *page, views []containers.View) error {
	owners, nets, err := o.Networks.EgressCounts(ctx)
	if err != nil || len(owners)+len(nets) == 0 {
		return err
	}
	type series struct {
		labels string
		count  networks.EgressCount
	}
	var ctrs, all []series
	for i := range views {
		if c, has := owners[views[i].ID]; has {
			ctrs = append(ctrs, series{labels("id", views[i].ID, "name", views[i].Name, "image", views[i].ImageRef), c})
		}
	}
	list, err := o.Networks.List(ctx, nil)
	if err != nil {
		return err
	}
	for _, nw := range list {
		if c, has := nets[nw.ID]; has {
			all = append(all, series{labels("id", nw.ID, "name", nw.Name), c})
		}
	}
	add := func(what string, all []series, help string, each func(c networks.EgressCount, add func(verdict string, t networks.Traffic))) {
		if len(all) == 0 {
			return
		}
		for _, unit := range []string{"packets", "bytes"} {
			p.family("corten_"+what+"_egress_"+unit, counter, unit, help)
			for _, s := range all {
				each(s.count, func(verdict string, t networks.Traffic) {
					n := t.Packets
					if unit == "bytes" {
						n = t.Bytes
					}
					p.add(s.labels+","+labels("verdict", verdict), float64(n))
				})
			}
		}
	}
	judged := func(c networks.EgressCount, add func(string, networks.Traffic)) {
		add("allowed", c.Allowed)
		add("dropped", c.Dropped)
	}
	const help = "First packets of connections that the egress list judged"
	add("container", slices.Clip(ctrs), help+"; spoofed are those that had another's address", func(c networks.EgressCount, one func(string, networks.Traffic)) {
		judged(c, one)
		one("spoofed", c.Spoofed)
	})
	add("network", all, help, judged)
	return nil
}
