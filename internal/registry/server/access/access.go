// Package access decides who may do what in a registry: users from an htpasswd file, rights by rules, tokens of our own.
//
// It owns the signing keys' folder and nothing else on disk. A Guard answers the registry's question for each request; its token service (ServeHTTP)
// speaks the distribution token protocol:
//
//	client                                registry
//	  │ GET /v2/app/manifests/1              │
//	  │─────────────────────────────────────▶│  401, Bearer realm="…/token",service="…",scope="repository:app:pull"
//	  │ GET /token?service=…&scope=…         │
//	  │ Authorization: Basic user:password   │  (or none: what anybody may; or POST with a refresh token)
//	  │─────────────────────────────────────▶│  {"token": …}  the scopes asked for, cut down to what the user may
//	  │ GET /v2/app/manifests/1              │
//	  │ Authorization: Bearer …              │
//	  │─────────────────────────────────────▶│  200: the token says so, and the rules of this moment still do
//
// It promises: passwords are compared with bcrypt only, an unknown user costs as long as a wrong password, and both cost more each time; what no rule
// allows is refused; a token counts only with our own signature by a key that is still here, for this service, in its time, for a user who is still
// there; a refresh token ends with the password it was given for; no secret is in an error or a log line.
package access

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// Mode is how clients are asked to prove who they are. Both kinds of proof are taken in both modes.
type Mode string

// The modes.
const (
	Token Mode = "token"
	Basic Mode = "basic"
)

// Options describe a guard. Users, Rights and Keys are needed.
type Options struct {
	Users  *Htpasswd
	Rights *Rights
	Keys   *Keys
	Mode   Mode // "" is Token
	// URL is what clients reach this registry at; "" is http or https (TLS) at the host they asked.
	URL string
	TLS bool
	// Service is the name that tokens are for.
	Service string
	// TokenLife and RefreshLife are how long tokens count; 0 is 5 minutes and 90 days.
	TokenLife, RefreshLife time.Duration
	Logger                 *slog.Logger
	Now                    func() time.Time // nil is time.Now
}

// Guard is a server.Guard, and the token service as an http.Handler.
type Guard struct {
	opts     Options
	log      *slog.Logger
	throttle *throttle
	proved   *memo[Identity] // of Authorization headers that were checked a moment ago
	crypt    chan struct{}   // bcrypt is made to be slow: so many at a time
}

var _ server.Guard = (*Guard)(nil)

// New makes a guard.
func New(opts Options) (*Guard, error) {
	if opts.Users == nil || opts.Rights == nil || opts.Keys == nil {
		return nil, errs.New(errs.Invalid, "a guard needs users, rights and keys")
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.TokenLife == 0 {
		opts.TokenLife = 5 * time.Minute
	}
	if opts.RefreshLife == 0 {
		opts.RefreshLife = 90 * 24 * time.Hour
	}
	if opts.Mode == "" {
		opts.Mode = Token
	}
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g := &Guard{opts: opts, log: log, throttle: newThrottle(opts.Now), crypt: make(chan struct{}, cryptAtATime)}
	g.proved = newMemo[Identity](opts.Now)
	return g, nil
}

// Identity is who sent a request. The zero value is anybody.
type Identity struct {
	User string
	// token tells that rights are bounded by scopes, as a token carries them.
	token  bool
	scopes []Scope
	until  time.Time
}

type addrKey struct{}

// WithAddr notes the address a request came from, by which failed logins are slowed.
func WithAddr(ctx context.Context, addr netip.Addr) context.Context {
	return context.WithValue(ctx, addrKey{}, addr)
}

func addrOf(ctx context.Context) netip.Addr {
	addr, _ := ctx.Value(addrKey{}).(netip.Addr)
	return addr
}

// Identify checks an Authorization header; errs.Unauthorized. An empty one is anybody.
func (g *Guard) Identify(ctx context.Context, authorization string) (Identity, error) {
	kind, proof, _ := strings.Cut(authorization, " ")
	proof = strings.TrimSpace(proof)
	switch {
	case authorization == "":
		return Identity{}, nil
	case strings.EqualFold(kind, "basic"):
		return g.basic(ctx, proof)
	case strings.EqualFold(kind, "bearer"):
		return g.bearer(proof)
	}
	return Identity{}, errs.New(errs.Unauthorized, "unknown kind of authorization")
}

func (g *Guard) basic(ctx context.Context, proof string) (Identity, error) {
	raw, err := base64.StdEncoding.DecodeString(proof)
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || user == "" {
		return Identity{}, errs.New(errs.Unauthorized, "the authorization is no user and password")
	}
	return g.login(ctx, user, password)
}

func (g *Guard) bearer(token string) (Identity, error) {
	key := g.proved.key("bearer", token)
	id, known := g.proved.get(key)
	if !known {
		claims, err := g.opts.Keys.verify(token, accessToken, g.opts.Service, g.opts.Now())
		if err != nil {
			return Identity{}, errs.As(errs.Unauthorized, err)
		}
		id = Identity{User: claims.Subject, token: true, scopes: claims.Access, until: time.Unix(claims.Expires, 0)}
		g.proved.put(key, id, id.until)
	}
	if id.User != "" && !g.opts.Users.Has(id.User) {
		return Identity{}, errs.New(errs.Unauthorized, "the token's user is gone")
	}
	return id, nil
}

// Allow answers for one request of the registry.
func (g *Guard) Allow(ctx context.Context, authorization, repository string, actions ...server.Action) error {
	id, err := g.Identify(ctx, authorization)
	if err != nil {
		return err
	}
	if repository == "" && len(actions) == 0 { // /v2/: who are you?
		if authorization == "" {
			return errs.New(errs.Unauthorized, "authentication required")
		}
		return nil
	}
	for _, action := range actions {
		if !g.opts.Rights.May(id.User, repository, action) {
			if id.User == "" {
				return errs.New(errs.Unauthorized, "authentication required")
			}
			return errs.New(errs.Forbidden, "requested access to the resource is denied")
		}
		// podman asks for the catalogue with a token that it asked for without any scope: it says who it is, and bounds nothing.
		if unbounded := repository == "" && len(id.scopes) == 0; id.token && !unbounded && !covers(id.scopes, repository, action) {
			return errs.New(errs.Unauthorized, "the token is not for this: insufficient scope")
		}
	}
	return nil
}

// May tells whether somebody who was identified may do one thing; a token's scopes do not matter (the search).
func (g *Guard) May(id Identity, repository string, action server.Action) bool {
	return g.opts.Rights.May(id.User, repository, action)
}

// User names who is asking, for logs: only what was proved a moment ago counts.
func (g *Guard) User(authorization string) string {
	kind, proof, _ := strings.Cut(authorization, " ")
	proof = strings.TrimSpace(proof)
	switch {
	case strings.EqualFold(kind, "bearer"):
		id, _ := g.proved.get(g.proved.key("bearer", proof))
		return id.User
	case strings.EqualFold(kind, "basic"):
		raw, err := base64.StdEncoding.DecodeString(proof)
		user, password, _ := strings.Cut(string(raw), ":")
		if err != nil {
			return ""
		}
		id, _ := g.remembered(user, password)
		return id.User
	}
	return ""
}

// Challenge is the WWW-Authenticate header for a refused request.
func (g *Guard) Challenge(host, repository string, actions ...server.Action) string {
	if g.opts.Mode == Basic {
		return fmt.Sprintf("Basic realm=%q", g.opts.Service)
	}
	challenge := fmt.Sprintf("Bearer realm=%q,service=%q", g.realm(host), g.opts.Service)
	if s := challengeScope(repository, actions); s != "" {
		challenge += fmt.Sprintf(",scope=%q", s)
	}
	return challenge
}

func (g *Guard) realm(host string) string {
	if g.opts.URL != "" {
		return strings.TrimSuffix(g.opts.URL, "/") + "/token"
	}
	scheme := "http"
	if g.opts.TLS {
		scheme = "https"
	}
	// The host came from the client: only what can stand in a host goes back.
	host = strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f && !strings.ContainsRune(`"\/?#@<>,`, r) {
			return r
		}
		return -1
	}, host)
	return scheme + "://" + host + "/token"
}

func challengeScope(repository string, actions []server.Action) string {
	switch {
	case len(actions) == 0:
		return ""
	case repository == "":
		return "registry:catalog:*"
	}
	words := make([]string, 0, len(actions)+1)
	for _, a := range actions {
		words = append(words, string(a))
	}
	// Who pushes looks first what is there.
	if slices.Contains(actions, server.Push) && !slices.Contains(actions, server.Pull) {
		words = append([]string{string(server.Pull)}, words...)
	}
	return "repository:" + repository + ":" + strings.Join(words, ",")
}

// login proves a user's password.
func (g *Guard) login(ctx context.Context, user, password string) (Identity, error) {
	if id, ok := g.remembered(user, password); ok {
		return id, nil
	}
	addr := addrOf(ctx)
	settle, err := g.throttle.admit(ctx, user, addr)
	if err != nil {
		return Identity{}, err
	}
	select {
	case g.crypt <- struct{}{}:
	case <-ctx.Done():
		settle(false)
		return Identity{}, ctx.Err()
	}
	hash, err := g.opts.Users.verify(user, password)
	<-g.crypt
	settle(err == nil)
	if err != nil {
		if errors.Is(err, errs.Unauthorized) {
			g.log.Warn("login refused", "user", user, "addr", addr.String())
		}
		return Identity{}, err
	}
	id := Identity{User: user}
	g.proved.put(g.proved.key("basic", user, password, hash), id, g.opts.Now().Add(rememberLogin))
	return id, nil
}

// remembered finds a login that was proved a moment ago. The stored hash is part of its key: a changed password is asked anew.
func (g *Guard) remembered(user, password string) (Identity, bool) {
	hash, ok := g.opts.Users.hash(user)
	if !ok {
		return Identity{}, false
	}
	return g.proved.get(g.proved.key("basic", user, password, hash))
}

const (
	rememberLogin = 5 * time.Minute
	cryptAtATime  = 2
)
