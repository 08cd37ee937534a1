package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/plugin"
)

// The labels under which options travel.
const (
	labelGeneric  = "com.docker.network.generic"
	labelIPv4     = "com.docker.network.enable_ipv4"
	labelIPv6     = "com.docker.network.enable_ipv6"
	labelInternal = "com.docker.network.internal"
	labelPortMap  = "com.docker.network.portmap"
	labelExposed  = "com.docker.network.endpoint.exposedports"
	labelMAC      = "com.docker.network.endpoint.macaddress"
)

// Driver is a plugin as a network driver.
type Driver struct{ client }

// Network is what a driver is told of a new network.
type Network struct {
	ID         string
	Options    map[string]string // -o
	IPv4, IPv6 bool
	Internal   bool
	Pools      []Pool
}

// Pool is one subnet.
type Pool struct {
	Space   string
	Subnet  netip.Prefix
	Gateway netip.Prefix // of the gateway's address and, mostly, the subnet's bits
	Aux     map[string]netip.Addr
}

func (nw Network) options() map[string]any {
	generic := nw.Options
	if generic == nil {
		generic = map[string]string{} // plugins look into it without asking
	}
	all := map[string]any{labelGeneric: generic, labelIPv4: nw.IPv4, labelIPv6: nw.IPv6}
	if nw.Internal {
		all[labelInternal] = true
	}
	return all
}

type poolData struct {
	AddressSpace string
	Pool         string            `json:",omitempty"`
	Gateway      string            `json:",omitempty"`
	AuxAddresses map[string]string `json:",omitempty"`
}

func (nw Network) data(is4 bool) []poolData {
	all := []poolData{}
	for _, p := range nw.Pools {
		if p.Subnet.Addr().Is4() != is4 {
			continue
		}
		d := poolData{AddressSpace: p.Space, Pool: p.Subnet.String()}
		if p.Gateway.IsValid() {
			d.Gateway = p.Gateway.String()
		}
		for name, a := range p.Aux {
			if d.AuxAddresses == nil {
				d.AuxAddresses = map[string]string{}
			}
			d.AuxAddresses[name] = netip.PrefixFrom(a, p.Subnet.Bits()).String()
		}
		all = append(all, d)
	}
	return all
}

// Skips are the families for which a network needs no address of a gateway.
type Skips struct{ IPv4, IPv6 bool }

// Admit asks what the driver is, and what a network needs of which there is nothing yet. errs.NotFound tells that there is no such plugin, errs.NotImplemented that its networks span hosts.
func (d *Driver) Admit(ctx context.Context, nw Network) (Skips, error) {
	var caps capabilities
	if err := d.ask(ctx, "GetCapabilities", nil, &caps); err != nil {
		return Skips{}, err
	}
	if err := caps.check(d.Name()); err != nil || !caps.GwAllocChecker {
		return Skips{}, err
	}
	var out struct{ SkipIPv4, SkipIPv6 bool }
	err := d.ask(ctx, "GwAllocCheck", struct{ Options map[string]any }{nw.options()}, &out)
	return Skips{out.SkipIPv4, out.SkipIPv6}, err
}

type capabilities struct {
	Scope, ConnectivityScope string
	GwAllocChecker           bool
}

func (c capabilities) check(name string) error {
	switch strings.ToLower(c.Scope) {
	case "local":
		return nil
	case "global":
		return errs.New(errs.NotImplemented, "network driver %s has scope global: its networks span the hosts of a swarm, which this engine has not yet", name)
	}
	return errs.New(errs.Unavailable, "plugin %s: NetworkDriver.GetCapabilities: the scope %.50q is neither local nor global", name, c.Scope)
}

// CreateNetwork makes a network.
func (d *Driver) CreateNetwork(ctx context.Context, nw Network) error {
	in := struct {
		NetworkID          string
		Options            map[string]any
		IPv4Data, IPv6Data []poolData
	}{nw.ID, nw.options(), nw.data(true), nw.data(false)}
	return d.take(ctx, "CreateNetwork", in, nil)
}

// DeleteNetwork unmakes a network.
func (d *Driver) DeleteNetwork(ctx context.Context, id string) error {
	return d.give(ctx, "DeleteNetwork", struct{ NetworkID string }{id})
}

// Ref names an endpoint.
type Ref struct{ NetworkID, EndpointID string }

// Port is one published or exposed port of a container.
type Port struct {
	Proto                 uint8 // IANA's number
	Port                  uint16
	HostIP                netip.Addr // the zero Addr: all
	HostPort, HostPortEnd uint16
}

// Endpoint is what a driver is told of a new endpoint.
type Endpoint struct {
	Ref
	Interface          Interface
	Options            map[string]string // of the endpoint's own
	Published, Exposed []Port
}

// Interface is the addresses of an endpoint; zero is none.
type Interface struct {
	IPv4, IPv6 netip.Prefix
	MAC        string
}

type mapped struct {
	Proto    uint8
	IP       string
	Port     uint16
	HostIP   string
	HostPort uint16
	// HostPortEnd is the last of a range that a free one is asked of.
	HostPortEnd uint16
}

type exposed struct {
	Proto uint8
	Port  uint16
}

// portOptions adds the ports to options.
func portOptions(all map[string]any, published, open []Port) map[string]any {
	ports, list := []mapped{}, []exposed{}
	for _, p := range published {
		ip := ""
		if p.HostIP.IsValid() {
			ip = p.HostIP.String()
		}
		ports = append(ports, mapped{Proto: p.Proto, Port: p.Port, HostIP: ip, HostPort: p.HostPort, HostPortEnd: max(p.HostPort, p.HostPortEnd)})
	}
	for _, p := range open {
		list = append(list, exposed{p.Proto, p.Port})
	}
	all[labelPortMap], all[labelExposed] = ports, list
	return all
}

// CreateEndpoint makes an endpoint and returns its addresses, as they were given or as the driver chose those that were not.
func (d *Driver) CreateEndpoint(ctx context.Context, ep Endpoint) (Interface, error) {
	all := map[string]any{}
	for key, val := range ep.Options {
		all[key] = val
	}
	in := struct {
		Ref
		Interface wireInterface
		Options   map[string]any
	}{ep.Ref, wireOf(ep.Interface), portOptions(all, ep.Published, ep.Exposed)}
	var out struct{ Interface *wireInterface }
	if err := d.take(ctx, "CreateEndpoint", in, &out); err != nil || out.Interface == nil {
		return ep.Interface, err
	}
	made, err := out.Interface.fill(ep.Interface)
	return made, d.lied("CreateEndpoint", err)
}

// lied is an answer that cannot be believed.
func (d *Driver) lied(method string, err error) error {
	if err == nil {
		return nil
	}
	return errs.As(errs.Unavailable, fmt.Errorf("plugin %s: NetworkDriver.%s: %w", d.Name(), method, err))
}

// DeleteEndpoint unmakes an endpoint.
func (d *Driver) DeleteEndpoint(ctx context.Context, ref Ref) error {
	return d.give(ctx, "DeleteEndpoint", ref)
}

// HardwareAddress asks an endpoint for the hardware address that it has, if the driver says so; empty where it does not.
func (d *Driver) HardwareAddress(ctx context.Context, ref Ref) (string, error) {
	var out struct{ Value map[string]json.RawMessage }
	if err := d.ask(ctx, "EndpointOperInfo", ref, &out); err != nil {
		return "", err
	}
	var text string
	if json.Unmarshal(out.Value[labelMAC], &text) != nil { // drivers put there what they like
		return "", nil
	}
	mac, err := readMAC(text)
	if err != nil {
		return "", nil
	}
	return mac, nil
}

// Join puts an endpoint into a network namespace, which is mounted at key.
func (d *Driver) Join(ctx context.Context, ref Ref, key string, published, open []Port) (Joined, error) {
	in := struct {
		Ref
		SandboxKey string
		Options    map[string]any
	}{ref, key, portOptions(map[string]any{}, published, open)}
	var out joinAnswer
	if err := d.take(ctx, "Join", in, &out); err != nil {
		return Joined{}, err
	}
	j, err := out.read()
	return j, d.lied("Join", err)
}

// Leave takes an endpoint out of its namespace.
func (d *Driver) Leave(ctx context.Context, ref Ref) error { return d.give(ctx, "Leave", ref) }

// Program tells that the endpoint is the container's way to the outside, and by which ports it is to be reached from there. A driver that does not have the call has no need of it.
func (d *Driver) Program(ctx context.Context, ref Ref, published, open []Port) error {
	in := struct {
		Ref
		Options map[string]any
	}{ref, portOptions(map[string]any{}, published, open)}
	return ifKnown(d.take(ctx, "ProgramExternalConnectivity", in, nil))
}

// Revoke takes that back.
func (d *Driver) Revoke(ctx context.Context, ref Ref) error {
	return ifKnown(d.give(ctx, "RevokeExternalConnectivity", ref))
}

func ifKnown(err error) error {
	if plugin.Unknown(err) {
		return nil
	}
	return err
}
