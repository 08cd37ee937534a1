package serve

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/cache"
	"corten.dev/corten/internal/registry/server/config"
)

// only is the Hosts of a client that reaches one place.
type only client.Endpoint

// Endpoints gives that place, whatever is asked for.
func (o only) Endpoints(_, _ string) ([]client.Endpoint, error) {
	return []client.Endpoint{client.Endpoint(o)}, nil
}

// openUpstreams makes a client for each registry behind this one; nil if there is none.
func openUpstreams(conf *config.Config, store server.Values, version string, log *slog.Logger) (server.Upstreams, error) {
	if len(conf.Cache) == 0 {
		return nil, nil
	}
	opts := cache.Options{Store: store, Staging: filepath.Join(conf.Root, "staging"), Logger: log}
	for i, u := range conf.Cache {
		up, err := openUpstream(&u, version, log)
		if err != nil {
			return nil, fmt.Errorf("cache[%d] %s: %w", i, u.URL, err)
		}
		opts.Upstreams = append(opts.Upstreams, up)
	}
	return cache.New(opts)
}

func openUpstream(u *config.Upstream, version string, log *slog.Logger) (cache.Upstream, error) {
	where, err := url.Parse(u.URL)
	if err != nil {
		return cache.Upstream{}, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if u.CA != "" {
		if transport.TLSClientConfig.RootCAs, err = certPool(u.CA); err != nil {
			return cache.Upstream{}, err
		}
	}
	domain := where.Host
	if where.Host == "registry-1.docker.io" || where.Host == "index.docker.io" {
		domain = reference.DefaultDomain
	}
	creds, err := upstreamCredentials(u)
	if err != nil {
		return cache.Upstream{}, err
	}
	remote := client.New(client.Options{
		Hosts: only{URL: strings.TrimSuffix(u.URL, "/"), Transport: transport, PlainToo: where.Scheme == "http"}, UserAgent: "corten-registry/" + version, Logger: log,
		Retries: 3, Backoff: 200 * time.Millisecond,
	})
	return cache.Upstream{
		Prefix: prefixOf(u), Remote: remote, Domain: domain, Credentials: creds, TTL: time.Duration(u.TagTTL), Allow: u.Allow, Deny: u.Deny,
	}, nil
}

// prefixOf is where an upstream's repositories are here: "" is everywhere. Without a prefix they are below the namespace that clients ask with.
func prefixOf(u *config.Upstream) string {
	switch u.Prefix {
	case "":
		return strings.ReplaceAll(u.Namespace, ":", "-")
	case "/":
		return ""
	}
	return u.Prefix
}

// upstreamCredentials never puts the password into an error.
func upstreamCredentials(u *config.Upstream) (creds client.Credentials, err error) {
	if u.Username == "" {
		return creds, nil
	}
	creds.Username = u.Username
	if u.PasswordEnv != "" {
		if creds.Password = os.Getenv(u.PasswordEnv); creds.Password == "" {
			return creds, errs.New(errs.Invalid, "the variable %s is empty", u.PasswordEnv)
		}
		return creds, nil
	}
	text, err := os.ReadFile(u.PasswordFile)
	if err != nil {
		return creds, fmt.Errorf("password of the upstream: %w", err)
	}
	if creds.Password = strings.TrimRight(string(text), "\r\n"); creds.Password == "" {
		return creds, errs.New(errs.Invalid, "%s is empty", u.PasswordFile)
	}
	return creds, nil
}

// namespaces turns what clients say in ?ns= (containerd does) into the repositories' prefix here.
func namespaces(conf *config.Config) map[string]string {
	m := map[string]string{}
	for _, u := range conf.Cache {
		if u.Namespace != "" {
			m[u.Namespace] = prefixOf(&u)
		}
	}
	return m
}

// withNamespace rewrites /v2/NAME/…?ns=docker.io to /v2/docker.io/NAME/…, and says so (specification, "Registry Proxying").
func withNamespace(spaces map[string]string, w http.ResponseWriter, req *http.Request) {
	if len(spaces) == 0 || req.URL.RawQuery == "" {
		return
	}
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || rest == "" || strings.HasPrefix(rest, "_") {
		return
	}
	ns := req.URL.Query().Get("ns")
	if prefix := spaces[ns]; prefix != "" {
		w.Header().Set("OCI-Namespace", ns)
		req.URL.Path, req.URL.RawPath = "/v2/"+prefix+"/"+rest, ""
	}
}
