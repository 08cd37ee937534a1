package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
)

// The options of an endpoint, as Docker names them.
const (
	optIfName  = "com.docker.network.endpoint.ifname"
	optSysctls = "com.docker.network.endpoint.sysctls" // net.ipv4.conf.IFNAME.forwarding=1,… where IFNAME stands for the interface
)

// setting is a sysctl of one interface: a path below /proc/sys in which IFNAME stands for it.
type setting struct{ path, value string }

const ifName = "IFNAME"

// readOptions reads the options of an endpoint; an error names the one that makes no sense. Those that are not ours are for a plugin, if the network has one.
func (ep *Endpoint) readOptions(options map[string]string, plugin bool) (err error) {
	for key, val := range options {
		switch key {
		case optIfName:
			if !goodLinkName(val) {
				return errs.New(errs.Invalid, "endpoint option %s=%s: not a name of an interface", key, val)
			}
			ep.Interface = val
		case optSysctls:
			if ep.sysctls, err = parseSysctls(val); err != nil {
				return err
			}
		default:
			if plugin {
				continue
			}
			return errs.New(errs.NotImplemented, "endpoint option %s is not supported", key)
		}
	}
	return nil
}

// parseSysctls reads settings with commas between them. Only those of an interface's own are taken, so that nothing of the others is changed by way of one network.
func parseSysctls(s string) (all []setting, err error) {
	bad := func(why, what string) error {
		return errs.New(errs.Invalid, "unable to parse %s: %s: %q", optSysctls, why, what)
	}
	for one := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(one, "=")
		if !ok {
			return nil, bad("write name=value", one)
		}
		parts := strings.Split(strings.TrimSpace(key), ".")
		if slices.Contains(parts, "") || strings.ContainsAny(key, "/\x00") {
			return nil, bad("not a name of a setting", key)
		}
		if len(parts) != 5 || parts[0] != "net" || !slices.Contains([]string{"ipv4", "ipv6", "mpls"}, parts[1]) || !strings.EqualFold(parts[3], ifName) {
			return nil, bad("it must be a setting of the interface, like net.ipv4.conf.IFNAME.forwarding", key)
		}
		parts[3] = ifName // docker's client makes small letters of it
		all = append(all, setting{strings.Join(parts, "/"), strings.TrimSpace(value)})
	}
	return all, nil
}

// applySysctls sets what the endpoints' options say. The caller's thread is in the namespace.
func (l *Local) applySysctls(eps []Endpoint) error {
	for _, ep := range eps {
		for _, s := range ep.sysctls {
			if err := l.innerSysctl(strings.Replace(s.path, ifName, ep.Interface, 1), s.value); err != nil {
				kind := errs.Invalid
				if errors.Is(err, os.ErrPermission) {
					kind = errs.Forbidden
				}
				return errs.As(kind, fmt.Errorf("endpoint on network %s: %w", ep.Network, err))
			}
		}
	}
	return nil
}

// checkLinkLocal looks at addresses that an endpoint gets beside its own.
func checkLinkLocal(list []netip.Addr) error {
	for _, a := range list {
		if !a.IsLinkLocalUnicast() {
			return errs.New(errs.Invalid, "invalid link-local IP address: %s", a)
		}
	}
	return nil
}

// linkLocalPrefix is what such an address is assigned with.
func linkLocalPrefix(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(a, 16)
	}
	return netip.PrefixFrom(a, 64)
}

// prefixes are what the names of interfaces on networks begin with, where it is not "eth".
func prefixes(nets []*network) (list []string) {
	for _, nw := range nets {
		list = append(list, nw.prefix)
	}
	return list
}

// nameInterfaces gives those of the new endpoints that name no interface the next free name: eth0, eth1, …, or by the prefix of their network.
func nameInterfaces(eps []Endpoint, prefixes []string, others []Endpoint) error {
	taken := map[string]bool{"lo": true}
	for _, ep := range others {
		taken[ep.Interface] = true
	}
	for _, ep := range eps {
		if ep.Interface != "" && taken[ep.Interface] {
			return errs.New(errs.Conflict, "interface name %s is taken in the container", ep.Interface)
		}
		if ep.Interface != "" {
			taken[ep.Interface] = true
		}
	}
	for i := range eps {
		prefix := prefixes[i]
		if prefix == "" {
			prefix = "eth"
		}
		for n := 0; eps[i].Interface == ""; n++ {
			if name := fmt.Sprintf("%s%d", prefix, n); !taken[name] {
				eps[i].Interface, taken[name] = name, true
			}
		}
	}
	return nil
}
