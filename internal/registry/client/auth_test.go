package client

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

// fixed are the endpoints of every repository.
type fixed struct {
	list []Endpoint
	way  http.RoundTripper
}

func (f fixed) Endpoints(string, string) ([]Endpoint, error)    { return f.list, nil }
func (f fixed) Way(u *url.URL, domain string) http.RoundTripper { return f.way }

// served is a server for a client under test: everything that arrives is kept.
type served struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
}

func serve(t testing.TB, tls bool, h http.HandlerFunc) *served {
	t.Helper()
	s := &served{}
	all := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Clone(r.Context()))
		s.mu.Unlock()
		h(w, r)
	})
	if tls {
		s.Server = httptest.NewTLSServer(all)
	} else {
		s.Server = httptest.NewServer(all)
	}
	t.Cleanup(s.Close)
	return s
}

func (s *served) count(match func(*http.Request) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.seen {
		if match(r) {
			n++
		}
	}
	return n
}

func (s *served) hosts() fixed {
	return fixed{[]Endpoint{{URL: s.URL, Transport: s.Client().Transport}}, s.Client().Transport}
}

const emptyManifest = `{"schemaVersion":2,"mediaType":"` + manifest.OCIIndex + `","manifests":[]}`

func giveManifest(w http.ResponseWriter, raw string) {
	w.Header().Set("Content-Type", manifest.OCIIndex)
	w.Header().Set("Docker-Content-Digest", string(digest.FromString(raw)))
	fmt.Fprint(w, raw)
}

func refuseJSON(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// tokenRegistry wants bearer tokens; the token service is at /token of the same server, and its tokens are the scopes it was asked for.
type tokenRegistry struct {
	*served
	life    atomic.Int64 // seconds
	valid   atomic.Pointer[string]
	granted atomic.Int64
}

func newTokenRegistry(t testing.TB) *tokenRegistry {
	reg := &tokenRegistry{}
	reg.life.Store(300)
	reg.served = serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			reg.token(w, r)
			return
		}
		if want := reg.valid.Load(); want == nil || r.Header.Get("Authorization") != "Bearer "+*want {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+reg.URL+`/token",service="here, there",scope="repository:team/app:pull"`)
			refuseJSON(w, 401, "UNAUTHORIZED", "authentication required")
			return
		}
		giveManifest(w, emptyManifest)
	})
	return reg
}

func (reg *tokenRegistry) token(w http.ResponseWriter, r *http.Request) {
	user, pass, _ := r.BasicAuth()
	if r.Method == "POST" {
		if r.FormValue("grant_type") != "refresh_token" || r.FormValue("refresh_token") != "identity-token" {
			w.WriteHeader(401)
			fmt.Fprint(w, `{"error":"invalid_grant","error_description":"no such token `+r.FormValue("refresh_token")+`"}`)
			return
		}
	} else if user != "" && pass != "right-word" {
		w.WriteHeader(401)
		fmt.Fprint(w, `{"details":"incorrect username or password"}`)
		return
	}
	token := fmt.Sprintf("token-%d", reg.granted.Add(1))
	reg.valid.Store(&token)
	fmt.Fprintf(w, `{"token":%q,"expires_in":%d,"refresh_token":"fresh-identity"}`, token, reg.life.Load())
}

func isToken(r *http.Request) bool { return r.URL.Path == "/token" }

func TestOneTokenForMany(t *testing.T) {
	reg := newTokenRegistry(t)
	r := repo(t, quick(t, reg.hosts()), "reg.example/team/app", Credentials{Username: "ann", Password: "right-word"})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, err := r.Resolve(t.Context(), "1"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := reg.count(isToken); n != 1 {
		t.Errorf("%d tokens were fetched for one want", n)
	}
	if n := reg.count(func(r *http.Request) bool {
		return isToken(r) && r.FormValue("service") == "here, there" && r.FormValue("account") == "ann" && slices.Equal(r.URL.Query()["scope"], []string{"repository:team/app:pull"})
	}); n != 1 {
		t.Error("the token was not asked for as the challenge said")
	}
}

// A token that is taken back while it seems good is renewed once; a registry that never is content is not asked for ever.
func TestTokenRenewedOnce(t *testing.T) {
	reg := newTokenRegistry(t)
	r := repo(t, quick(t, reg.hosts()), "reg.example/team/app", Credentials{})
	if _, err := r.Resolve(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	other := "another"
	reg.valid.Store(&other)
	if _, err := r.Resolve(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	if n := reg.granted.Load(); n != 2 {
		t.Errorf("%d tokens, want a second one", n)
	}
	loop := serve(t, true, nil)
	loop.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		loop.mu.Lock()
		loop.seen = append(loop.seen, r)
		loop.mu.Unlock()
		if isToken(r) {
			fmt.Fprint(w, `{"token":"x"}`)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s%d",scope="repository:x%d:pull"`, loop.URL, len(loop.seen), len(loop.seen)))
		w.WriteHeader(401)
	})
	_, err := repo(t, quick(t, loop.hosts()), "reg.example/team/app", Credentials{}).Resolve(t.Context(), "1")
	if !errors.Is(err, errs.Unauthorized) {
		t.Errorf("a registry that always says 401: %v", err)
	}
	if n := loop.count(func(*http.Request) bool { return true }); n > 6 {
		t.Errorf("%d requests to a registry that always says 401", n)
	}
}

func TestShortTokens(t *testing.T) {
	reg := newTokenRegistry(t)
	reg.life.Store(-1)
	r := repo(t, quick(t, reg.hosts()), "reg.example/team/app", Credentials{})
	for range 3 {
		if _, err := r.Resolve(t.Context(), "1"); err != nil {
			t.Fatal(err)
		}
	}
	if n := reg.granted.Load(); n != 1 {
		t.Errorf("%d tokens: one without a proper life lives a minute", n)
	}
}

func TestIdentityAndRegistryTokens(t *testing.T) {
	reg := newTokenRegistry(t)
	c := quick(t, reg.hosts())
	if _, err := repo(t, c, "reg.example/team/app", Credentials{Username: "ann", IdentityToken: "identity-token"}).Resolve(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	if n := reg.count(func(r *http.Request) bool { return isToken(r) && r.Method == "POST" }); n != 1 {
		t.Errorf("%d tokens by POST", n)
	}
	_, err := repo(t, c, "reg.example/team/app", Credentials{Username: "ann", IdentityToken: "stale-secret"}).Resolve(t.Context(), "1")
	if !errors.Is(err, errs.Unauthorized) || strings.Contains(err.Error(), "stale-secret") {
		t.Errorf("an identity token that is not known: %v", err)
	}
	given := "given-token"
	reg.valid.Store(&given)
	if _, err := repo(t, c, "reg.example/team/app", Credentials{RegistryToken: given}).Resolve(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	before := reg.granted.Load()
	if _, err := repo(t, c, "reg.example/team/app", Credentials{RegistryToken: "old-token"}).Resolve(t.Context(), "1"); !errors.Is(err, errs.Unauthorized) {
		t.Errorf("a registry token that is not taken: %v", err)
	}
	if reg.granted.Load() != before {
		t.Error("a registry token was exchanged for another one")
	}
}

func TestLogin(t *testing.T) {
	reg := newTokenRegistry(t)
	c := quick(t, reg.hosts())
	for _, tc := range []struct {
		creds           Credentials
		identity, fails string
	}{
		{Credentials{Username: "ann", Password: "right-word"}, "fresh-identity", ""},
		{Credentials{Username: "ann", IdentityToken: "identity-token"}, "fresh-identity", ""},
		{Credentials{Username: "ann", Password: "wrong-word"}, "", `Get "` + reg.URL + `/v2/": unauthorized: incorrect username or password`},
	} {
		got, err := c.Login(t.Context(), "https://reg.example/v1/", tc.creds)
		if got != tc.identity || tc.fails == "" && err != nil || tc.fails != "" && (err == nil || err.Error() != tc.fails || !errors.Is(err, errs.Unauthorized)) {
			t.Errorf("login: %q %v, want %q %q", got, err, tc.identity, tc.fails)
		}
	}
}

func TestLoginNamesOfHub(t *testing.T) {
	for _, s := range []string{"", "https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io", "https://registry-1.docker.io/v2/"} {
		if d := serverDomain(s); d != "docker.io" {
			t.Errorf("%q is %q", s, d)
		}
	}
	if d := serverDomain("https://Reg.example:5000/v2/"); d != "Reg.example:5000" {
		t.Errorf("got %q", d)
	}
	list, err := Direct().Endpoints("docker.io", "library/busybox")
	if err != nil || len(list) != 1 || list[0].URL != "https://registry-1.docker.io" {
		t.Errorf("docker.io is at %v %v", list, err)
	}
}

// Docker's users know these lines.
func TestWordsOfRefusals(t *testing.T) {
	answers := map[string]http.HandlerFunc{
		"unknown": func(w http.ResponseWriter, r *http.Request) {
			refuseJSON(w, 404, "MANIFEST_UNKNOWN", "manifest unknown")
		},
		"name": func(w http.ResponseWriter, r *http.Request) {
			refuseJSON(w, 404, "NAME_UNKNOWN", "repository name not known to registry")
		},
		"denied": func(w http.ResponseWriter, r *http.Request) {
			refuseJSON(w, 403, "DENIED", "requested access to the resource is denied")
		},
		"scope": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://127.0.0.1:1/token",error="insufficient_scope"`)
			refuseJSON(w, 401, "UNAUTHORIZED", "authentication required")
		},
		"limit": func(w http.ResponseWriter, r *http.Request) {
			refuseJSON(w, 429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
		},
		"html": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(404)
			fmt.Fprint(w, "<html>"+strings.Repeat("x", 3<<20))
		},
		"huge": func(w http.ResponseWriter, r *http.Request) {
			refuseJSON(w, 400, "UNSUPPORTED", strings.Repeat("long\x1b[31m\n", 4<<10))
		},
		"plain": func(w http.ResponseWriter, r *http.Request) { http.Error(w, "out of order", http.StatusTeapot) },
		"echo": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			}
			user, pass, _ := r.BasicAuth()
			refuseJSON(w, 401, "UNAUTHORIZED", user+" may not with "+pass+" or "+r.Header.Get("Authorization"))
		},
	}
	srv := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		answers[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]](w, r)
	})
	creds := Credentials{Username: "ann", Password: "s3cr3t-word"}
	r := repo(t, quick(t, srv.hosts()), "team/app", creds)
	for _, tc := range []struct {
		tag, want string
		kind      error
	}{
		{"unknown", "manifest for team/app:unknown not found: manifest unknown: manifest unknown", errs.NotFound},
		{"name", "repository team/app not found: name unknown: repository name not known to registry", errs.NotFound},
		{"denied", "pull access denied for team/app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", errs.NotFound},
		{"limit", "toomanyrequests: You have reached your pull rate limit.", errs.Unavailable},
		{"html", `manifest for team/app:html not found: Get "` + srv.URL + `/v2/team/app/manifests/html": received unexpected HTTP status: 404 Not Found`, errs.NotFound},
		{"plain", `Get "` + srv.URL + `/v2/team/app/manifests/plain": received unexpected HTTP status: 418 I'm a teapot: out of order`, errs.Invalid},
		{"echo", "unauthorized: ann may not with *** or Basic ***", errs.Unauthorized},
	} {
		_, err := r.Resolve(t.Context(), tc.tag)
		if err == nil || err.Error() != tc.want || !errors.Is(err, tc.kind) {
			t.Errorf("%s:\n got %v\nwant %s", tc.tag, err, tc.want)
		}
	}
	_, err := r.Resolve(t.Context(), "huge")
	if err == nil || len(err.Error()) > 1100 || strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Errorf("a long message: %.200q", err)
	}
	if _, err := r.Head(t.Context(), "unknown"); err == nil || !strings.HasSuffix(err.Error(), "manifest unknown: manifest unknown") {
		t.Errorf("head: %v", err)
	}
	basicWord := base64.StdEncoding.EncodeToString([]byte("ann:s3cr3t-word"))
	if strings.Contains(fmt.Sprint(err), basicWord) {
		t.Error("shows the password")
	}
}

// A registry that refuses a token with a challenge that says why.
func TestDeniedByScope(t *testing.T) {
	var srv *served
	srv = serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		if isToken(r) {
			fmt.Fprint(w, `{"access_token":"t"}`)
			return
		}
		ch := `Bearer realm="` + srv.URL + `/token",service="s",scope="repository:team/app:pull"`
		if r.Header.Get("Authorization") != "" {
			ch += `,error="insufficient_scope"`
		}
		w.Header().Set("WWW-Authenticate", ch)
		refuseJSON(w, 401, "UNAUTHORIZED", "authentication required")
	})
	r := repo(t, quick(t, srv.hosts()), "team/app", Credentials{})
	_, err := r.Resolve(t.Context(), "1")
	want := "pull access denied for team/app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if _, err := r.Push(t.Context(), toSend([]byte("x"), digest.FromString("x"), 1)); err == nil || err.Error() != "denied: requested access to the resource is denied" || !errors.Is(err, errs.Forbidden) {
		t.Errorf("push: %v", err)
	}
	if n := srv.count(isToken); n != 2 {
		t.Errorf("%d tokens were fetched, want one for pulling and one for pushing", n)
	}
}

func TestChallenges(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`Bearer realm="https://a/b?c=d,e",service="x y",scope="repository:a:pull,push"`, `[{bearer map[realm:https://a/b?c=d,e scope:repository:a:pull,push service:x y]}]`},
		{`Basic realm="a \"quoted\" one"`, `[{basic map[realm:a "quoted" one]}]`},
		{`Negotiate abc==, Basic realm=here, Bearer realm = "z" , service=q`, `[{negotiate map[]} {basic map[realm:here]} {bearer map[realm:z service:q]}]`},
		{`Negotiate, Basic`, `[{negotiate map[]} {basic map[]}]`},
		{`BEARER Realm=https://auth.example/token,Service=reg`, `[{bearer map[realm:https://auth.example/token service:reg]}]`},
		{`realm="x"`, `[]`},
		{`Bearer realm="open`, `[{bearer map[]}]`},
		{`,, ,`, `[]`},
		{``, `[]`},
	} {
		if got := fmt.Sprint(parseChallenges(tc.in)); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.in, got, tc.want)
		}
	}
}

// Token services are elsewhere: they get the password of this registry, which itself then sees the token only.
func TestTokenServiceElsewhere(t *testing.T) {
	service := serve(t, true, wantBasic(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"token":"for-the-registry"}`) }))
	reg := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer for-the-registry" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+service.URL+`/auth?kind=docker",service="s"`)
			w.WriteHeader(401)
			return
		}
		giveManifest(w, emptyManifest)
	})
	c := quick(t, fixed{reg.hosts().list, service.Client().Transport})
	if _, err := repo(t, c, "reg.example/team/app", ann).Resolve(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	if n := reg.count(func(r *http.Request) bool { _, _, ok := r.BasicAuth(); return ok }); n > 0 {
		t.Error("the registry saw the password, which it had asked to be sent elsewhere")
	}
	if n := service.count(func(r *http.Request) bool { return r.FormValue("kind") == "docker" && r.FormValue("service") == "s" }); n != 1 {
		t.Error("the query of the realm was lost")
	}
}
