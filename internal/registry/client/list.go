package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// Bounds of lists.
const (
	maxNames  = 1 << 20
	maxPages  = 1 << 14
	perPage   = "1000"
	searchMax = 100
	searchDef = 25
)

// Tags lists all tags. The registry itself is asked first: a mirror may know only some.
func (r *repository) Tags(ctx context.Context) ([]string, error) {
	order := append([]*site{r.sites[len(r.sites)-1]}, r.sites[:len(r.sites)-1]...)
	var first error
	for _, s := range order {
		if err := s.named(); err != nil {
			return nil, err
		}
		tags, err := s.names(ctx, "/v2/"+s.path+"/tags/list", s.pull(), "tags", reference.ValidTag)
		if err == nil || ctx.Err() != nil {
			return tags, err
		}
		if first == nil {
			first = err
		}
		if e, ok := asError(err); ok && e.Status == http.StatusNotFound {
			break // it knows that there is no such repository
		}
	}
	return nil, pullError(first, "", r.ref.FamiliarName())
}

// Catalog lists the repositories of a registry.
func (c *Client) Catalog(ctx context.Context, domain string, creds Credentials) ([]string, error) {
	s, err := c.own(serverDomain(domain), creds)
	if err != nil {
		return nil, err
	}
	return s.names(ctx, "/v2/_catalog", []string{"registry:catalog:*"}, "repositories", func(name string) bool {
		_, err := reference.Parse("localhost/" + name)
		return err == nil
	})
}

// names reads a list with all its pages (RFC 8288, rel="next"). Names that no tag or repository can have are left out.
func (s *site) names(ctx context.Context, path string, scopes []string, key string, valid func(string) bool) ([]string, error) {
	c := &call{method: http.MethodGet, path: path, query: url.Values{"n": {perPage}}, scopes: scopes}
	var all []string
	seen := map[string]bool{}
	for range maxPages {
		resp, err := s.do(ctx, c)
		if err != nil {
			return nil, err
		}
		at := resp.Request.URL
		raw, err := page(resp, maxPage)
		if err != nil {
			return nil, err
		}
		var out map[string]json.RawMessage
		var list []string
		err = json.Unmarshal(raw, &out)
		if err == nil && len(out[key]) > 0 {
			err = json.Unmarshal(out[key], &list)
		}
		if err != nil {
			return nil, refuse(errs.Unavailable, "%s: answer is not a list of %s", where(c.method, at), key)
		}
		for _, name := range list {
			if valid(name) {
				all = append(all, name)
			}
		}
		if len(all) > maxNames {
			return nil, refuse(errs.Unavailable, "%s: more than %d %s: refused", where(c.method, at), maxNames, key)
		}
		next, err := s.nextPage(at, resp.Header, seen)
		if err != nil {
			return nil, err
		}
		if next == nil {
			slices.Sort(all) // some registries keep no order
			return slices.Compact(all), nil
		}
		c = &call{method: http.MethodGet, url: next, scopes: scopes}
	}
	return nil, refuse(errs.Unavailable, "registry %s: list of %s does not end", s.domain, key)
}

// nextPage finds the link to the next page. It stays at the registry, and no page comes twice.
func (s *site) nextPage(at *url.URL, h http.Header, seen map[string]bool) (*url.URL, error) {
	seen[at.RequestURI()] = true
	link := nextLink(h.Values("Link"))
	if link == "" {
		return nil, nil
	}
	next, err := parseURL(at, link)
	if err != nil {
		return nil, refuse(errs.Unavailable, "registry %s: next page: %w", s.domain, err)
	}
	if strings.EqualFold(next.Host, at.Host) {
		next.Scheme = at.Scheme // a proxy that ends TLS
	}
	if !sameOrigin(next, at) {
		return nil, refuse(errs.Unavailable, "registry %s: next page is at another host, %s: refused", s.domain, next.Host)
	}
	if seen[next.RequestURI()] {
		return nil, refuse(errs.Unavailable, "registry %s: pages go in a circle: refused", s.domain)
	}
	return next, nil
}

// nextLink finds the target of rel="next" in Link headers:
//
//	link = "<" URI ">" *( ";" param ) *( "," link )
func nextLink(values []string) string {
	for _, v := range values {
		p := &scanner{rest: v}
		for {
			p.skip(" \t,")
			if !p.next('<') {
				break
			}
			target, rest, ok := strings.Cut(p.rest, ">")
			if !ok {
				break
			}
			p.rest = rest
			if linkRel(p) {
				return target
			}
		}
	}
	return ""
}

// linkRel reads the parameters of a link and tells whether they make it the next page.
func linkRel(p *scanner) bool {
	next, seen := false, false
	for {
		p.skip(" \t")
		if !p.next(';') {
			return next
		}
		p.skip(" \t")
		name := p.token()
		p.skip(" \t")
		if name == "" || !p.next('=') {
			continue // a parameter without a value, or an empty one
		}
		value, ok := p.linkValue()
		if !ok {
			return next
		}
		if strings.EqualFold(name, "rel") && !seen {
			seen = true
			for word := range strings.FieldsSeq(value) {
				next = next || strings.EqualFold(word, "next")
			}
		}
	}
}

// linkValue is value, but a semicolon ends one without quotes.
func (p *scanner) linkValue() (string, bool) {
	p.skip(" \t")
	if p.rest != "" && p.rest[0] == '"' {
		return p.value()
	}
	return p.token(), true
}

// Search asks the v1 search API. A term may begin with the registry ("registry.example:5000/word"); else Hub is asked.
func (c *Client) Search(ctx context.Context, term string, limit int, creds Credentials) ([]SearchResult, error) {
	if limit == 0 {
		limit = searchDef
	}
	if limit < 1 || limit > searchMax {
		return nil, errs.New(errs.Invalid, "limit %d is outside the range of [1, %d]", limit, searchMax)
	}
	domain, words := splitTerm(term)
	if words == "" {
		return nil, errs.New(errs.Invalid, "search: no term given")
	}
	s, err := c.own(domain, creds)
	if err != nil {
		return nil, err
	}
	q := &call{method: http.MethodGet, path: "/v1/search", query: url.Values{"q": {words}, "n": {strconv.Itoa(limit)}}}
	if s.base.Host == hubHost {
		s.base.Host = hubIndex
	}
	resp, err := s.do(ctx, q)
	if err != nil {
		return nil, err
	}
	at := resp.Request.URL
	raw, err := page(resp, maxPage)
	if err != nil {
		return nil, err
	}
	return searchResults(raw, where(q.method, at), limit)
}

const hubIndex = "index.docker.io"

func searchResults(raw []byte, at string, limit int) ([]SearchResult, error) {
	var out struct {
		Results []struct {
			Name        string `json:"name"`
			Description string `json:"description"`
			Stars       int    `json:"star_count"`
			Official    bool   `json:"is_official"`
			Automated   bool   `json:"is_automated"`
		} `json:"results"`
	}
	if json.Unmarshal(raw, &out) != nil {
		return nil, refuse(errs.Unavailable, "%s: answer is not a search result", at)
	}
	var list []SearchResult
	for _, r := range out.Results[:min(len(out.Results), limit)] {
		list = append(list, SearchResult{Name: oneLine(r.Name), Description: oneLine(r.Description), Stars: r.Stars, Official: r.Official, Automated: r.Automated})
	}
	return list, nil
}

// splitTerm finds the registry in a search term. Hub's official images are found without their "library/".
func splitTerm(term string) (domain, words string) {
	first, rest, ok := strings.Cut(term, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		domain, words = serverDomain(first), rest
	} else {
		domain, words = reference.DefaultDomain, term
	}
	if domain == reference.DefaultDomain {
		words = strings.TrimPrefix(words, "library/")
	}
	return domain, strings.TrimSpace(words)
}
