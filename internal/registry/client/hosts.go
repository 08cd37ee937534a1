package client

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client/rules"
)

// hubHost is where docker.io answers.
const hubHost = "registry-1.docker.io"

// Ways is what Hosts may offer besides: the way to a place that a registry led to (its token service, a store of blobs), in the name of the
// registry's domain. Without it, such places are reached with the system's roots and the environment's proxies.
type Ways interface {
	Way(u *url.URL, domain string) http.RoundTripper
}

// HostsOptions say how registries are reached. The zero value reaches each at its own name.
type HostsOptions struct {
	// Default is the registry of names that name none, host[:port]; empty is Docker Hub. Clients complete such names to docker.io before they send them, so it stands for
	// docker.io wherever no rule says otherwise, and has no "library/" in front of single words.
	Default  string
	Rules    []rules.Rule // the first that fits counts
	Mirrors  []string     // of docker.io (docker's registry-mirrors)
	Insecure []string     // hosts and networks (docker's insecure-registries); loopback addresses always are
	CertDirs []string     // folders in the layout of /etc/docker/certs.d; what an earlier one has counts
	// Proxy gives the proxy of a request; nil reads HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
	Proxy  func(*http.Request) (*url.URL, error)
	Logger *slog.Logger
}

// Table is the Hosts of an engine's settings. Certificates are read again when their files change.
type Table struct {
	opts     HostsOptions
	insecure map[string]bool
	networks []netip.Prefix
	look     func(ctx context.Context, host string) ([]netip.Addr, error)

	mu   sync.Mutex      // guards ways
	ways map[wayKey]*way // transports: one for all hosts that have nothing of their own, one for each that has
}

var _ interface {
	Hosts
	Ways
} = (*Table)(nil)

// NewHosts checks the options.
func NewHosts(opts HostsOptions) (*Table, error) {
	if opts.Proxy == nil {
		var err error
		if opts.Proxy, err = ProxyFrom(Proxies{}); err != nil {
			return nil, err
		}
	}
	t := newTable(opts)
	for _, r := range opts.Rules {
		if err := r.Check(); err != nil {
			return nil, err
		}
	}
	for _, m := range opts.Mirrors {
		if err := rules.CheckMirror(m); err != nil {
			return nil, err
		}
	}
	for _, s := range opts.Insecure {
		host, network, err := rules.ParseInsecure(s)
		if err != nil {
			return nil, err
		}
		if network.IsValid() {
			t.networks = append(t.networks, network)
		} else {
			t.insecure[host] = true
		}
	}
	return t, nil
}

func newTable(opts HostsOptions) *Table {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Table{opts: opts, insecure: map[string]bool{}, ways: map[wayKey]*way{}, look: func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}}
}

// Endpoints finds where a repository is reached: the mirrors of the first rule that fits (or docker's mirrors, for docker.io), then the registry.
func (t *Table) Endpoints(domain, path string) ([]Endpoint, error) {
	var list []Endpoint
	for _, r := range t.opts.Rules {
		if _, ok := r.Fit(domain, path); !ok {
			continue
		}
		if r.Blocked {
			return nil, errs.New(errs.Forbidden, "registry %s: blocked by the engine's settings (registries: match %q)", domain, r.Match)
		}
		for _, mirror := range r.Mirrors {
			list = append(list, t.mirror(domain, mirror, r))
		}
		if r.MirrorsOnly {
			// The last one stands in for the registry: its refusal is the answer. It takes no pushes, for these are never sent to a mirror.
			return list, nil
		}
		own := t.registry(domain, r.Location, r.Insecure)
		own.Rewrite = rewriter(r, domain, r.Rewrite)
		return append(list, own), nil
	}
	if domain == reference.DefaultDomain && t.opts.Default != "" {
		own := t.registry(domain, "https://"+t.opts.Default, false)
		own.Rewrite = func(path string) string { return strings.TrimPrefix(path, "library/") }
		return append(list, own), nil
	}
	if domain == reference.DefaultDomain {
		for _, u := range t.opts.Mirrors {
			list = append(list, t.mirror(domain, rules.Mirror{URL: u}, rules.Rule{}))
		}
	}
	return append(list, t.registry(domain, "", false)), nil
}

func (t *Table) mirror(domain string, m rules.Mirror, r rules.Rule) Endpoint {
	ep := t.endpoint(m.URL, domain, m.Insecure)
	ep.Mirror, ep.NameSpace = true, m.Namespace
	ep.Rewrite = rewriter(r, domain, m.Rewrite)
	if m.Credentials != "" {
		ep.Credentials = func() (Credentials, error) { return readCredentials(m.Credentials, m.URL) }
	}
	return ep
}

// rewriter makes the function of an endpoint: for the repository that was asked about, and for others of the same registry (the source of a
// mount). What the rule is not about has no name there.
func rewriter(r rules.Rule, domain, template string) func(string) string {
	if template == "" {
		return nil
	}
	return func(path string) string {
		m, ok := r.Fit(domain, path)
		if !ok {
			return ""
		}
		out, err := m.Rewrite(template)
		if err != nil {
			return "" // not a name: the site refuses it
		}
		return out
	}
}

func (t *Table) registry(domain, location string, insecure bool) Endpoint {
	if location == "" {
		host := domain
		if domain == reference.DefaultDomain {
			host = hubHost
		}
		location = "https://" + host
	}
	return t.endpoint(location, domain, insecure)
}

func (t *Table) endpoint(place, domain string, insecure bool) Endpoint {
	ep := Endpoint{URL: place}
	u, err := url.Parse(place)
	if err != nil || u.Host == "" {
		return ep // the site refuses it with its name
	}
	lax, network := t.lax(u, insecure)
	ep.PlainToo = lax && u.Scheme == "https"
	ep.Transport = t.way(wayKey{host: u.Host, lax: lax, network: network})
	return ep
}

// lax tells whether a host may be reached without being sure who it is; by its name, or because of the network it is in.
func (t *Table) lax(u *url.URL, insecure bool) (lax, network bool) {
	host := strings.ToLower(u.Hostname())
	if insecure || t.insecure[strings.ToLower(u.Host)] || t.insecure[host] {
		return true, false
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.IsLoopback() || t.inNetworks(addr), false
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true, true
	}
	if len(t.networks) == 0 {
		return false, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	addrs, err := t.look(ctx, host)
	if err != nil {
		t.opts.Logger.Debug("registry: not looked up for the insecure networks", "host", host, "error", err)
		return false, false
	}
	for _, addr := range addrs {
		if t.inNetworks(addr.Unmap()) {
			return true, true
		}
	}
	return false, false
}

func (t *Table) inNetworks(addr netip.Addr) bool {
	for _, n := range t.networks {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

// CloseIdle closes the connections that nobody uses. The table stays usable.
func (t *Table) CloseIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.ways {
		w.closer()
	}
}
