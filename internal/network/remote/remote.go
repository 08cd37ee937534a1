// Package remote speaks to network drivers and to address managers that are programs of their own: libnetwork's remote driver protocol and its IPAM protocol.
//
//	NetworkDriver.GetCapabilities             {}                                                        ─▶ {"Scope", "ConnectivityScope", "GwAllocChecker"}
//	NetworkDriver.GwAllocCheck                {"Options"}                                               ─▶ {"SkipIPv4", "SkipIPv6"}   only if GwAllocChecker
//	NetworkDriver.CreateNetwork               {"NetworkID", "Options", "IPv4Data", "IPv6Data"}          ─▶ {}
//	NetworkDriver.DeleteNetwork               {"NetworkID"}                                             ─▶ {}
//	NetworkDriver.CreateEndpoint              {"NetworkID", "EndpointID", "Interface", "Options"}       ─▶ {"Interface"}
//	NetworkDriver.EndpointOperInfo            {"NetworkID", "EndpointID"}                               ─▶ {"Value"}
//	NetworkDriver.DeleteEndpoint              {"NetworkID", "EndpointID"}                               ─▶ {}
//	NetworkDriver.Join                        {"NetworkID", "EndpointID", "SandboxKey", "Options"}      ─▶ {"InterfaceName", "Gateway", "GatewayIPv6", "StaticRoutes", "DisableGatewayService"}
//	NetworkDriver.Leave                       {"NetworkID", "EndpointID"}                               ─▶ {}
//	NetworkDriver.ProgramExternalConnectivity {"NetworkID", "EndpointID", "Options"}                    ─▶ {}
//	NetworkDriver.RevokeExternalConnectivity  {"NetworkID", "EndpointID"}                               ─▶ {}
//	IpamDriver.GetCapabilities                {}                                                        ─▶ {"RequiresMACAddress", "RequiresRequestReplay"}
//	IpamDriver.GetDefaultAddressSpaces        {}                                                        ─▶ {"LocalDefaultAddressSpace", "GlobalDefaultAddressSpace"}
//	IpamDriver.RequestPool                    {"AddressSpace", "Pool", "SubPool", "Options", "V6"}      ─▶ {"PoolID", "Pool", "Data"}
//	IpamDriver.ReleasePool                    {"PoolID"}                                                ─▶ {}
//	IpamDriver.RequestAddress                 {"PoolID", "Address", "Options"}                          ─▶ {"Address", "Data"}
//	IpamDriver.ReleaseAddress                 {"PoolID", "Address"}                                     ─▶ {}
//
// Each answer may be {"Err": …} (of address managers also {"Error": …}) instead. Not called: AllocateNetwork and FreeNetwork, by which a swarm's manager speaks for other hosts, and
// DiscoverNew and DiscoverDelete, which tell of a cluster's hosts: there is one host. Scope global is an error for the same reason.
//
// It owns how long calls may take, which may be repeated, and what answers are believed: names, addresses and routes are checked before anyone uses them.
// It promises that whatever a plugin answers, or does not, is an error that names the plugin, within the limit.
//
// Specified in libnetwork's docs/remote.md and docs/ipam.md.
package remote

import (
	"context"
	"time"

	"corten.dev/corten/internal/plugin"
)

// The names by which plugins say what they implement.
const (
	driverInterface = "NetworkDriver"
	ipamInterface   = "IpamDriver"
)

// partTime is how long a plugin may take to give something back: who waits for that waits for nothing new.
const partTime = 20 * time.Second

// Plugins are the network drivers and address managers of a host that are plugins.
type Plugins struct {
	Set *plugin.Set
	// Limit is how long one answer may take; zero is [plugin.CallTime].
	Limit time.Duration
}

// Driver makes a network driver of a plugin. It need not be there yet.
func (p Plugins) Driver(name string) (*Driver, error) {
	c, err := p.client(name, driverInterface)
	return &Driver{client: c}, err
}

// IPAM makes an address manager of a plugin. It need not be there yet.
func (p Plugins) IPAM(name string) (*IPAM, error) {
	c, err := p.client(name, ipamInterface)
	return &IPAM{client: c}, err
}

func (p Plugins) client(name, iface string) (client, error) {
	c, err := p.Set.Client(name, iface)
	return client{c, p.Limit}, err
}

// client calls one plugin.
type client struct {
	*plugin.Client
	limit time.Duration
}

// ask makes a call that may be repeated: it changes nothing.
func (c client) ask(ctx context.Context, method string, in, out any) error {
	return c.Do(ctx, plugin.Call{Method: method, In: in, Out: out, Limit: c.limit, Again: true})
}

// take makes a call that changes something there. It is sent once.
func (c client) take(ctx context.Context, method string, in, out any) error {
	return c.Do(ctx, plugin.Call{Method: method, In: in, Out: out, Limit: c.limit})
}

// give makes a call that gives something back. It is not waited for a plugin that is away, and done twice is done.
func (c client) give(ctx context.Context, method string, in any) error {
	limit := partTime
	if c.limit > 0 {
		limit = min(c.limit, limit)
	}
	return c.Do(ctx, plugin.Call{Method: method, In: in, Limit: limit, Again: true, NoWait: true})
}
