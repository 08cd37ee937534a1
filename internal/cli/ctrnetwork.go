package cli

import (
	"net"
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"corten.dev/corten/internal/cli/endpoint"
	"corten.dev/corten/internal/cli/parse"
)

func (o *ctrFlags) ports(cfg *container.Config, h *container.HostConfig) error {
	var p parse.Ports
	for _, s := range o.publish {
		if err := p.Publish(s); err != nil {
			return err
		}
	}
	for _, s := range o.expose {
		if err := p.Expose(s); err != nil {
			return err
		}
	}
	cfg.ExposedPorts, h.PortBindings = p.Exposed, p.Bindings
	return nil
}

func (o *ctrFlags) networks(req *container.CreateRequest) error {
	h := req.HostConfig
	for _, s := range o.addHost {
		line, err := parse.AddHost(s)
		if err != nil {
			return badFlag("add-host", s, err)
		}
		h.ExtraHosts = append(h.ExtraHosts, line)
	}
	for _, s := range o.dns {
		ip, err := parse.IP(s)
		if err != nil {
			return badFlag("dns", s, invalid("IP address is not correctly formatted: %s", s))
		}
		h.DNS = append(h.DNS, ip)
	}
	nets := make([]parse.Network, 0, len(o.network)+1)
	for _, s := range o.network {
		n, err := parse.NetworkFlag(s)
		if err != nil {
			return badFlag("network", s, err)
		}
		nets = append(nets, n)
	}
	if len(nets) == 0 {
		nets = append(nets, parse.Network{Name: "default"})
	}
	if err := o.firstNetwork(&nets[0]); err != nil {
		return err
	}
	h.NetworkMode = container.NetworkMode(nets[0].Name)
	for _, s := range o.link {
		if err := parse.Link(s); err != nil {
			return badFlag("link", s, err)
		}
	}
	h.Links = o.link
	if h.NetworkMode.IsHost() && o.hostname != "" && o.uts == "host" {
		return invalid("conflicting options: hostname and the UTS mode")
	}
	return endpoints(req, nets, o.link)
}

// firstNetwork merges the flags that have no network's name in them into the first network.
func (o *ctrFlags) firstNetwork(n *parse.Network) (err error) {
	conflict := func(flag, per string) error {
		return invalid("conflicting options: cannot specify both --%s and per-network %s", flag, per)
	}
	if len(o.networkAlias) > 0 {
		if len(n.Aliases) > 0 {
			return conflict("network-alias", "alias")
		}
		n.Aliases = o.networkAlias
	}
	for _, f := range []struct {
		flag, per, val string
		into           *netip.Addr
	}{{"ip", "IPv4 address", o.ip, &n.IPv4}, {"ip6", "IPv6 address", o.ip6, &n.IPv6}} {
		if f.val == "" {
			continue
		}
		if f.into.IsValid() {
			return conflict(f.flag, f.per)
		}
		if *f.into, err = parse.IP(f.val); err != nil {
			return err
		}
	}
	if o.mac != "" {
		if n.MAC != "" {
			return conflict("mac-address", "MAC address")
		}
		n.MAC = o.mac
	}
	if len(o.linkLocalIP) > 0 && len(n.LinkLocal) > 0 {
		return conflict("link-local-ip", "link-local IP addresses")
	}
	for _, s := range o.linkLocalIP {
		ip, err := parse.IP(s)
		if err != nil {
			return err
		}
		n.LinkLocal = append(n.LinkLocal, ip)
	}
	return nil
}

// endpoints writes the settings of each network that has any; a lone network without any needs none.
func endpoints(req *container.CreateRequest, nets []parse.Network, links []string) error {
	cfg := map[string]*network.EndpointSettings{}
	for i, n := range nets {
		if _, twice := cfg[n.Name]; twice {
			return invalid("network %q is specified multiple times", n.Name)
		}
		ep, err := endpointOf(n)
		if err != nil {
			return err
		}
		mode := container.NetworkMode(n.Name)
		if len(n.Aliases) > 0 && !mode.IsUserDefined() {
			return invalid("network-scoped aliases are only supported for user-defined networks")
		}
		if i == 0 && mode.IsUserDefined() {
			ep.Links = links
		}
		if len(nets) > 1 && !mode.IsUserDefined() && !mode.IsBridge() && !mode.IsDefault() {
			return invalid("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
		}
		cfg[n.Name] = ep
	}
	first := cfg[nets[0].Name]
	if len(nets) == 1 && first.IPAMConfig == nil && first.Aliases == nil && first.DriverOpts == nil &&
		first.MacAddress == nil && first.Links == nil && first.GwPriority == 0 {
		return nil
	}
	req.NetworkingConfig = &network.NetworkingConfig{EndpointsConfig: cfg}
	return nil
}

// endpointOf translates what is wished of one network.
func endpointOf(n parse.Network) (*network.EndpointSettings, error) {
	ep := &network.EndpointSettings{Aliases: n.Aliases, DriverOpts: n.DriverOpts, GwPriority: n.GwPriority}
	if n.IPv4.IsValid() || n.IPv6.IsValid() || len(n.LinkLocal) > 0 {
		ep.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: n.IPv4, IPv6Address: n.IPv6, LinkLocalIPs: n.LinkLocal}
	}
	if n.MAC != "" {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 {
			return nil, invalid("%s is not a valid mac address", n.MAC)
		}
		ep.MacAddress = network.HardwareAddr(mac)
	}
	return ep, nil
}

// proxyEnv adds the proxies of docker's config file to the environment, unless the user set them.
func proxyEnv(env []string, cfg *endpoint.Config, host string) []string {
	p, ok := cfg.Proxies[host]
	if !ok {
		p, ok = cfg.Proxies["default"]
	}
	if !ok {
		return env
	}
	have := parse.Map(env)
	for _, kv := range [][2]string{{"HTTP_PROXY", p.HTTP}, {"HTTPS_PROXY", p.HTTPS}, {"NO_PROXY", p.No}, {"FTP_PROXY", p.FTP}, {"ALL_PROXY", p.All}} {
		for _, name := range []string{kv[0], strings.ToLower(kv[0])} {
			if _, set := have[name]; !set && kv[1] != "" {
				env = append(env, name+"="+kv[1])
			}
		}
	}
	return env
}
