package client

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// Client is the Registry of this package. Its methods may be called concurrently.
type Client struct {
	opts    Options
	agent   string
	log     *slog.Logger
	hosts   Hosts
	ways    Ways
	direct  *Table // for hosts whose endpoint brings no transport
	tokens  *tokens
	tuning  tuning
	room    chan struct{} // one place for each segment that is held in memory
	buffers sync.Pool

	mu    sync.Mutex           // guards what follows
	wants map[string]challenge // what a host asked for when it last said 401
	plain map[string]time.Time // insecure hosts that had no https, and when that was seen
	gone  map[string]time.Time // mirrors that did not answer, and when
}

var _ Registry = (*Client)(nil)

// tuning are limits that tests make smaller.
type tuning struct {
	head     time.Duration // until the head of an answer to what only reads
	answer   time.Duration // the same for what writes, after its last byte: a registry may move a large blob before it answers
	window   time.Duration // in which floor bytes have to move
	floor    int64
	segment  int64 // bytes that one of several ranges brings
	fast     int64 // bytes a second from which one stream is enough
	progress int64 // bytes after which a broken download counts as a new one
	farewell time.Duration
}

const copyBuffer = 256 << 10

// New makes a client.
func New(opts Options) *Client {
	if opts.Retries == 0 {
		opts.Retries = 5
	}
	if opts.Backoff == 0 {
		opts.Backoff = 500 * time.Millisecond
	}
	if opts.RangeSize == 0 {
		opts.RangeSize = 64 << 20
	}
	if opts.Ranges == 0 {
		opts.Ranges = 3
	}
	c := &Client{
		direct: Direct(), opts: opts, agent: opts.UserAgent, log: opts.Logger, hosts: opts.Hosts,
		tokens: &tokens{known: map[string]*held{}}, wants: map[string]challenge{}, plain: map[string]time.Time{}, gone: map[string]time.Time{},
		tuning: tuning{
			head: time.Minute, answer: 5 * time.Minute, window: 30 * time.Second, floor: 16 << 10, segment: 8 << 20, fast: 100 << 20, progress: 1 << 20,
			farewell: 5 * time.Second,
		},
		room: make(chan struct{}, 9),
	}
	c.buffers.New = func() any { b := make([]byte, copyBuffer); return &b }
	if c.agent == "" {
		c.agent = clientID
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.hosts == nil {
		c.hosts = c.direct
	}
	if ways, ok := c.hosts.(Ways); ok {
		c.ways = ways
	}
	return c
}

// CloseIdle closes the connections that nobody uses; by themselves they last a minute and a half.
func (c *Client) CloseIdle() {
	c.direct.CloseIdle()
	if hosts, ok := c.hosts.(interface{ CloseIdle() }); ok {
		hosts.CloseIdle()
	}
}

// Direct reaches each registry at its own name.
func Direct() *Table {
	proxy, err := ProxyFrom(Proxies{})
	if err != nil {
		// The environment names a proxy that is none: each request says so.
		proxy = func(*http.Request) (*url.URL, error) { return nil, err }
	}
	return newTable(HostsOptions{Proxy: proxy})
}

// Repository finds a repository's endpoints. It asks nobody yet.
func (c *Client) Repository(ref reference.Ref, creds Credentials) (Repository, error) {
	domain := ref.Domain
	if domain == "" {
		domain = reference.DefaultDomain
	}
	if ref.Path == "" {
		return nil, errs.New(errs.Invalid, "registry %s: no repository named", domain)
	}
	sites, err := c.sites(domain, ref.Path, creds)
	if err != nil {
		return nil, err
	}
	return &repository{c: c, ref: ref, sites: sites, gave: map[digest.Digest]*site{}}, nil
}

func (c *Client) sites(domain, path string, creds Credentials) ([]*site, error) {
	endpoints, err := c.hosts.Endpoints(domain, path)
	if err != nil {
		return nil, err
	}
	var sites []*site
	for _, ep := range endpoints {
		s, err := c.site(ep, domain, path, creds)
		if err != nil && ep.Mirror && len(endpoints) > 1 {
			c.log.Warn("registry mirror passed over", "mirror", ep.URL, "error", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		sites = append(sites, s)
	}
	if len(sites) == 0 {
		return nil, errs.New(errs.Invalid, "registry %s: no endpoint is configured for it", domain)
	}
	return sites, nil
}

// home is the registry itself, which alone takes what is written.
func home(sites []*site) (*site, error) {
	s := sites[len(sites)-1]
	if s.ep.Mirror {
		return nil, errs.New(errs.Forbidden, "registry %s: the engine's settings allow its mirrors only, for reading", s.domain)
	}
	return s, nil
}

// own gives the registry of a domain, for what is asked of no repository.
func (c *Client) own(domain string, creds Credentials) (*site, error) {
	sites, err := c.sites(domain, "", creds)
	if err != nil {
		return nil, err
	}
	return home(sites)
}

// Login proves credentials: it asks as anybody, learns what is wanted, and asks again with that. A token is made anew, for the password may have
// changed since one was kept.
func (c *Client) Login(ctx context.Context, server string, creds Credentials) (string, error) {
	s, err := c.own(serverDomain(server), creds)
	if err != nil {
		return "", err
	}
	ping := &call{method: http.MethodGet, path: "/v2/"}
	resp, err := s.send(ctx, &call{method: ping.method, path: ping.path, bare: true})
	if err != nil {
		return "", err
	}
	ch, ok := choose(challenges(resp.Header), creds)
	if resp.StatusCode != http.StatusUnauthorized {
		return "", s.loginResult(resp) // it asks for nothing
	}
	if !ok || ch.scheme != "bearer" || creds.RegistryToken != "" {
		s.learn(resp, proof{}, nil)
		drop(resp)
		if resp, err = s.send(ctx, ping); err != nil {
			return "", err
		}
		return "", s.loginResult(resp)
	}
	drop(resp)
	realm, err := s.realm(ch)
	if err != nil {
		return "", err
	}
	g, err := s.fetchToken(ctx, ask{realm: realm, service: ch.params["service"], scopes: mergeScopes(nil, strings.Fields(ch.params["scope"])), creds: creds, offline: true})
	if err != nil {
		return "", errs.New(kindOfError(err), "%s: %w", where(ping.method, s.at(ping)), err)
	}
	if g.token != "" {
		if resp, err = s.follow(ctx, ping, s.at(ping), "Bearer "+g.token); err == nil {
			err = s.loginResult(resp)
		}
	}
	if err != nil {
		return "", err
	}
	return g.refresh, nil
}

// loginResult is what the answer to a login means.
func (s *site) loginResult(resp *http.Response) error {
	if resp.StatusCode < 400 {
		drop(resp)
		return nil
	}
	err := s.refusal(resp)
	return errs.New(err.kind, "%s: %w", where(resp.Request.Method, resp.Request.URL), err)
}

func kindOfError(err error) error {
	if e, ok := asError(err); ok {
		return e.kind
	}
	return errs.Unavailable
}

// serverDomain understands what people and configuration files call a registry: "", a host, or a URL. Docker Hub has several names.
func serverDomain(server string) string {
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	server, _, _ = strings.Cut(server, "/")
	switch strings.ToLower(server) {
	case "", "index.docker.io", hubHost, reference.DefaultDomain:
		return reference.DefaultDomain
	}
	return server
}

const maxPage = 16 << 20

// page reads an answer of JSON, bounded.
func page(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, errs.New(errs.Unavailable, "%s: %w", where(resp.Request.Method, resp.Request.URL), err)
	}
	if int64(len(raw)) > limit {
		return nil, refuse(errs.Unavailable, "%s: answer has more than %d bytes: refused", where(resp.Request.Method, resp.Request.URL), limit)
	}
	return raw, nil
}

// parseURL reads a link that a server gave, relative to where it was given.
func parseURL(base *url.URL, link string) (*url.URL, error) {
	if len(link) > 16<<10 {
		return nil, errs.New(errs.Unavailable, "link of %d bytes", len(link))
	}
	u, err := base.Parse(link)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "link %q cannot be read", oneLine(link))
	}
	u.Fragment = ""
	return u, nil
}
