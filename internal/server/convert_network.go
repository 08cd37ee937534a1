package server

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	wirenet "github.com/moby/moby/api/types/network"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/networks"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
)

// toEndpoint converts what was asked for one network of a container.
func toEndpoint(e *wirenet.EndpointSettings, version int) (container.EndpointSettings, error) {
	var out container.EndpointSettings
	if e == nil {
		return out, nil
	}
	out.Links, out.Aliases, out.DriverOpts = e.Links, e.Aliases, e.DriverOpts
	if c := e.IPAMConfig; c != nil {
		if c.IPv4Address.IsValid() && !c.IPv4Address.Is4() {
			return out, errs.New(errs.Invalid, "invalid IPv4 address: %s", c.IPv4Address)
		}
		if c.IPv6Address.IsValid() && !c.IPv6Address.Is6() {
			return out, errs.New(errs.Invalid, "invalid IPv6 address: %s", c.IPv6Address)
		}
		for _, a := range c.LinkLocalIPs {
			if !a.IsLinkLocalUnicast() {
				return out, errs.New(errs.Invalid, "invalid link-local IP address: %s", a)
			}
		}
		out.IPv4, out.IPv6, out.LinkLocal = c.IPv4Address, c.IPv6Address, c.LinkLocalIPs
	}
	if version >= 44 && len(e.MacAddress) > 0 {
		if err := checkMAC(net.HardwareAddr(e.MacAddress)); err != nil {
			return out, err
		}
		out.MAC = e.MacAddress.String()
	}
	if version >= 48 {
		out.GwPriority = e.GwPriority
	}
	return out, nil
}

func checkMAC(mac net.HardwareAddr) error {
	if len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
		return errs.New(errs.Invalid, "invalid MAC address: %s", mac)
	}
	return nil
}

// toNetworks converts the endpoints of a create request. The network that NetworkMode names is always among them.
func toNetworks(cfg *wirenet.NetworkingConfig, mode, mac string, version int) (map[string]container.EndpointSettings, error) {
	out := map[string]container.EndpointSettings{}
	if cfg != nil {
		for name, e := range cfg.EndpointsConfig {
			ep, err := toEndpoint(e, version)
			if err != nil {
				return nil, err
			}
			if out[networkMode(name)] = ep; name == "" {
				return nil, errs.New(errs.Invalid, "invalid network name: it is empty")
			}
		}
	}
	if version >= 52 { // since then addresses belong to endpoints alone
		mac = ""
	}
	if strings.HasPrefix(mode, "container:") {
		if len(out) > 0 {
			return nil, errs.New(errs.Invalid, "conflicting options: cannot attach both user-defined and non-user-defined network-modes")
		}
		if mac != "" {
			return nil, errs.New(errs.Invalid, "conflicting options: mac-address and the network mode")
		}
		return nil, nil
	}
	ep := out[mode]
	if mac != "" {
		hw, err := net.ParseMAC(mac)
		if err == nil {
			err = checkMAC(hw)
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid MAC address: %s", mac)
		}
		if mode == "host" || mode == "none" {
			return nil, errs.New(errs.Invalid, "conflicting options: mac-address and the network mode")
		}
		if ep.MAC != "" && ep.MAC != hw.String() {
			return nil, errs.New(errs.Invalid, "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
		}
		ep.MAC = hw.String()
	}
	out[mode] = ep
	return out, nil
}

// fromEndpoint joins what was asked for a network with what was made. made is nil while the container does not run.
func fromEndpoint(asked container.EndpointSettings, made *network.Endpoint) *wirenet.EndpointSettings {
	out := &wirenet.EndpointSettings{
		Links: asked.Links, Aliases: asked.Aliases, DriverOpts: asked.DriverOpts, GwPriority: asked.GwPriority,
	}
	if asked.IPv4.IsValid() || asked.IPv6.IsValid() || len(asked.LinkLocal) > 0 {
		out.IPAMConfig = &wirenet.EndpointIPAMConfig{IPv4Address: asked.IPv4, IPv6Address: asked.IPv6, LinkLocalIPs: asked.LinkLocal}
	}
	if asked.MAC != "" {
		out.MacAddress = hardware(asked.MAC)
	}
	if made == nil {
		return out
	}
	out.NetworkID, out.EndpointID = made.NetworkID, made.ID
	out.Gateway, out.IPv6Gateway = made.Gateway4, made.Gateway6
	if made.IPv4.IsValid() {
		out.IPAddress, out.IPPrefixLen = made.IPv4.Addr(), made.IPv4.Bits()
	}
	if made.IPv6.IsValid() {
		out.GlobalIPv6Address, out.GlobalIPv6PrefixLen = made.IPv6.Addr(), made.IPv6.Bits()
	}
	if made.MAC != "" {
		out.MacAddress = hardware(made.MAC)
	}
	out.DNSNames = made.DNSNames
	return out
}

func hardware(text string) wirenet.HardwareAddr {
	hw, err := net.ParseMAC(text)
	if err != nil {
		return nil // our own records hold only what was checked
	}
	return wirenet.HardwareAddr(hw)
}

// endpoints are the networks of a container, as ps and inspect show them.
func endpoints(r container.Record, version int) map[string]*wirenet.EndpointSettings {
	out := make(map[string]*wirenet.EndpointSettings, len(r.Networks))
	for name, asked := range r.Networks {
		out[name] = fromEndpoint(asked, nil)
	}
	if r.Sandbox != nil {
		for i := range r.Sandbox.Endpoints {
			made := &r.Sandbox.Endpoints[i]
			name := made.Network
			if made.WayOut {
				continue // as Docker: nobody asked for it
			}
			asked, ok := r.Networks[name]
			if !ok { // asked for by id
				for key, settings := range r.Networks {
					if len(key) >= 12 && len(key) <= len(made.NetworkID) && made.NetworkID[:len(key)] == key {
						asked = settings
						delete(out, key)
					}
				}
			}
			out[name] = fromEndpoint(asked, made)
		}
	}
	if version < 45 && len(r.ID) >= 12 {
		for name, e := range out {
			if name != "bridge" && name != "host" && name != "none" {
				e.Aliases = append(slices.Clone(e.Aliases), r.ID[:12])
			}
		}
	}
	return out
}

// toNetwork converts a create request.
func toNetwork(req wirenet.CreateRequest) (network.Network, error) {
	var nw network.Network
	switch {
	case req.ConfigOnly && (req.Ingress || req.Scope != ""):
		return nw, errs.New(errs.Forbidden, "configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	case req.Ingress && req.Scope != "swarm" && req.Scope != "global":
		return nw, errs.New(errs.Forbidden, "Ingress network can only be global scope network")
	case req.Scope == "swarm":
		return nw, errs.New(errs.Forbidden, "cannot create a swarm scoped network when swarm is not active")
	case req.Ingress || req.Scope == "global":
		return nw, errs.New(errs.Unavailable, "%s", notManager)
	case req.Scope != "" && req.Scope != "local":
		return nw, errs.New(errs.Unavailable, "%s", notManager)
	}
	nw = network.Network{
		Name: req.Name, Driver: req.Driver, Internal: req.Internal, Attachable: req.Attachable,
		EnableIPv4: req.EnableIPv4 == nil || *req.EnableIPv4, EnableIPv6: req.EnableIPv6 != nil && *req.EnableIPv6,
		Options: familyOptions(req), Labels: req.Labels, ConfigOnly: req.ConfigOnly,
	}
	if req.ConfigFrom != nil {
		nw.ConfigFrom = req.ConfigFrom.Network
	}
	if req.IPAM != nil {
		nw.IPAM = network.IPAM{Driver: req.IPAM.Driver, Options: req.IPAM.Options}
		for _, c := range req.IPAM.Config {
			if err := checkPool(c); err != nil {
				return nw, err
			}
			nw.IPAM.Pools = append(nw.IPAM.Pools, network.Pool{Subnet: c.Subnet, Range: c.IPRange, Gateway: c.Gateway, Aux: c.AuxAddress})
		}
	}
	return nw, nil
}

// familyOptions are the options with what was said of the address families by fields: the engine's settings have a say only where nothing was.
func familyOptions(req wirenet.CreateRequest) map[string]string {
	if req.ConfigOnly || req.ConfigFrom != nil && req.ConfigFrom.Network != "" {
		return req.Options
	}
	out := req.Options
	for key, said := range map[string]*bool{"com.docker.network.enable_ipv4": req.EnableIPv4, "com.docker.network.enable_ipv6": req.EnableIPv6} {
		if said != nil {
			if out = maps.Clone(out); out == nil {
				out = map[string]string{}
			}
			out[key] = strconv.FormatBool(*said)
		}
	}
	return out
}

func checkPool(c wirenet.IPAMConfig) error {
	if !c.Subnet.IsValid() {
		if c.IPRange.IsValid() || c.Gateway.IsValid() || len(c.AuxAddress) > 0 {
			return errs.New(errs.Invalid, "invalid network config:\ninvalid subnet: a subnet must be given with an ip-range, gateway or auxiliary address")
		}
		return nil
	}
	var bad []error
	if c.Subnet != c.Subnet.Masked() {
		bad = append(bad, fmt.Errorf("invalid subnet %s: it should be %s", c.Subnet, c.Subnet.Masked()))
	}
	if c.IPRange.IsValid() {
		bad = append(bad, checkRange(c.IPRange, c.Subnet)...)
	}
	outside := func(what, name string, a netip.Addr) {
		switch {
		case a.Is4() != c.Subnet.Addr().Is4():
			bad = append(bad, fmt.Errorf("invalid %s %s: parent subnet is an %s block", what, name, family(c.Subnet)))
		case !c.Subnet.Contains(a):
			bad = append(bad, fmt.Errorf("invalid %s %s: parent subnet %s doesn't contain this address", what, name, c.Subnet))
		}
	}
	if c.Gateway.IsValid() {
		outside("gateway", c.Gateway.String(), c.Gateway)
	}
	for _, name := range slices.Sorted(maps.Keys(c.AuxAddress)) {
		outside("auxiliary address", name, c.AuxAddress[name])
	}
	return together("invalid network config", bad)
}

func checkRange(r, subnet netip.Prefix) (bad []error) {
	if r.Addr().Is4() != subnet.Addr().Is4() {
		return []error{fmt.Errorf("invalid ip-range %s: parent subnet is an %s block", r, family(subnet))}
	}
	if r.Bits() < subnet.Bits() {
		bad = append(bad, fmt.Errorf("invalid ip-range %s: CIDR block is bigger than its parent subnet %s", r, subnet))
	}
	if r != r.Masked() {
		bad = append(bad, fmt.Errorf("invalid ip-range %s: it should be %s", r, r.Masked()))
	}
	if !subnet.Overlaps(r) {
		bad = append(bad, fmt.Errorf("invalid ip-range %s: parent subnet %s doesn't contain ip-range", r, subnet))
	}
	return bad
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// fromNetwork converts a stored network.
func fromNetwork(nw network.Network) wirenet.Network {
	out := wirenet.Network{
		Name: nw.Name, ID: nw.ID, Created: nw.Created, Scope: "local", Driver: nw.Driver,
		EnableIPv4: nw.EnableIPv4, EnableIPv6: nw.EnableIPv6,
		IPAM:     wirenet.IPAM{Driver: nw.IPAM.Driver, Options: nw.IPAM.Options, Config: []wirenet.IPAMConfig{}},
		Internal: nw.Internal, Attachable: nw.Attachable, Options: orEmptyMap(nw.Options), Labels: orEmptyMap(nw.Labels),
		ConfigOnly: nw.ConfigOnly, ConfigFrom: wirenet.ConfigReference{Network: nw.ConfigFrom},
	}
	if out.IPAM.Driver == "" {
		out.IPAM.Driver = "default"
	}
	for _, p := range nw.IPAM.Pools {
		out.IPAM.Config = append(out.IPAM.Config, wirenet.IPAMConfig{Subnet: p.Subnet, IPRange: p.Range, Gateway: p.Gateway, AuxAddress: p.Aux})
	}
	return out
}

// members are the containers on a network.
func members(view networks.View) map[string]wirenet.EndpointResource {
	out := make(map[string]wirenet.EndpointResource, len(view.Containers))
	for id, m := range view.Containers {
		out[id] = wirenet.EndpointResource{Name: m.Name, EndpointID: m.ID, MacAddress: hardware(m.MAC), IPv4Address: m.IPv4, IPv6Address: m.IPv6}
	}
	return out
}

// subnetStatus converts the counts of a network's addresses.
func subnetStatus(view networks.View) *wirenet.Status {
	out := &wirenet.Status{}
	out.IPAM.Subnets = wirenet.SubnetStatuses{}
	for _, u := range view.Usage {
		out.IPAM.Subnets[u.Subnet] = wirenet.SubnetStatus{IPsInUse: u.InUse, DynamicIPsAvailable: u.Free}
	}
	return out
}

func orEmptyMap(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
