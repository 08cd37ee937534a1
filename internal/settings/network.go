package settings

import (
	"encoding/json"
	"net/netip"
	"strings"

	"corten.dev/corten/internal/errs"
	"github.com/spf13/pflag"
)

// NetworkSettings are those of the default bridge and of networks as a whole, beside the few that are as old as the engine.
type NetworkSettings struct {
	IPv6             bool                         `json:"ipv6,omitempty"`
	BIP6             string                       `json:"bip6,omitempty"`
	FixedCIDRv6      string                       `json:"fixed-cidr-v6,omitempty"`
	DefaultGateway   string                       `json:"default-gateway,omitempty"`
	DefaultGatewayV6 string                       `json:"default-gateway-v6,omitempty"`
	ICC              bool                         `json:"icc"`
	IPMasq           bool                         `json:"ip-masq"`
	IPTables         bool                         `json:"iptables"`
	IP6Tables        bool                         `json:"ip6tables"`
	UserlandProxy    bool                         `json:"userland-proxy"`
	DirectRouting    bool                         `json:"allow-direct-routing,omitempty"`
	HostGatewayIP    string                       `json:"host-gateway-ip,omitempty"`
	NetworkOpts      map[string]map[string]string `json:"default-network-opts,omitempty"`
}

func defaultNetwork() NetworkSettings {
	return NetworkSettings{ICC: true, IPMasq: true, IPTables: true, IP6Tables: true, UserlandProxy: true}
}

func (s *NetworkSettings) networkFlags(set *pflag.FlagSet) {
	set.BoolVar(&s.IPv6, "ipv6", false, "Give containers on the default bridge IPv6 addresses, too")
	set.StringVar(&s.BIP6, "bip6", "", "IPv6 address and prefix of the default bridge")
	set.StringVar(&s.FixedCIDRv6, "fixed-cidr-v6", "", "Part of the default bridge's IPv6 subnet that containers get addresses from; without --bip6 it is the subnet")
	set.StringVar(&s.DefaultGateway, "default-gateway", "", "Gateway of containers on the default bridge, where it is not the bridge itself")
	set.StringVar(&s.DefaultGatewayV6, "default-gateway-v6", "", "The same for IPv6")
	set.BoolVar(&s.ICC, "icc", true, "Let containers on the default bridge reach each other")
	set.BoolVar(&s.IPMasq, "ip-masq", true, "Give packets from the default bridge to elsewhere the host's address")
	set.BoolVar(&s.IPTables, "iptables", true, "Write rules (nftables); without, no port can be published and nothing is protected")
	set.BoolVar(&s.IP6Tables, "ip6tables", true, "Write rules for IPv6, too")
	set.BoolVar(&s.UserlandProxy, "userland-proxy", true, "Have a process pass on what no rule can: [::1], and IPv6 to containers that have only IPv4")
	set.BoolVar(&s.DirectRouting, "allow-direct-routing", false, "Let others reach published ports at the containers' own addresses, too")
	set.StringVar(&s.HostGatewayIP, "host-gateway-ip", "", "Address that host-gateway means in --add-host (default: the default bridge's)")
	set.Var(&networkOptFlag{s}, "default-network-opt", "Option of new networks that do not say otherwise (driver=name=value)")
}

func (s *NetworkSettings) checkNetwork() error {
	for key, text := range map[string]string{"bip6": s.BIP6, "fixed-cidr-v6": s.FixedCIDRv6} {
		if p, err := netip.ParsePrefix(text); text != "" && (err != nil || !p.Addr().Is6()) {
			return errs.New(errs.Invalid, "%s %q: give an IPv6 address with a prefix length, like fd00:17::/64", key, text)
		}
	}
	for key, text := range map[string]string{"default-gateway": s.DefaultGateway, "default-gateway-v6": s.DefaultGatewayV6, "host-gateway-ip": s.HostGatewayIP} {
		if _, err := netip.ParseAddr(text); text != "" && err != nil {
			return errs.New(errs.Invalid, "%s %q: give an IP address", key, text)
		}
	}
	if !s.ICC && !s.IPTables {
		return errs.New(errs.Invalid, "you specified --iptables=false with --icc=false: containers are kept from each other by rules")
	}
	return nil
}

// networkOptFlag reads driver=name=value.
type networkOptFlag struct{ s *NetworkSettings }

// Set adds one option.
func (f *networkOptFlag) Set(text string) error {
	driver, opt, ok := strings.Cut(text, "=")
	name, value, valued := strings.Cut(opt, "=")
	if !ok || !valued || driver == "" || name == "" {
		return errs.New(errs.Invalid, "%q: write driver=name=value", text)
	}
	if f.s.NetworkOpts == nil {
		f.s.NetworkOpts = map[string]map[string]string{}
	}
	if f.s.NetworkOpts[driver] == nil {
		f.s.NetworkOpts[driver] = map[string]string{}
	}
	f.s.NetworkOpts[driver][name] = value
	return nil
}

func (f *networkOptFlag) String() string {
	if f.s == nil || len(f.s.NetworkOpts) == 0 {
		return ""
	}
	raw, err := json.Marshal(f.s.NetworkOpts)
	if err != nil {
		return err.Error() // strings cannot fail to marshal
	}
	return string(raw)
}

// Type is shown in the help.
func (f *networkOptFlag) Type() string { return "driver=name=value" }
