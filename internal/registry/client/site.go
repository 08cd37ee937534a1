package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"corten.dev/corten/internal/errs"
)

// site is one endpoint as one caller sees it: the place, the repository's path there, and who asks.
type site struct {
	c      *Client
	ep     Endpoint
	base   *url.URL // with the scheme that was configured
	domain string
	path   string // of the repository at this endpoint; "" for the registry as such
	creds  Credentials

	reached  atomic.Bool // it has answered: from now on a refused connection is an accident
	plain    atomic.Bool // it has answered by http, though https was configured: then it stays so
	noRanges atomic.Bool // it gave wrong answers to Range

	mu    sync.Mutex
	extra []string // scopes that challenges asked for beyond ours
}

// call is one request that may have to be made several times.
type call struct {
	method string
	path   string   // below the endpoint ("/v2/…"), or:
	url    *url.URL // a place that an earlier answer named
	query  url.Values
	header http.Header
	body   func(ctx context.Context) (io.ReadCloser, error) // opens the body anew for each attempt
	size   int64                                            // of the body; -1 when not known
	scopes []string
	once   bool // the caller repeats it itself
	bare   bool // say nothing about the caller
	secret bool // the body holds credentials: it goes nowhere else
	sealed bool // the answer is checked against a digest: it may come over plain http
}

func (c *Client) site(ep Endpoint, domain, path string, creds Credentials) (*site, error) {
	base, err := url.Parse(ep.URL)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" || base.User != nil || base.RawQuery != "" {
		return nil, errs.New(errs.Invalid, "registry %s: endpoint %q is not https://host[:port][/path]", domain, ep.URL)
	}
	if ep.Mirror {
		creds = Credentials{} // they were given for the registry
		if ep.Credentials != nil {
			if creds, err = ep.Credentials(); err != nil {
				return nil, err
			}
		}
	}
	if ep.Rewrite != nil && path != "" {
		path = ep.Rewrite(path)
	}
	base.Path = strings.TrimRight(base.Path, "/")
	return &site{c: c, ep: ep, base: base, domain: domain, path: path, creds: creds}, nil
}

// at gives the URL of a call.
func (s *site) at(c *call) *url.URL {
	if c.url != nil {
		u := *c.url
		return &u
	}
	u := *s.root()
	u.Path += c.path
	q := url.Values{}
	for k, v := range c.query {
		q[k] = v
	}
	if s.ep.NameSpace && (c.method == http.MethodGet || c.method == http.MethodHead) {
		q.Set("ns", s.domain)
	}
	u.RawQuery = q.Encode()
	return &u
}

// root is the endpoint with the scheme that works.
func (s *site) root() *url.URL {
	if !s.ep.PlainToo || s.base.Scheme == "http" {
		return s.base
	}
	if !s.plain.Load() && !s.c.knownPlain(s.base.Host) {
		return s.base
	}
	u := *s.base
	u.Scheme = "http"
	return &u
}

// own tells whether a URL is at the registry itself, so that it may see credentials.
func (s *site) own(u *url.URL) bool { return sameOrigin(s.root(), u) }

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && hostPort(a) == hostPort(b)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return strings.ToLower(u.Hostname()) + ":" + port
}

// do makes a call, repeats it where that can help, and gives an answer below 400. Anything else is an error.
func (s *site) do(ctx context.Context, c *call) (*http.Response, error) {
	resp, err := s.repeat(ctx, func() (*http.Response, error) { return s.send(ctx, c) }, c.once)
	if e, ok := asError(err); ok {
		e.elsewhere = !s.own(e.place)
	}
	return resp, err
}

// send makes a call with what the registry wants to know about the caller. It gives whatever answer came.
//
// The first attempt goes with what an earlier challenge taught (or with nothing). A 401 may bring a challenge, which is answered; a kept token
// that is refused is renewed once. So no call is sent more than three times, whatever a server says.
func (s *site) send(ctx context.Context, c *call) (*http.Response, error) {
	u := s.at(c)
	for attempt := 0; ; attempt++ {
		var mine proof
		if s.own(u) && !c.bare {
			var err error
			if mine, err = s.proof(ctx, c.scopes); err != nil {
				s.unlearn() // the token service may have moved
				return nil, err
			}
		}
		resp, err := s.follow(ctx, c, u, mine.header)
		if err != nil {
			plain := s.fallBack(ctx, u, err)
			if plain == nil {
				return nil, err
			}
			u = plain
			attempt--
			continue
		}
		s.answered(u, resp)
		if resp.StatusCode != http.StatusUnauthorized || attempt == 2 || c.bare || !s.own(resp.Request.URL) || !s.learn(resp, mine, c.scopes) {
			return resp, nil
		}
		drop(resp)
	}
}

// plainMemory is how long it is remembered that a host has no https.
const plainMemory = 10 * time.Minute

// downgraded tells whether a URL is the endpoint by http, though https is what was configured.
func (s *site) downgraded(u *url.URL) bool {
	return s.ep.PlainToo && s.base.Scheme == "https" && u.Scheme == "http" && strings.EqualFold(u.Host, s.base.Host)
}

// fallBack decides whether a failed https request is tried by http: for insecure registries that have not yet answered. nil is no. Nothing is
// remembered before http has worked: the failure may have been an accident.
func (s *site) fallBack(ctx context.Context, u *url.URL, err error) *url.URL {
	if s.downgraded(u) {
		if !s.reached.Load() {
			s.plain.Store(false) // neither works: begin anew next time
			s.c.rememberPlain(s.base.Host, false)
		}
		return nil
	}
	if !s.ep.PlainToo || u.Scheme != "https" || !strings.EqualFold(u.Host, s.base.Host) || ctx.Err() != nil || errors.Is(err, errSource) || errors.Is(err, errSlow) {
		return nil
	}
	// What has answered stays what it is; but of two requests that set out for https at a time, one may come back when the other has found http already.
	if s.reached.Load() && !s.plain.Load() && !s.c.knownPlain(s.base.Host) {
		return nil
	}
	s.plain.Store(true)
	s.c.log.Debug("registry: no https, trying http", "host", s.base.Host, "error", err)
	plain := *u
	plain.Scheme = "http"
	return &plain
}

// answered notes that a place works. A server that takes TLS answers plain http by 400: that is no proof that it has no https.
func (s *site) answered(u *url.URL, resp *http.Response) {
	if !s.downgraded(u) {
		s.reached.Store(true)
		return
	}
	if resp.StatusCode == http.StatusBadRequest && !s.reached.Load() {
		s.plain.Store(false)
		s.c.rememberPlain(s.base.Host, false)
		return
	}
	s.reached.Store(true)
	s.plain.Store(true)
	s.c.rememberPlain(s.base.Host, true)
}

func (c *Client) knownPlain(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.plain[host]) <= plainMemory
}

func (c *Client) rememberPlain(host string, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !is {
		delete(c.plain, host)
		return
	}
	if len(c.plain) >= maxHeld {
		clear(c.plain)
	}
	c.plain[host] = time.Now()
}

const maxRedirects = 10

// follow makes one request and goes where its redirects lead. authorization goes to the first place's host only (and never from https to
// http); everything else that is sent says nothing about the caller.
func (s *site) follow(ctx context.Context, c *call, first *url.URL, authorization string) (*http.Response, error) {
	u := first
	for hop := 0; ; hop++ {
		if err := s.allowed(c, first, u); err != nil {
			return nil, err
		}
		mine := ""
		if sameOrigin(first, u) {
			mine = authorization
		}
		resp, err := s.exchange(ctx, c, u, mine)
		if err != nil {
			return nil, err
		}
		if !redirects(resp.StatusCode, c.method) {
			return resp, nil
		}
		next, err := resp.Location()
		drop(resp)
		if err != nil {
			return nil, refuse(errs.Unavailable, "%s: redirect to nowhere", where(c.method, u))
		}
		if hop == maxRedirects {
			return nil, refuse(errs.Unavailable, "%s: stopped after %d redirects", where(c.method, first), maxRedirects)
		}
		next.Fragment = ""
		u = next
	}
}

// redirects tells whether an answer sends a method elsewhere. What carries a body goes on only where the method stays.
func redirects(status int, method string) bool {
	switch status {
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
		return method == http.MethodGet || method == http.MethodHead
	}
	return false
}

// allowed tells whether a request may go to a place.
func (s *site) allowed(c *call, first, u *url.URL) error {
	switch {
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil:
		return refuse(errs.Unavailable, "registry %s leads to %q, which is no place of the web", s.domain, oneLine(u.Scheme+"://"+u.Host))
	case c.secret && !sameOrigin(first, u):
		return refuse(errs.Unavailable, "token service %s leads to %s: refused, for the identity token is not for that place", first.Host, u.Host)
	case u.Scheme == "http" && first.Scheme == "https" && !s.ep.PlainToo && !c.sealed:
		return refuse(errs.Unavailable, "registry %s leads from https to http://%s: refused", s.domain, u.Host)
	case !strings.EqualFold(u.Hostname(), s.base.Hostname()) && forbiddenHost(u.Hostname(), s.base.Hostname()):
		return refuse(errs.Unavailable, "registry %s leads to %s, an address of this host or link only: refused", s.domain, u.Host)
	}
	return nil
}

// exchange is one request and its answer.
func (s *site) exchange(ctx context.Context, c *call, u *url.URL, authorization string) (*http.Response, error) {
	own, w := s.c.watch(ctx, c.method)
	req := (&http.Request{Method: c.method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: c.header.Clone()}).WithContext(own)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("User-Agent", s.c.agent)
	req.Header.Set("Accept-Encoding", "identity") // digests are of the bytes as they are
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if c.body != nil {
		body, err := c.body(ctx)
		if err != nil {
			w.end()
			return nil, fmt.Errorf("%w: %w", errSource, err)
		}
		req.Body, req.ContentLength = &sentBody{body: body, w: w}, c.size
		if c.size == 0 {
			req.Body = http.NoBody
			if err := body.Close(); err != nil {
				w.end()
				return nil, fmt.Errorf("%w: %w", errSource, err)
			}
		}
	}
	resp, err := s.transport(u).RoundTrip(req)
	if err != nil {
		err = w.why(err)
		w.end()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, errSource) {
			return nil, err
		}
		var header tls.RecordHeaderError
		if errors.As(err, &header) && string(header.RecordHeader[:]) == "HTTP/" {
			err = http.ErrSchemeMismatch // "http: server gave HTTP response to HTTPS client"
		}
		return nil, errs.New(errs.Unavailable, "%s: %w", where(c.method, u), err)
	}
	w.answered.Store(true)
	w.stop()
	resp.Request = req
	resp.Body = &body{ReadCloser: resp.Body, w: w}
	return resp, nil
}

// transport finds the way to a place.
func (s *site) transport(u *url.URL) http.RoundTripper {
	if strings.EqualFold(u.Host, s.base.Host) {
		if s.ep.Transport != nil {
			return s.ep.Transport
		}
		return s.c.direct.way(wayKey{})
	}
	if s.c.ways != nil {
		return s.c.ways.Way(u, s.domain)
	}
	return s.c.direct.Way(u, s.domain)
}

// drop ends an answer whose body does not matter; a short one is read so that its connection can be used again.
func drop(resp *http.Response) {
	// Nothing depends on these bytes, nor on how the connection ends.
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10)
	_ = resp.Body.Close()
}
