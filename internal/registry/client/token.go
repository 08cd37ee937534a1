package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// A token service (distribution "Token Authentication Specification" and its OAuth2 form):
//
//	client                         registry                token service (the realm)
//	  | GET /v2/x/manifests/1        |                        |
//	  |----------------------------->|                        |
//	  | 401 Bearer realm, service, scope                      |
//	  |<-----------------------------|                        |
//	  | GET realm?service&scope   with Basic, or anonymous    |
//	  |   or POST refresh_token or password                   |
//	  |------------------------------------------------------>|
//	  | 200 {token, expires_in [, refresh_token]}             |
//	  |<------------------------------------------------------|
//	  | GET … Authorization: Bearer  |                        |
//	  |----------------------------->|

// grant is a bearer token.
type grant struct {
	token   string
	refresh string
	expires time.Time
}

// ask says which token is wanted, and who asks.
type ask struct {
	registry string // its host: no registry gets the token that another one has
	realm    *url.URL
	service  string
	scopes   []string
	creds    Credentials
	offline  bool // ask for a refresh token too (login)
}

func (a ask) key() string {
	h := sha256.New()
	for _, s := range append([]string{a.registry, a.realm.String(), a.service, a.creds.Username, a.creds.Password, a.creds.IdentityToken}, a.scopes...) {
		sum := sha256.Sum256([]byte(s))
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// tokens keeps tokens until they expire. One fetch of a token is under way at a time; the others wait for it. mu guards the map and what is in it.
type tokens struct {
	mu    sync.Mutex
	known map[string]*held
}

type held struct {
	grant   grant
	done    chan struct{} // closed when the fetch has ended
	err     error
	waiting int
	cancel  context.CancelFunc
}

const (
	maxHeld      = 4096
	tokenLife    = 60 * time.Second // what a token lives that does not say it (the specification's least)
	maxTokenLife = 24 * time.Hour
	maxToken     = 256 << 10
	tokenWait    = 60 * time.Second
)

// get gives the token of a key, by fetch when there is none. fresh tells that it was not kept from an earlier call.
func (t *tokens) get(ctx context.Context, key string, fetch func(context.Context) (grant, error)) (g grant, fresh bool, err error) {
	t.mu.Lock()
	h := t.known[key]
	if h != nil && h.done == nil && time.Now().Before(h.grant.expires) {
		defer t.mu.Unlock()
		return h.grant, false, nil
	}
	if h == nil || h.done == nil {
		h = t.begin(ctx, key, fetch)
	}
	h.waiting++
	done := h.done
	t.mu.Unlock()
	select {
	case <-done:
		t.mu.Lock()
		defer t.mu.Unlock()
		h.waiting--
		return h.grant, true, h.err
	case <-ctx.Done():
		t.mu.Lock()
		defer t.mu.Unlock()
		if h.waiting--; h.waiting == 0 {
			h.cancel() // nobody wants it any more
			if t.known[key] == h {
				delete(t.known, key)
			}
		}
		return grant{}, false, ctx.Err()
	}
}

// begin starts a fetch that outlives the caller as long as somebody waits. t.mu is held.
func (t *tokens) begin(ctx context.Context, key string, fetch func(context.Context) (grant, error)) *held {
	t.sweep()
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), tokenWait)
	h := &held{done: make(chan struct{}), cancel: cancel}
	t.known[key] = h
	go func() {
		defer cancel()
		g, err := fetch(own)
		t.mu.Lock()
		defer t.mu.Unlock()
		h.grant, h.err = g, err
		close(h.done)
		if t.known[key] != h {
			return
		}
		if err != nil {
			delete(t.known, key)
			return
		}
		t.known[key] = &held{grant: g}
	}()
	return h
}

// sweep makes room. t.mu is held.
func (t *tokens) sweep() {
	if len(t.known) < maxHeld {
		return
	}
	now := time.Now()
	for key, h := range t.known {
		if h.done == nil && (now.After(h.grant.expires) || len(t.known) >= maxHeld) {
			delete(t.known, key)
		}
	}
}

// forget drops a token that the registry no longer takes.
func (t *tokens) forget(key, token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.known[key]; h != nil && h.done == nil && h.grant.token == token {
		delete(t.known, key)
	}
}

// fetchToken asks the token service. An identity token goes by POST, a password by GET, which every service knows.
func (s *site) fetchToken(ctx context.Context, a ask) (grant, error) {
	if a.creds.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.creds.IdentityToken}}
		return s.postToken(ctx, a, form)
	}
	q := a.realm.Query()
	if a.service != "" {
		q.Set("service", a.service)
	}
	for _, scope := range a.scopes {
		q.Add("scope", scope)
	}
	authorization := ""
	if a.creds.Username != "" {
		q.Set("account", a.creds.Username)
		authorization = basic(a.creds)
	}
	if a.offline {
		q.Set("offline_token", "true")
		q.Set("client_id", clientID)
	}
	u := *a.realm
	u.RawQuery = q.Encode()
	return s.tokenCall(ctx, &call{method: http.MethodGet, url: &u}, authorization)
}

func (s *site) postToken(ctx context.Context, a ask, form url.Values) (grant, error) {
	form.Set("client_id", clientID)
	form.Set("service", a.service)
	if len(a.scopes) > 0 {
		form.Set("scope", strings.Join(a.scopes, " "))
	}
	if a.offline {
		form.Set("access_type", "offline")
	}
	body := form.Encode()
	g, err := s.tokenCall(ctx, &call{
		method: http.MethodPost, url: a.realm, size: int64(len(body)), secret: true,
		header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		body:   func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil },
	}, "")
	var refused *Error
	if a.creds.Username != "" && a.creds.Password != "" && errors.As(err, &refused) && (refused.Status == http.StatusNotFound || refused.Status == http.StatusMethodNotAllowed) {
		a.creds.IdentityToken = "" // a service that knows no POST takes the password
		return s.fetchToken(ctx, a)
	}
	return g, err
}

const clientID = "corten"

// tokenCall makes one request to a token service. Its redirects are followed like all others, and take no credentials to another host.
func (s *site) tokenCall(ctx context.Context, c *call, authorization string) (grant, error) {
	resp, err := s.repeat(ctx, func() (*http.Response, error) { return s.follow(ctx, c, c.url, authorization) })
	if err != nil {
		return grant{}, err
	}
	defer resp.Body.Close()
	var out struct {
		Token   string  `json:"token"`
		Access  string  `json:"access_token"`
		Refresh string  `json:"refresh_token"`
		Expires float64 `json:"expires_in"`
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 2*maxToken+1))
	if err != nil {
		return grant{}, errs.New(errs.Unavailable, "token service %s: %w", c.url.Host, err)
	}
	// The decoder's error is left out: it may quote a token.
	if json.Unmarshal(raw, &out) != nil {
		return grant{}, errs.New(errs.Unavailable, "token service %s gave no token: its answer is not valid JSON", c.url.Host)
	}
	g := grant{token: out.Token, refresh: out.Refresh}
	if g.token == "" {
		g.token = out.Access
	}
	if g.token == "" && g.refresh == "" {
		return grant{}, errs.New(errs.Unauthorized, "token service %s gave no token: authorization server did not include a token in the response", c.url.Host)
	}
	if !headerSafe(g.token) || len(g.token) > maxToken || len(g.refresh) > maxToken {
		return grant{}, errs.New(errs.Unavailable, "token service %s gave a token that cannot be sent", c.url.Host)
	}
	g.expires = time.Now().Add(lifetime(out.Expires))
	return g, nil
}

// lifetime is how long a token is used: shorter than it lives, since answers take time and clocks differ.
func lifetime(seconds float64) time.Duration {
	life := tokenLife
	if seconds > 0 && seconds < maxTokenLife.Seconds() {
		life = time.Duration(seconds * float64(time.Second))
	} else if seconds > 0 {
		life = maxTokenLife
	}
	return life - min(life/4, 10*time.Second)
}

// headerSafe tells whether s can stand in a header.
func headerSafe(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// mergeScopes puts the actions on one thing together, in a stable order, so that equal wants have equal tokens.
func mergeScopes(lists ...[]string) []string {
	actions := map[string][]string{}
	for _, list := range lists {
		for _, scope := range list {
			i := strings.LastIndexByte(scope, ':')
			if i < 0 {
				continue
			}
			for action := range strings.SplitSeq(scope[i+1:], ",") {
				if action != "" && !slices.Contains(actions[scope[:i]], action) {
					actions[scope[:i]] = append(actions[scope[:i]], action)
				}
			}
		}
	}
	out := make([]string, 0, len(actions))
	for thing, list := range actions {
		slices.Sort(list)
		out = append(out, thing+":"+strings.Join(list, ","))
	}
	slices.Sort(out)
	return out
}
