package network

import (
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"corten.dev/corten/internal/network/remote"
)

// PoolRange is a range that the subnets of networks are taken from when their makers name none.
type PoolRange struct {
	Base netip.Prefix
	Size int // prefix length of each subnet
}

// Options are the settings of the room. Root and ExecRoot must be set; useful zeros for the rest.
type Options struct {
	Root     string // durable: networks/<id>.json
	ExecRoot string // gone at boot: portproxy.sock, names.sock
	Table    string // nftables table; default "corten"
	Bridge   string // name of the default bridge; default "corten0"; "none" for no default bridge
	// BIP is the default bridge's own address with its prefix; else the first free subnet of Pools. BIP6 likewise, when IPv6 is set.
	BIP, BIP6 netip.Prefix
	// FixedCIDR restricts what the default bridge hands out.
	FixedCIDR, FixedCIDRv6 netip.Prefix
	// DefaultGateway replaces the bridge's address as the containers' gateway.
	DefaultGateway, DefaultGateway6 netip.Addr
	Pools                           []PoolRange // of either family; default: Docker's, then more
	MTU                             int         // of the default bridge; default: that of the host's default route
	IPv6                            bool        // of the default bridge
	NoICC                           bool        // containers on the default bridge do not reach each other
	NoMasquerade                    bool
	NoForward                       bool // do not switch the host's forwarding on
	// DriverOptions are options, by driver, of networks that do not say otherwise when they are made.
	DriverOptions map[string]map[string]string
	DirectRouting bool // published ports are reached at the containers' own addresses, too, by whoever routes there
	NoRules       bool // no nftables at all: published ports then fail
	NoRules6      bool // none for IPv6: nothing is translated or kept out there, and ports are published by the port proxy alone
	HostIP        netip.Addr
	HostGateway   netip.Addr // --host-gateway-ip; default: the default bridge's address
	// DNS, DNSSearch, DNSOptions are the engine's defaults for containers that name none.
	DNS, DNSSearch, DNSOptions []string
	ResolvConf                 string // default /etc/resolv.conf, or systemd-resolved's own where that is a stub
	PoolSize                   int    // ready namespaces to keep; default 8, negative: none
	PoolDelay                  time.Duration
	// PortProxy is the command that runs the port proxy (see package portproxy), for instance cortend's own path and "portproxy"; empty: ports on IPv6
	// addresses work only for containers with an IPv6 address.
	PortProxy []string
	// Names is the command that runs the name server (see package dns), without its last argument, the path of the host's resolv.conf; default: that of PortProxy, and "names".
	// With neither, no container can join a user-defined network.
	Names []string
	// Cgroup is an open cgroup v2 that port proxy and name server are born in, so that they do not end with the engine's service; nil leaves it in the engine's.
	Cgroup *os.File
	// Plugins are where drivers of networks and of addresses are found that are not our own; the zero value has none.
	Plugins remote.Plugins
	Logger  *slog.Logger
}

// defaultTable is the nftables table, and with it the name on the host, of an engine that was told none.
const defaultTable = "corten"

func (o Options) withDefaults() Options {
	if o.Table == "" {
		o.Table = defaultTable
	}
	if o.Bridge == "" {
		o.Bridge = "corten0"
	}
	if len(o.Pools) == 0 {
		for i := 17; i < 32; i++ {
			o.Pools = append(o.Pools, PoolRange{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i), 0, 0}), 16), 16})
		}
		// Docker's end here, after 31 networks. Ours go on, far from where most people's own networks are.
		o.Pools = append(o.Pools, PoolRange{netip.MustParsePrefix("192.168.0.0/16"), 20}, PoolRange{netip.MustParsePrefix("10.224.0.0/12"), 24})
	}
	if o.PoolSize == 0 {
		o.PoolSize = 8
	}
	if o.PoolDelay == 0 {
		o.PoolDelay = 25 * time.Millisecond
	}
	if len(o.Names) == 0 && len(o.PortProxy) > 0 {
		o.Names = append(slices.Clone(o.PortProxy), "names")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}
