package network

import (
	"net/netip"
	"slices"
	"strings"

	"corten.dev/corten/internal/network/dns"
)

// choose merges what a container asked for, the engine's defaults and the host's file; reachable is which of the host's servers it reaches.
func (l *Local) choose(req JoinRequest, reachable func(servers []string) []string) (dns.ResolvConf, error) {
	r, _, err := l.resolv.Read()
	if err != nil {
		return r, err
	}
	pick := func(dst *[]string, lists ...[]string) {
		for _, list := range lists {
			if len(list) > 0 {
				*dst = list
				return
			}
		}
	}
	r.Servers = reachable(r.Servers)
	pick(&r.Servers, req.DNS, l.opt.DNS)
	pick(&r.Search, req.DNSSearch, l.opt.DNSSearch)
	pick(&r.Options, req.DNSOptions, l.opt.DNSOptions)
	if len(r.Search) == 1 && r.Search[0] == "." { // "no search list", as Docker's --dns-search .
		r.Search = nil
	}
	return r, nil
}

// reachable leaves out the host's servers that a container does not reach: on loopback, which is not the container's, at link-local addresses of an interface of the host, and, where
// it has no IPv6, at such addresses. A C library asks the first three only, so that those would keep it from the others.
func reachable(servers []string, eps []Endpoint) []string {
	var out []string
	has6 := len(eps) == 0 || slices.ContainsFunc(eps, func(ep Endpoint) bool { return ep.IPv6.IsValid() })
	for _, s := range servers {
		if a, err := netip.ParseAddr(s); err == nil && !a.IsLoopback() && a.Zone() == "" && (has6 || a.Unmap().Is4()) {
			out = append(out, s)
		}
	}
	return out
}

// resolvConf is the content of a container's /etc/resolv.conf.
func (l *Local) resolvConf(req JoinRequest, eps []Endpoint, userDefined, host bool) ([]byte, error) {
	own := len(req.DNS)+len(req.DNSSearch)+len(req.DNSOptions) > 0
	if host && !own {
		_, raw, err := l.resolv.Read()
		return raw, err
	}
	r, err := l.choose(req, func(servers []string) []string {
		if host {
			return servers // it is the host
		}
		return reachable(servers, eps)
	})
	if err != nil {
		return nil, err
	}
	switch {
	case userDefined:
		r.Servers = []string{"127.0.0.11"}
		if !slices.ContainsFunc(r.Options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
			r.Options = append(slices.Clone(r.Options), "ndots:0")
		}
	case len(r.Servers) == 0 && !host:
		l.log.Info("the host names no server that containers reach; using public ones", "servers", dns.PublicServers)
		r.Servers = dns.PublicServers[:]
	}
	return r.Format(), nil
}
