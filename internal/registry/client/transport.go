package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/tcp"
)

// Limits of connections. Header bombs end at maxHeader; a host that does not answer, at the dial and handshake limits.
const (
	dialLimit      = 15 * time.Second
	handshakeLimit = 15 * time.Second
	idleLimit      = 90 * time.Second
	idlePerHost    = 16
	maxHeader      = 256 << 10
	socketBuffer   = 64 << 10
)

// wayKey tells transports apart. host is empty for the one that all hosts share which have nothing of their own.
type wayKey struct {
	host    string
	domain  string // the registry that led here, when its roots count
	lax     bool   // certificates are not checked
	network bool   // lax because of the address: another address is not dialled
}

type way struct {
	certs  certSet
	trans  http.RoundTripper
	closer func()
}

// Way is the way to a place that the registry of a domain led to: with its own certificates, or with the roots of that registry. The registry's
// client certificate is for the registry.
func (t *Table) Way(u *url.URL, domain string) http.RoundTripper {
	lax, network := t.lax(u, false)
	return led{t.way(wayKey{host: u.Host, domain: domain, lax: lax, network: network}), isLocal(hostOnly(domain))}
}

// led is the way to a place that a registry led to: it may not end at an address that means something else to us than to the registry.
type led struct {
	http.RoundTripper
	local bool // the registry is on this host too
}

func (l led) RoundTrip(req *http.Request) (*http.Response, error) {
	rule := dialRule{host: req.URL.Host, led: true, local: l.local}
	return l.RoundTripper.RoundTrip(req.WithContext(context.WithValue(req.Context(), dialKey{}, rule)))
}

func (t *Table) way(key wayKey) http.RoundTripper {
	certs := findCerts(t.opts.CertDirs, key.host)
	if len(certs.files) == 0 && key.domain != "" && key.domain != key.host {
		certs = findCerts(t.opts.CertDirs, key.domain)
		certs.rootsOnly = true
	} else {
		key.domain = ""
	}
	if len(certs.files) == 0 {
		key.domain = ""
		if !key.network {
			key.host = ""
		}
	} else if certs.rootsOnly {
		key.host = ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := t.ways[key]; w != nil {
		if w.certs.same(certs) {
			return w.trans
		}
		w.closer()
	}
	w := t.open(key, certs)
	t.ways[key] = w
	return w.trans
}

func (t *Table) open(key wayKey, certs certSet) *way {
	conf, err := certs.config()
	if err != nil {
		return &way{certs: certs, trans: broken{err}, closer: func() {}}
	}
	conf.InsecureSkipVerify = key.lax // the operator's word
	var allowed func(netip.Addr) bool
	if key.network {
		allowed = func(addr netip.Addr) bool { return addr.IsLoopback() || t.inNetworks(addr) }
	}
	trans := newTransport(conf, t.opts.Proxy, allowed)
	return &way{certs: certs, trans: trans, closer: trans.base.CloseIdleConnections}
}

// broken is the way to a host whose certificates cannot be read.
type broken struct{ err error }

func (b broken) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		if err := req.Body.Close(); err != nil {
			return nil, err
		}
	}
	return nil, final{b.err}
}

// transport is net/http's, with a check of the address that is dialled when no proxy is in between.
type transport struct {
	base  *http.Transport
	proxy func(*http.Request) (*url.URL, error)
}

// dialRule travels from RoundTrip to the dialler of a new connection.
type dialRule struct {
	host       string
	led, local bool // see led
	proxied    bool // the address is the proxy's
}

type dialKey struct{}

func newTransport(conf *tls.Config, proxy func(*http.Request) (*url.URL, error), allowed func(netip.Addr) bool) *transport {
	dialer := &net.Dialer{Timeout: dialLimit, KeepAlive: 30 * time.Second}
	dialer.ControlContext = func(ctx context.Context, _, address string, conn syscall.RawConn) error {
		addr, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial %s: %w", address, err)
		}
		ip := addr.Addr().Unmap()
		if ip.IsLoopback() {
			tcp.Hurry(conn)
		}
		rule, ok := ctx.Value(dialKey{}).(dialRule)
		if !ok || rule.proxied {
			return nil
		}
		if rule.led && (elsewhere(ip) || ip.IsLoopback() && !rule.local) {
			return final{errs.New(errs.Unavailable, "%s is at %s, an address of this host or link only: refused", rule.host, ip)}
		}
		if allowed != nil && !allowed(ip) {
			return final{errs.New(errs.Unavailable, "%s is at %s, which is not in the insecure networks: refused", rule.host, ip)}
		}
		return nil
	}
	return &transport{proxy: proxy, base: &http.Transport{
		Proxy: proxy, DialContext: dialer.DialContext, TLSClientConfig: conf, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: handshakeLimit, IdleConnTimeout: idleLimit, MaxIdleConnsPerHost: idlePerHost, MaxIdleConns: 256,
		MaxResponseHeaderBytes: maxHeader, WriteBufferSize: socketBuffer, ReadBufferSize: socketBuffer, DisableCompression: true,
		ExpectContinueTimeout: time.Second,
	}}
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	rule, ok := req.Context().Value(dialKey{}).(dialRule)
	if !ok {
		rule.host = req.URL.Host
	}
	if t.proxy != nil {
		u, err := t.proxy(req)
		rule.proxied = err == nil && u != nil
	}
	return t.base.RoundTrip(req.WithContext(context.WithValue(req.Context(), dialKey{}, rule)))
}

// forbiddenHost tells whether a registry may not lead to a host that is written as an address. Loopback is for registries on this host. Names
// are looked at when they are dialled.
func forbiddenHost(host, base string) bool {
	if isLocal(host) {
		return !isLocal(base)
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && elsewhere(addr.Unmap())
}

func isLocal(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && addr.Unmap().IsLoopback()
}

// elsewhere: addresses that are on our link, or nowhere. Clouds keep their secrets there (169.254.169.254).
func elsewhere(addr netip.Addr) bool {
	return addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified()
}

// hostOnly is a domain without its port.
func hostOnly(domain string) string {
	u := url.URL{Host: domain}
	return u.Hostname()
}
