package client

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// proof is what a request says about the caller.
type proof struct {
	header string
	token  string // the bearer token in it
	key    string // where the token is kept
	fresh  bool
}

func basic(creds Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(creds.Username+":"+creds.Password))
}

// proof makes what the registry asked for when it was last asked.
func (s *site) proof(ctx context.Context, scopes []string) (proof, error) {
	if s.creds.RegistryToken != "" {
		if !headerSafe(s.creds.RegistryToken) {
			return proof{}, errs.New(errs.Invalid, "registry %s: the registry token cannot be sent in a header", s.domain)
		}
		return proof{header: "Bearer " + s.creds.RegistryToken}, nil
	}
	s.c.mu.Lock()
	ch := s.c.wants[s.base.Host]
	s.c.mu.Unlock()
	switch {
	case ch.scheme == "basic" && s.creds.Username != "":
		return proof{header: basic(s.creds)}, nil
	case ch.scheme == "bearer":
		return s.bearer(ctx, ch, scopes)
	}
	return proof{}, nil
}

func (s *site) bearer(ctx context.Context, ch challenge, scopes []string) (proof, error) {
	realm, err := s.realm(ch)
	if err != nil {
		return proof{}, err
	}
	s.mu.Lock()
	extra := slices.Clone(s.extra)
	s.mu.Unlock()
	a := ask{registry: s.base.Host, realm: realm, service: ch.params["service"], scopes: mergeScopes(scopes, extra), creds: s.creds}
	key := a.key()
	g, fresh, err := s.c.tokens.get(ctx, key, func(ctx context.Context) (g grant, err error) {
		defer task.Contain(s.c.log, "token of "+a.registry, &err)
		return s.fetchToken(ctx, a)
	})
	if err != nil {
		return proof{}, err
	}
	if g.token == "" {
		return proof{}, errs.New(errs.Unauthorized, "token service %s gave no token", realm.Host)
	}
	return proof{header: "Bearer " + g.token, token: g.token, key: key, fresh: fresh}, nil
}

// realm is the token service. It may be anywhere that may see the credentials of this registry: over https, unless the registry is insecure.
func (s *site) realm(ch challenge) (*url.URL, error) {
	u, err := url.Parse(ch.params["realm"])
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
		return nil, refuse(errs.Unavailable, "registry %s names no usable token service: realm %q", s.domain, oneLine(ch.params["realm"]))
	}
	if u.Scheme == "http" && s.root().Scheme == "https" && !s.ep.PlainToo {
		return nil, refuse(errs.Unavailable, "registry %s names a token service without TLS, http://%s: refused", s.domain, u.Host)
	}
	u.Fragment = ""
	return u, nil
}

// learn reads the challenges of a 401 and tells whether asking again can help.
func (s *site) learn(resp *http.Response, used proof, scopes []string) bool {
	if s.creds.RegistryToken != "" {
		return false
	}
	ch, ok := choose(challenges(resp.Header), s.creds)
	if !ok {
		return false
	}
	added := false
	if ch.scheme == "bearer" {
		added = s.demand(ch.params["scope"], scopes)
	}
	s.c.mu.Lock()
	before := s.c.wants[s.base.Host]
	if len(s.c.wants) >= maxHeld {
		clear(s.c.wants) // everybody is asked once more
	}
	s.c.wants[s.base.Host] = challenge{ch.scheme, map[string]string{"realm": ch.params["realm"], "service": ch.params["service"]}}
	s.c.mu.Unlock()
	if ch.scheme == "basic" {
		return used.header != basic(s.creds)
	}
	if used.token == "" || before.params["realm"] != ch.params["realm"] || before.params["service"] != ch.params["service"] {
		return true
	}
	s.c.tokens.forget(used.key, used.token)
	return !used.fresh || added
}

// unlearn makes the next call ask the registry anew what it wants.
func (s *site) unlearn() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	delete(s.c.wants, s.base.Host)
}

// choose takes the best of several challenges: tokens before passwords.
func choose(all []challenge, creds Credentials) (challenge, bool) {
	for _, ch := range all {
		if ch.scheme == "bearer" && ch.params["realm"] != "" {
			return ch, true
		}
	}
	for _, ch := range all {
		if ch.scheme == "basic" && creds.Username != "" {
			return ch, true
		}
	}
	return challenge{}, false
}

// demand remembers scopes that the registry wants and we would not ask for (a registry that names its repositories otherwise).
func (s *site) demand(scope string, ours []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := mergeScopes(ours, s.extra)
	want := mergeScopes(have, strings.Fields(scope))
	if slices.Equal(have, want) || len(s.extra) >= maxParams || len(scope) > maxWords {
		return false
	}
	s.extra = append(s.extra, strings.Fields(scope)...)
	return true
}

// refusal makes an error of an answer. Who was asked for a password and had none hears Docker's words for that.
func (s *site) refusal(resp *http.Response) *Error {
	e := refusal(resp, s.secrets(resp))
	if e.Status == http.StatusUnauthorized && s.creds == (Credentials{}) && s.own(resp.Request.URL) {
		ch, ok := choose(challenges(resp.Header), Credentials{Username: "anybody"})
		e.noPassword = ok && ch.scheme == "basic"
	}
	return e
}

// secrets are what must not be shown, whoever says it.
func (s *site) secrets(resp *http.Response) []string {
	list := []string{s.creds.Password, s.creds.IdentityToken, s.creds.RegistryToken}
	if _, proof, ok := strings.Cut(resp.Request.Header.Get("Authorization"), " "); ok {
		list = append(list, proof)
	}
	return list
}
