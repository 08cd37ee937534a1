package parse

import (
	"net/netip"
	"strconv"
	"strings"
)

// Network is one --network value.
type Network struct {
	Name       string
	Aliases    []string
	IPv4, IPv6 netip.Addr
	MAC        string
	LinkLocal  []netip.Addr
	DriverOpts map[string]string
	GwPriority int
}

// NetworkFlag reads a name, or name=…,alias=…,ip=…,ip6=…,mac-address=…,link-local-ip=…,driver-opt=k=v,gw-priority=n.
func NetworkFlag(s string) (Network, error) {
	n := Network{}
	if s == "" { // a script's variable that was not set: not the default network, unasked
		return n, invalid("no name set for network")
	}
	if !strings.Contains(s, "=") {
		n.Name = s
		return n, nil
	}
	fields, err := csvFields(s)
	if err != nil {
		return n, err
	}
	for _, f := range fields {
		key, val, ok := strings.Cut(f, "=")
		if !ok || key == "" {
			return n, invalid("invalid network config field: %s", f)
		}
		key, val = strings.TrimSpace(strings.ToLower(key)), strings.TrimSpace(val)
		if err := n.field(key, val); err != nil {
			return n, err
		}
	}
	if n.Name == "" {
		return n, invalid("network name/id is not specified")
	}
	return n, nil
}

func (n *Network) field(key, val string) (err error) {
	switch key {
	case "name":
		n.Name = val
	case "alias":
		n.Aliases = append(n.Aliases, val)
	case "ip":
		n.IPv4, err = IP(val)
	case "ip6":
		n.IPv6, err = IP(val)
	case "mac-address":
		n.MAC = val
	case "link-local-ip":
		var ip netip.Addr
		ip, err = IP(val)
		n.LinkLocal = append(n.LinkLocal, ip)
	case "driver-opt":
		k, v, ok := strings.Cut(val, "=")
		if !ok || k == "" {
			return invalid("invalid key value pair format in driver options")
		}
		if n.DriverOpts == nil {
			n.DriverOpts = map[string]string{}
		}
		n.DriverOpts[strings.ToLower(k)] = v
	case "gw-priority":
		n.GwPriority, err = strconv.Atoi(val)
		if err != nil {
			err = invalid("invalid gw-priority (%s): invalid syntax", val)
		}
	default:
		return invalid("invalid field key %s", key)
	}
	return err
}

// IP reads an address.
func IP(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, invalid("%s is not an ip address", s)
	}
	return a, nil
}

// Link checks a link: name[:alias].
func Link(s string) error {
	name, alias, _ := strings.Cut(s, ":")
	if name == "" || strings.Contains(alias, ":") {
		return invalid("bad format for links: %s", s)
	}
	return nil
}
