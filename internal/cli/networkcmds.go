package cli

import (
	"context"
	"fmt"
	"net/netip"
	"sort"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/parse"
	"corten.dev/corten/internal/cli/show"
)

type nwCreateOptions struct {
	driver, ipamDriver, scope, configFrom                  string
	limits                                                 netLimitFlags
	opts, labels, ipamOpts, subnets, ranges, gateways, aux []string
	internal, attachable, ingress, configOnly, ipv4, ipv6  bool
}

func newNetworkCreate() *verb {
	var o nwCreateOptions
	v := &verb{
		use: "[OPTIONS] NETWORK", min: 1, max: 1, short: "Make a network", long: "Makes a network that containers can join by name, and prints its ID. In it containers find each other by name.",
		example: "corten network create backend\ncorten network create --subnet 10.9.0.0/24 --gateway 10.9.0.1 lab",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&o.driver, "driver", "d", "bridge", "network driver")
			list(f, &o.opts, "opt", "o", "option for the driver, name=value")
			list(f, &o.labels, "label", "", "add a label, name[=value]")
			o.limits.registerFor(f, "its containers")
			f.BoolVar(&o.internal, "internal", false, "no way out of the network")
			f.BoolVar(&o.attachable, "attachable", false, "let containers join by hand")
			f.BoolVar(&o.ingress, "ingress", false, "make it the cluster's ingress network")
			f.BoolVar(&o.ipv4, "ipv4", true, "give IPv4 addresses")
			f.BoolVar(&o.ipv6, "ipv6", false, "give IPv6 addresses")
			f.StringVar(&o.scope, "scope", "", "scope of the network")
			f.BoolVar(&o.configOnly, "config-only", false, "keep only the settings, for other networks to use")
			f.StringVar(&o.configFrom, "config-from", "", "take the settings from this network")
			f.StringVar(&o.ipamDriver, "ipam-driver", "default", "address management driver")
			list(f, &o.ipamOpts, "ipam-opt", "", "option for that driver, name=value")
			f.StringSliceVar(&o.subnets, "subnet", nil, "range of addresses of the network, in CIDR form")
			f.StringSliceVar(&o.ranges, "ip-range", nil, "part of the subnet to give addresses from")
			f.StringSliceVar(&o.gateways, "gateway", nil, "address of the gateway")
			list(f, &o.aux, "aux-address", "", "address in use by somebody else, name=ip")
		},
	}
	v.run = func(ctx context.Context, a *app, args []string) error {
		req, err := o.request(v, args[0])
		if err != nil {
			return err
		}
		api, err := a.engine()
		if err != nil {
			return err
		}
		var made network.CreateResponse
		if err := api.Post(ctx, "/networks/create", nil, req, &made); err != nil {
			return err
		}
		if made.Warning != "" {
			fmt.Fprintln(a.Err, "WARNING: "+made.Warning)
		}
		fmt.Fprintln(a.Out, made.ID)
		return nil
	}
	return v
}

func (o *nwCreateOptions) request(v *verb, name string) (*network.CreateRequest, error) {
	if err := checkLabels("--label", o.labels); err != nil {
		return nil, err
	}
	if err := o.limits.check(v.set); err != nil {
		return nil, err
	}
	ipam, err := o.ipam()
	if err != nil {
		return nil, err
	}
	for _, l := range o.limits.named() {
		if l.value != "" {
			o.opts = append(o.opts, l.name+"="+l.value)
		}
	}
	req := &network.CreateRequest{Name: name, Driver: o.driver, Options: parse.Map(o.opts), Labels: parse.Map(o.labels), Internal: o.internal,
		Attachable: o.attachable, Ingress: o.ingress, Scope: o.scope, ConfigOnly: o.configOnly, IPAM: ipam}
	if v.changed("ipv6") {
		req.EnableIPv6 = &o.ipv6
	}
	if v.changed("ipv4") {
		req.EnableIPv4 = &o.ipv4
	}
	if o.configFrom != "" {
		req.ConfigFrom = &network.ConfigReference{Network: o.configFrom}
	}
	return req, nil
}

// ipam sorts ranges, gateways and addresses in use to the subnets that they lie in.
func (o *nwCreateOptions) ipam() (*network.IPAM, error) {
	if len(o.subnets) < len(o.ranges) || len(o.subnets) < len(o.gateways) {
		return nil, invalid("every ip-range or gateway must have a corresponding subnet")
	}
	ipam := &network.IPAM{Driver: o.ipamDriver, Options: parse.Map(o.ipamOpts)}
	for _, s := range o.subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, invalid("invalid subnet %s: invalid CIDR block notation", s)
		}
		for _, other := range ipam.Config {
			if other.Subnet.Overlaps(p) {
				return nil, invalid("multiple overlapping subnet configuration is not supported")
			}
		}
		ipam.Config = append(ipam.Config, network.IPAMConfig{Subnet: p})
	}
	of := func(ip netip.Addr) *network.IPAMConfig { // nil also for what is no address
		for i := range ipam.Config {
			if ipam.Config[i].Subnet.Contains(ip) {
				return &ipam.Config[i]
			}
		}
		return nil
	}
	for _, s := range o.ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, invalid("invalid CIDR address: %s", s)
		}
		c := of(p.Addr())
		if c == nil {
			return nil, invalid("no matching subnet for range %s", s)
		}
		if c.IPRange.IsValid() {
			return nil, invalid("cannot configure multiple ranges (%s, %s) on the same subnet (%s)", s, c.IPRange, c.Subnet)
		}
		c.IPRange = p
	}
	for _, s := range o.gateways {
		ip, _ := netip.ParseAddr(s)
		c := of(ip)
		if c == nil {
			return nil, invalid("no matching subnet for gateway %s", s)
		}
		if c.Gateway.IsValid() {
			return nil, invalid("cannot configure multiple gateways (%s, %s) for the same subnet (%s)", s, c.Gateway, c.Subnet)
		}
		c.Gateway = ip
	}
	for _, s := range o.aux {
		name, addr, _ := strings.Cut(s, "=")
		ip, _ := netip.ParseAddr(addr)
		c := of(ip)
		if c == nil {
			return nil, invalid("no matching subnet for aux-address %s", addr)
		}
		if c.AuxAddress == nil {
			c.AuxAddress = map[string]netip.Addr{}
		}
		c.AuxAddress[name] = ip
	}
	return ipam, nil
}

func newNetworkLs() *verb {
	f := filters{}
	var quiet, noTrunc bool
	var format string
	return &verb{
		use: "[OPTIONS]", short: "List networks", long: "Lists the networks of the engine.", example: "corten network ls --filter driver=bridge",
		flags: func(fs *pflag.FlagSet) {
			fs.VarP(f, "filter", "f", "show only what fits name=value")
			fs.BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
			fs.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
			fs.StringVar(&format, "format", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			if format == "" && !quiet {
				format = a.cfg.NetworksFormat
			}
			var nws []network.Summary
			if err := api.Get(ctx, "/networks", f.into(query()), &nws); err != nil {
				return err
			}
			sort.Slice(nws, func(i, j int) bool { return naturalLess(nws[i].Name, nws[j].Name) })
			rows := make([]any, len(nws))
			for i := range nws {
				rows[i] = &nwRow{&nws[i].Network, noTrunc}
			}
			l := show.List{Format: format, Default: "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}", Quiet: "{{.ID}}", IsQuiet: quiet,
				Raw: "network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n", QuietRaw: "network_id: {{.ID}}",
				Headers: show.Headers{"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
					"Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT"}}
			return l.Print(a.Out, rows)
		},
	}
}

type nwRow struct {
	n    *network.Network
	full bool
}

func (r *nwRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }

func (r *nwRow) ID() string {
	if r.full {
		return r.n.ID
	}
	return show.ShortID(r.n.ID)
}

func (r *nwRow) Name() string      { return r.n.Name }
func (r *nwRow) Driver() string    { return r.n.Driver }
func (r *nwRow) Scope() string     { return r.n.Scope }
func (r *nwRow) IPv4() string      { return yes(r.n.EnableIPv4) }
func (r *nwRow) IPv6() string      { return yes(r.n.EnableIPv6) }
func (r *nwRow) Internal() string  { return yes(r.n.Internal) }
func (r *nwRow) Labels() string    { return show.Labels(r.n.Labels) }
func (r *nwRow) CreatedAt() string { return r.n.Created.String() }

// Label is the value of one label.
func (r *nwRow) Label(name string) string { return r.n.Labels[name] }

func newNetworkRm() *verb {
	var force bool
	v := &verb{
		use: "[OPTIONS] NETWORK [NETWORK...]", short: "Remove networks", names: networks, long: "Removes networks that no container is part of.", example: "corten network rm lab",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&force, "force", "f", false, "do not mind networks that do not exist")
		},
	}
	// In turn: one may be the configuration of the one before.
	return removal(v, goner{noun: "network", abreast: inTurn}, &force, func(name string) engineapi.Request {
		return engineapi.Request{Method: "DELETE", Path: "/networks/" + esc(name)}
	})
}

func newNetworkConnect() *verb {
	var ip, ip6 string
	var links, aliases, linkLocal, driverOpts []string
	var priority int
	return &verb{
		use: "[OPTIONS] NETWORK CONTAINER", min: 2, max: 2, short: "Let a container join a network", names: networks, long: "Connects a container, running or not, to a further network.", example: "corten network connect --alias db backend postgres",
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&ip, "ip", "", "IPv4 address in the network")
			f.StringVar(&ip6, "ip6", "", "IPv6 address in the network")
			list(f, &links, "link", "", "link to another container, name[:alias]")
			list(f, &aliases, "alias", "", "further name in the network")
			list(f, &linkLocal, "link-local-ip", "", "link-local address")
			list(f, &driverOpts, "driver-opt", "", "option for the network's driver, name=value")
			f.IntVar(&priority, "gw-priority", 0, "the highest gives the container its default gateway")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			ep := &network.EndpointSettings{Links: links, Aliases: aliases, GwPriority: priority}
			var err error
			if ep.DriverOpts, err = parse.Pairs("driver-opt", driverOpts); err != nil {
				return err
			}
			ipam := &network.EndpointIPAMConfig{}
			for _, f := range []struct {
				val  string
				into *netip.Addr
			}{{ip, &ipam.IPv4Address}, {ip6, &ipam.IPv6Address}} {
				if f.val == "" {
					continue
				}
				if *f.into, err = parse.IP(f.val); err != nil {
					return err
				}
				ep.IPAMConfig = ipam
			}
			for _, s := range linkLocal {
				addr, err := parse.IP(s)
				if err != nil {
					return err
				}
				ipam.LinkLocalIPs = append(ipam.LinkLocalIPs, addr)
				ep.IPAMConfig = ipam
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			return api.Post(ctx, "/networks/"+esc(args[0])+"/connect", nil, network.ConnectRequest{Container: args[1], EndpointConfig: ep}, nil)
		},
	}
}

func newNetworkDisconnect() *verb {
	var force bool
	return &verb{
		use: "[OPTIONS] NETWORK CONTAINER", min: 2, max: 2, short: "Let a container leave a network", names: networks, long: "Takes a container, running or not, out of a network.", example: "corten network disconnect backend postgres",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&force, "force", "f", false, "also when the container has gone")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			return api.Post(ctx, "/networks/"+esc(args[0])+"/disconnect", nil, network.DisconnectRequest{Container: args[1], Force: force}, nil)
		},
	}
}
