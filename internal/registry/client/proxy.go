package client

import (
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"corten.dev/corten/internal/errs"
)

// Proxies are the proxies of HTTPS and HTTP requests, and who is reached without one: hosts, domains with what is below them, addresses and
// networks, separated by commas, with or without a port; "*" is everybody. Loopback addresses are never reached by a proxy.
type Proxies struct{ HTTP, HTTPS, No string }

// ProxyFrom gives the function for HostsOptions.Proxy: what is given counts, what is empty comes from the environment (HTTP_PROXY, HTTPS_PROXY,
// NO_PROXY, also in small letters).
func ProxyFrom(p Proxies) (func(*http.Request) (*url.URL, error), error) {
	plain, err := proxyURL(first(p.HTTP, os.Getenv("HTTP_PROXY"), os.Getenv("http_proxy")))
	if err != nil {
		return nil, err
	}
	secure, err := proxyURL(first(p.HTTPS, os.Getenv("HTTPS_PROXY"), os.Getenv("https_proxy")))
	if err != nil {
		return nil, err
	}
	except := strings.Split(strings.ToLower(first(p.No, os.Getenv("NO_PROXY"), os.Getenv("no_proxy"))), ",")
	return func(req *http.Request) (*url.URL, error) {
		proxy := plain
		if req.URL.Scheme == "https" {
			proxy = secure
		}
		if proxy == nil || isLocal(req.URL.Hostname()) || excepted(except, req.URL) {
			return nil, nil
		}
		return proxy, nil
	}, nil
}

func first(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// proxyURL never shows what it reads: it may hold a password.
func proxyURL(s string) (*url.URL, error) {
	if s == "" {
		return nil, nil
	}
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return nil, errs.New(errs.Invalid, "proxy: give http://HOST:PORT")
	}
	return u, nil
}

// excepted tells whether a place is on the list of those without a proxy.
func excepted(list []string, u *url.URL) bool {
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	addr, addrErr := netip.ParseAddr(host)
	for _, entry := range list {
		entry = strings.TrimSpace(entry)
		if network, err := netip.ParsePrefix(entry); err == nil {
			if addrErr == nil && network.Contains(addr.Unmap()) {
				return true
			}
			continue
		}
		name, port := entry, ""
		if only, err := netip.ParseAddr(strings.Trim(entry, "[]")); err == nil {
			name = only.String()
		} else if i := strings.LastIndexByte(entry, ':'); i >= 0 {
			name, port = strings.Trim(entry[:i], "[]"), entry[i+1:]
		}
		if port != "" && !strings.HasSuffix(hostPort(u), ":"+port) {
			continue
		}
		below := strings.TrimPrefix(name, "*")
		switch {
		case entry == "*", name != "" && name == host:
			return true
		case strings.HasPrefix(below, "."):
			if addrErr != nil && strings.HasSuffix(host, below) {
				return true
			}
		case below != "" && addrErr != nil && strings.HasSuffix(host, "."+below):
			return true
		}
	}
	return false
}
