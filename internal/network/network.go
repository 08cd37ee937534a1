// Package network is the room of how containers reach each other, the host and the world.
//
// It owns <data-root>/networks, <exec-root>/{portproxy,names}.sock, <exec-root>/netns (see sandboxkey.go), one nftables table per engine ("corten", or "corten-<suffix>" for engines with another data root; drawn in
// rules.go, where the administrator's chain is documented), the bridges it made, and two small processes that outlive the engine, each there only while it has something to
// do: the name server for user-defined networks (package dns), and one for ports that no rule can pass on (package portproxy). Who may connect to where is a room of its own below (package egress),
// as are the protocols of plugins (package remote). It does not know containers: an endpoint belongs
// to an opaque owner name. It promises: published ports work from the host's own addresses, loopback included, from other containers and from outside; a joined
// endpoint takes and sends packets at once; ports and names answer while the engine is away; everything is re-applied after an engine restart or a flush of the rules; what
// an endpoint took (address, port, veth, rules, names) is given back by Leave, also when half made; no lock is held over kernel work.
package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"
)

// Network is a stored network. Fields follow Docker's API.
type Network struct {
	ID, Name   string
	Driver     string // "bridge", "host", "null", "macvlan", "ipvlan", or the name of a plugin
	Created    time.Time
	Internal   bool
	Attachable bool
	EnableIPv4 bool
	EnableIPv6 bool
	IPAM       IPAM
	Options    map[string]string // of the driver
	Labels     map[string]string
	Predefined bool // bridge, host, none
	// ConfigOnly networks are nothing but settings (IPAM, Options, Labels, EnableIPv6 …), for others that name them in ConfigFrom.
	ConfigOnly bool   `json:",omitempty"`
	ConfigFrom string `json:",omitempty"`
	// Before are the options that Update can change, as they were before it did so last; nil: it never did.
	Before map[string]string `json:",omitempty"`
}

// IPAM is the address configuration of a network.
type IPAM struct {
	Driver  string
	Options map[string]string
	Pools   []Pool
}

// Pool is one subnet with its gateway and, if given, the part of it that addresses are taken from.
type Pool struct {
	Subnet  netip.Prefix
	Range   netip.Prefix
	Gateway netip.Addr
	Aux     map[string]netip.Addr
	// ID is the pool's at the plugin that manages its addresses, and Space where that keeps it.
	ID    string `json:",omitempty"`
	Space string `json:",omitempty"`
	// Chosen says that the engine chose the subnet; nobody can ask for an address of it, because it is another one when the network is made again.
	Chosen bool `json:",omitempty"`

	keptByPlugin bool // the gateway's address, without being asked
}

// SubnetUsage counts the addresses of a subnet: all that nobody can be given, with the network's own, the gateway's, those kept for others and those of ready namespaces, and those
// that are left to give; counts that do not fit are the largest that do.
type SubnetUsage struct {
	Subnet      netip.Prefix
	InUse, Free uint64
}

// Port is one published port. HostPort 0 asks for a free one of the range [HostPort, HostPortEnd].
type Port struct {
	Proto                 string // tcp, udp, sctp
	ContainerPort         uint16
	HostIP                netip.Addr // the zero Addr: all addresses, v4 and v6
	HostPort, HostPortEnd uint16
	// Count, above 1, makes it that many ports in a row, from ContainerPort and from HostPort on. See Runs and Each.
	Count uint16 `json:",omitempty"`
}

// EndpointRequest asks for one network of a container.
type EndpointRequest struct {
	Network string // id or name
	IPv4    netip.Addr
	IPv6    netip.Addr
	MAC     string
	// LinkLocal are further addresses, of 169.254.0.0/16 or fe80::/10.
	LinkLocal []netip.Addr
	Aliases   []string
	Priority  int // the default routes go by way of the highest one
	Options   map[string]string
	// Links are names that only this container knows: alias -> name on the network, there now or later.
	Links map[string]string
}

// JoinRequest asks for a whole network namespace.
type JoinRequest struct {
	Owner     string // container id
	Name      string // DNS name of the container, without slash
	Hostname  string
	Endpoints []EndpointRequest
	Ports     []Port
	// Exposed are further ports that the container's image or its maker names. Only drivers that are plugins are told.
	Exposed []Port
	// DNS as given by --dns, --dns-search, --dns-option; empty means the host's.
	DNS, DNSSearch, DNSOptions []string
	// Openings are the owners whose ports it reaches on the default bridge even where containers there do not reach each other (--link with icc off).
	Openings []Opening
	// Egress is where it may connect to, as package egress reads it; empty: everywhere. It needs networks of driver bridge.
	Egress string
	// Rates bound it on each of its networks.
	Rates Rates
	// Sysctls of net.* are set by the runtime, not here.
}

// Opening is a way to some ports of another owner.
type Opening struct {
	Owner string
	Ports []Port // Proto, ContainerPort and Count
}

// Endpoint is one made interface.
type Endpoint struct {
	Network   string // name
	NetworkID string
	ID        string
	Interface string
	MAC       string
	IPv4      netip.Prefix
	IPv6      netip.Prefix
	Gateway4  netip.Addr
	Gateway6  netip.Addr
	LinkLocal []netip.Addr `json:",omitempty"`
	Aliases   []string
	DNSNames  []string
	Links     map[string]string `json:",omitempty"`
	// WayOut says that nobody asked for it: it is on the network "docker_gwbridge", because the driver of another network left the way to the outside to the engine.
	WayOut bool `json:",omitempty"`

	sysctls []setting
}

// Sandbox is the made network of one container.
type Sandbox struct {
	Owner     string
	Endpoints []Endpoint
	Ports     []Port // with the host ports that were chosen; one entry per host address family
	// NS is the namespace to join; nil for driver host. The caller closes it after the first process has joined; the namespace lives with its processes.
	NS *os.File `json:"-"`
	// Sysfs, which may be nil, is a mount of the namespace's sysfs that is attached nowhere. While it is open another one costs nothing; else the kernel compares it with that of every network
	// namespace there is (1.5 ms where 1,000 containers run). The caller closes it with NS.
	Sysfs *os.File `json:"-"`
	// ResolvConf is the content of /etc/resolv.conf for this container.
	ResolvConf []byte
}

// CloseHandles closes NS and Sysfs.
func (sb *Sandbox) CloseHandles() (err error) {
	for _, f := range []**os.File{&sb.NS, &sb.Sysfs} {
		if *f != nil {
			err = errors.Join(err, (*f).Close())
			*f = nil
		}
	}
	return err
}

// Manager is the contract of the room.
type Manager interface {
	// Create, Get (by id, unique id prefix or name), List, Remove: errs.Conflict when the name is taken; errs.Forbidden, as Docker, when a network has
	// endpoints, when its subnet overlaps another's, and for the predefined ones. A Network with neither EnableIPv4 nor EnableIPv6 gets IPv4.
	Create(ctx context.Context, nw Network) (Network, error)
	Get(ctx context.Context, ref string) (Network, error)
	List(ctx context.Context) ([]Network, error)
	Remove(ctx context.Context, ref string) error
	// Update changes the limits of a network, and of those who are on it, and tells in words what differs. On an error nothing has changed.
	Update(ctx context.Context, ref string, req NetworkChange) (changes []string, err error)
	// Usage counts the addresses of a network's subnets.
	Usage(ctx context.Context, ref string) ([]SubnetUsage, error)
	// Endpoints lists who is on a network: owner -> endpoint.
	Endpoints(ctx context.Context, ref string) (map[string]Endpoint, error)
	// Join makes the namespace and interfaces of a container that is about to start. On the default bridge without special wishes it takes a ready one from the pool.
	Join(ctx context.Context, req JoinRequest) (*Sandbox, error)
	// Restore re-claims what a running container has, after an engine restart: pid is its first process.
	Restore(ctx context.Context, req JoinRequest, sb Sandbox, pid int) error
	// Leave gives everything of owner back. The slow part happens in the background. No error when there is nothing.
	Leave(ctx context.Context, owner string) error
	// Connect and Disconnect change a running container live.
	Connect(ctx context.Context, owner string, pid int, req EndpointRequest) (Endpoint, error)
	Disconnect(ctx context.Context, owner string, pid int, network string) error
	// SetPorts changes what a running container publishes; on an error nothing has changed. What it has then, Sandbox tells.
	SetPorts(ctx context.Context, owner string, ports []Port) error
	// SetLimits changes a running container's egress list and rates. Connections that the new list does not have end. On an error nothing has changed.
	SetLimits(ctx context.Context, owner string, pid int, want Limits) error
	// EgressCounts tells what the lists of containers, by owner, and of networks, by id, let through and dropped. Those without a list are not there.
	EgressCounts(ctx context.Context) (owners, networks map[string]EgressCount, err error)
	// Rename changes the DNS name of a running container.
	Rename(ctx context.Context, owner, name string) error
	// Share returns the names, ports and resolv.conf for network mode container:OWNER without joining.
	Sandbox(owner string) (Sandbox, bool)
	// HostGateway is the address that --add-host name:host-gateway means.
	HostGateway() netip.Addr
	// Close stops background work; it removes no running container's network. With nothing running it removes bridges' rules and the table.
	Close() error
}

// Settler is what a Manager also is when it finds things of an earlier engine in the kernel: call Settle once after the last Restore. It removes
// what nobody claimed, and only then are ready namespaces made.
type Settler interface {
	Settle(ctx context.Context) error
}
