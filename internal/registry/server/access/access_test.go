package access

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

func quickHash(t testing.TB, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

// place is a guard with its file, folder and clock.
type place struct {
	*Guard
	users string // file
	keys  string // folder
	clock atomic.Int64
}

func (p *place) now() time.Time { return time.Now().Add(time.Duration(p.clock.Load())) }

func (p *place) write(t testing.TB, users map[string]string) {
	t.Helper()
	text := ""
	for name, password := range users {
		text += name + ":" + quickHash(t, password) + "\n"
	}
	if err := os.WriteFile(p.users, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newPlace(t testing.TB, mode Mode) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{users: filepath.Join(dir, "users"), keys: filepath.Join(dir, "keys")}
	p.write(t, map[string]string{"ann": "apple", "bob": "berry"})
	users, err := OpenHtpasswd(p.users, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := OpenKeys(KeysOptions{Folder: p.keys, Keep: time.Hour, Now: p.now})
	if err != nil {
		t.Fatal(err)
	}
	rights := NewRights([]Rule{
		{Users: []string{"ann"}, Repositories: []string{"**"}, Actions: []server.Action{"*"}},
		{Users: []string{"*"}, Repositories: []string{"team/**", "home/${user}/*"}, Actions: []server.Action{server.Pull, server.Push}},
		{Anyone: true, Repositories: []string{"public/*"}, Actions: []server.Action{server.Pull}},
	})
	p.Guard, err = New(Options{Users: users, Rights: rights, Keys: keys, Mode: mode, Service: "svc", Now: p.now})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func (p *place) token(t testing.TB, method, authorization string, form url.Values) (int, answer) {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, "/token?"+form.Encode(), nil)
	if method == http.MethodPost {
		req = httptest.NewRequest(method, "/token", strings.NewReader(form.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, req)
	var a answer
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
	}
	return w.Code, a
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if kind == nil && err != nil || kind != nil && !errors.Is(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

func TestRightsByPassword(t *testing.T) {
	p := newPlace(t, Basic)
	for _, c := range []struct {
		auth, repo string
		action     server.Action
		want       error
	}{
		{basic("ann", "apple"), "x", server.Delete, nil},
		{basic("ann", "wrong"), "x", server.Pull, errs.Unauthorized},
		{basic("nobody", "apple"), "x", server.Pull, errs.Unauthorized},
		{basic("", ""), "public/x", server.Pull, errs.Unauthorized},
		{"Basic !!!", "public/x", server.Pull, errs.Unauthorized},
		{"Digest x", "public/x", server.Pull, errs.Unauthorized},
		{basic("bob", "berry"), "team/a/b", server.Push, nil},
		{basic("bob", "berry"), "team", server.Push, nil},
		{basic("bob", "berry"), "teams/a", server.Push, errs.Forbidden},
		{basic("bob", "berry"), "team/a", server.Delete, errs.Forbidden},
		{basic("bob", "berry"), "home/bob/x", server.Push, nil},
		{basic("bob", "berry"), "home/ann/x", server.Push, errs.Forbidden},
		{basic("bob", "berry"), "home/bob/x/y", server.Push, errs.Forbidden},
		{basic("bob", "berry"), "", server.Catalog, errs.Forbidden},
		{basic("ann", "apple"), "", server.Catalog, nil},
		{"", "public/x", server.Pull, nil},
		{"", "public/x", server.Push, errs.Unauthorized},
		{"", "team/x", server.Pull, errs.Unauthorized},
		// Tricks with paths.
		{basic("bob", "berry"), "team/../secret", server.Pull, errs.Forbidden},
		{basic("bob", "berry"), "team//secret", server.Pull, errs.Forbidden},
		{basic("bob", "berry"), "team/./x", server.Pull, errs.Forbidden},
		{basic("bob", "berry"), "/team/x", server.Pull, errs.Forbidden},
		{basic("bob", "berry"), "team/x/", server.Pull, errs.Forbidden},
		{basic("bob", "berry"), "TEAM/x", server.Pull, errs.Forbidden},
		{basic("bob", "berry"), "team/x:y", server.Pull, errs.Forbidden},
		{basic("bob", "berry"), "team/x%2f..", server.Pull, errs.Forbidden},
	} {
		wantKind(t, fmt.Sprintf("%s %s %s", c.auth, c.repo, c.action), p.Allow(t.Context(), c.auth, c.repo, c.action), c.want)
	}
	wantKind(t, "ping without a login", p.Allow(t.Context(), "", ""), errs.Unauthorized)
	wantKind(t, "ping", p.Allow(t.Context(), basic("bob", "berry"), ""), nil)
	if got := p.Challenge("h", "a", server.Pull); got != `Basic realm="svc"` {
		t.Errorf("challenge is %s", got)
	}
	if p.User(basic("bob", "berry")) != "bob" || p.User(basic("bob", "other")) != "" {
		t.Error("a name counts only with its password")
	}
}

// A user's name must not widen the glob that it is put into.
func TestNamesInGlobs(t *testing.T) {
	r := NewRights([]Rule{{Users: []string{"*"}, Repositories: []string{"home/${user}/**"}, Actions: []server.Action{"*"}}})
	for _, user := range []string{"**", "*", "a/b", "..", "", "?"} {
		for _, repo := range []string{"home/ann/x", "home/a/b/x", "home/x"} {
			if r.May(user, repo, server.Pull) {
				t.Errorf("%q may pull %s", user, repo)
			}
		}
	}
	if !r.May("ann", "home/ann/x", server.Pull) {
		t.Error("ann may not pull her own")
	}
}

func TestTokens(t *testing.T) {
	p := newPlace(t, Token)
	if got := p.Challenge("reg:5000", "a/b", server.Push); got != `Bearer realm="http://reg:5000/token",service="svc",scope="repository:a/b:pull,push"` {
		t.Errorf("challenge is %s", got)
	}
	if got := p.Challenge("evil\"\r\nX: y", ""); strings.ContainsAny(got, "\r\n") || strings.Count(got, `"`) != 4 {
		t.Errorf("challenge is %q", got)
	}
	bearer := func(a answer) string { return "Bearer " + a.Token }
	scope := url.Values{"service": {"svc"}, "scope": {"repository:team/a:pull,push,delete repository:secret:pull", "registry:catalog:*"}}
	status, a := p.token(t, "GET", basic("bob", "berry"), scope)
	if status != 200 || a.Token != a.AccessToken || a.ExpiresIn != 300 || a.RefreshToken != "" {
		t.Fatalf("%d %+v", status, a)
	}
	if a.Scope != "repository:team/a:pull,push" {
		t.Errorf("granted %q", a.Scope)
	}
	wantKind(t, "in scope", p.Allow(t.Context(), bearer(a), "team/a", server.Pull, server.Push), nil)
	wantKind(t, "out of scope, but allowed", p.Allow(t.Context(), bearer(a), "team/b", server.Pull), errs.Unauthorized)
	wantKind(t, "more than allowed", p.Allow(t.Context(), bearer(a), "team/a", server.Delete), errs.Forbidden)
	wantKind(t, "another's", p.Allow(t.Context(), bearer(a), "secret", server.Pull), errs.Forbidden)
	wantKind(t, "ping", p.Allow(t.Context(), bearer(a), ""), nil)
	if p.User(bearer(a)) != "bob" {
		t.Error("the token's user is unknown")
	}
	// podman lists the catalogue with a token that has no scopes; one that has others stays bounded by them.
	_, plain := p.token(t, "GET", basic("ann", "apple"), nil)
	wantKind(t, "catalogue without scopes", p.Allow(t.Context(), bearer(plain), "", server.Catalog), nil)
	wantKind(t, "a repository without scopes", p.Allow(t.Context(), bearer(plain), "x", server.Pull), errs.Unauthorized)
	_, narrow := p.token(t, "GET", basic("ann", "apple"), url.Values{"scope": {"repository:x:pull"}})
	wantKind(t, "catalogue with another scope", p.Allow(t.Context(), bearer(narrow), "", server.Catalog), errs.Unauthorized)
	// Anybody.
	if status, a = p.token(t, "GET", "", url.Values{"scope": {"repository:public/x:pull,push", "repository:team/a:pull"}, "offline_token": {"true"}}); status != 200 || a.Scope != "repository:public/x:pull" || a.RefreshToken != "" {
		t.Errorf("anonymous: %d %+v", status, a)
	}
	wantKind(t, "anonymous", p.Allow(t.Context(), bearer(a), "public/x", server.Pull), nil)
	wantKind(t, "anonymous elsewhere", p.Allow(t.Context(), bearer(a), "team/a", server.Pull), errs.Unauthorized)
	// The rules of this moment count, and so do the users.
	_, a = p.token(t, "GET", basic("bob", "berry"), scope)
	p.opts.Rights.Set(nil)
	wantKind(t, "rights taken away", p.Allow(t.Context(), bearer(a), "team/a", server.Pull), errs.Forbidden)
	p.write(t, map[string]string{"ann": "apple"})
	if err := p.opts.Users.Reload(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "user taken away", p.Allow(t.Context(), bearer(a), "team/a", server.Pull), errs.Unauthorized)
	for what, c := range map[string]struct {
		method, auth string
		form         url.Values
		want         int
	}{
		"wrong password":     {"GET", basic("ann", "x"), scope, 401},
		"another service":    {"GET", basic("ann", "apple"), url.Values{"service": {"other"}}, 400},
		"a token for tokens": {"GET", bearer(a), scope, 401},
		"unknown grant":      {"POST", "", url.Values{"grant_type": {"client_credentials"}}, 400},
		"wrong form":         {"POST", "", url.Values{"grant_type": {"password"}, "username": {"ann"}, "password": {"no"}}, 401},
		"good form":          {"POST", "", url.Values{"grant_type": {"password"}, "username": {"ann"}, "password": {"apple"}}, 200},
		"many scopes":        {"GET", basic("ann", "apple"), url.Values{"scope": {strings.Repeat("repository:a:pull ", 100)}}, 400},
		"delete":             {"DELETE", "", nil, 405},
	} {
		if c.method == "DELETE" {
			w := httptest.NewRecorder()
			p.ServeHTTP(w, httptest.NewRequest("DELETE", "/token", nil))
			if w.Code != c.want {
				t.Errorf("%s: %d", what, w.Code)
			}
			continue
		}
		if status, _ := p.token(t, c.method, c.auth, c.form); status != c.want {
			t.Errorf("%s: %d, want %d", what, status, c.want)
		}
	}
}

func TestRefreshTokens(t *testing.T) {
	p := newPlace(t, Token)
	_, a := p.token(t, "GET", basic("bob", "berry"), url.Values{"offline_token": {"true"}})
	refresh := func() (int, answer) {
		return p.token(t, "POST", "", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.RefreshToken}, "scope": {"repository:team/a:pull"}})
	}
	status, b := refresh()
	if status != 200 || b.Scope != "repository:team/a:pull" {
		t.Fatalf("%d %+v", status, b)
	}
	wantKind(t, "refreshed", p.Allow(t.Context(), "Bearer "+b.Token, "team/a", server.Pull), nil)
	wantKind(t, "a refresh token is no access token", p.Allow(t.Context(), "Bearer "+a.RefreshToken, ""), errs.Unauthorized)
	if status, _ := p.token(t, "POST", "", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {b.Token}}); status != 401 {
		t.Errorf("an access token as a refresh token: %d", status)
	}
	// It ends with the password it was given for.
	p.write(t, map[string]string{"bob": "another"})
	if err := p.opts.Users.Reload(); err != nil {
		t.Fatal(err)
	}
	if status, _ := refresh(); status != 401 {
		t.Errorf("after a new password: %d", status)
	}
}

// Whatever is changed in a token, it is refused.
func TestForgedTokens(t *testing.T) {
	p, other := newPlace(t, Token), newPlace(t, Token)
	scope := url.Values{"scope": {"repository:team/a:pull"}}
	_, a := p.token(t, "GET", basic("bob", "berry"), scope)
	_, foreign := other.token(t, "GET", basic("bob", "berry"), scope)
	parts := strings.Split(a.Token, ".")
	enc := base64.RawURLEncoding.EncodeToString
	kid := p.opts.Keys.newest().id
	claimsFor := func(change func(c *claims)) string {
		c := claims{Issuer: "svc", Audience: "svc", Subject: "ann", Use: accessToken, Expires: time.Now().Add(time.Hour).Unix(), Access: []Scope{{"repository", "team/a", []server.Action{"pull"}}}}
		change(&c)
		raw, _ := json.Marshal(c)
		return enc(raw)
	}
	signed := func(change func(c *claims)) string {
		var c claims
		raw, _ := base64.RawURLEncoding.DecodeString(claimsFor(change))
		if err := json.Unmarshal(raw, &c); err != nil {
			t.Fatal(err)
		}
		token, err := p.opts.Keys.sign(c)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	if err := p.Allow(t.Context(), "Bearer "+signed(func(*claims) {}), "team/a", server.Pull); err != nil {
		t.Fatalf("the unchanged one is refused: %v", err)
	}
	for what, token := range map[string]string{
		"alg none":              enc([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + claimsFor(func(*claims) {}) + ".",
		"alg none with our kid": enc([]byte(`{"alg":"none","kid":"`+kid+`"}`)) + "." + claimsFor(func(*claims) {}) + "." + parts[2],
		"alg HS256":             enc([]byte(`{"alg":"HS256","kid":"`+kid+`"}`)) + "." + parts[1] + "." + parts[2],
		"other claims":          parts[0] + "." + claimsFor(func(*claims) {}) + "." + parts[2],
		"cut signature":         parts[0] + "." + parts[1] + "." + parts[2][:40],
		"no signature":          parts[0] + "." + parts[1] + ".",
		"another key":           foreign.Token,
		"path as kid":           enc([]byte(`{"alg":"EdDSA","kid":"../../etc/passwd"}`)) + "." + parts[1] + "." + parts[2],
		"expired":               signed(func(c *claims) { c.Expires = time.Now().Add(-time.Second).Unix() }),
		"no expiry":             signed(func(c *claims) { c.Expires = 0 }),
		"not yet":               signed(func(c *claims) { c.NotBefore = time.Now().Add(time.Hour).Unix() }),
		"another service":       signed(func(c *claims) { c.Audience = "other" }),
		"another issuer":        signed(func(c *claims) { c.Issuer = "other" }),
		"refresh":               signed(func(c *claims) { c.Use = refreshToken }),
		"no use":                signed(func(c *claims) { c.Use = "" }),
		"user who is not there": signed(func(c *claims) { c.Subject = "eve" }),
		"four parts":            a.Token + ".x",
		"padding":               parts[0] + "=." + parts[1] + "." + parts[2],
		"long":                  parts[0] + "." + strings.Repeat("A", maxToken) + "." + parts[2],
		"empty":                 "",
	} {
		if err := p.Allow(t.Context(), "Bearer "+token, "team/a", server.Pull); !errors.Is(err, errs.Unauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A token that was good a moment ago ends in time, also where it is remembered.
	wantKind(t, "now", p.Allow(t.Context(), "Bearer "+a.Token, "team/a", server.Pull), nil)
	p.clock.Store(int64(6 * time.Minute))
	wantKind(t, "six minutes later", p.Allow(t.Context(), "Bearer "+a.Token, "team/a", server.Pull), errs.Unauthorized)
}

func TestKeysRotate(t *testing.T) {
	p := newPlace(t, Token)
	_, a := p.token(t, "GET", basic("bob", "berry"), url.Values{"scope": {"repository:team/a:pull"}})
	first := p.opts.Keys.newest().id
	p.clock.Store(int64(91 * 24 * time.Hour))
	if err := p.opts.Keys.Rotate(); err != nil {
		t.Fatal(err)
	}
	if p.opts.Keys.newest().id == first {
		t.Fatal("there is no new key")
	}
	p.clock.Store(0)
	wantKind(t, "token of the old key", p.Allow(t.Context(), "Bearer "+a.Token, "team/a", server.Pull), nil)
	// Another registry of the same folder finds keys that came later.
	again, err := OpenKeys(KeysOptions{Folder: p.keys, Keep: time.Hour, Now: p.now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.verify(a.Token, accessToken, "svc", time.Now()); err != nil {
		t.Errorf("another registry: %v", err)
	}
	p.clock.Store(int64(91*24*time.Hour + 2*time.Hour))
	if err := p.opts.Keys.Rotate(); err != nil {
		t.Fatal(err)
	}
	if p.opts.Keys.find(first) != nil {
		t.Error("a key that no living token can have is still there")
	}
}

func TestBadKeys(t *testing.T) {
	for what, c := range map[string]struct {
		make func(dir string) error
		want string
	}{
		"readable by others": {func(dir string) error {
			files, err := filepath.Glob(dir + "/*.pem")
			return errors.Join(err, os.Chmod(files[0], 0o644))
		}, "can be read by others"},
		"garbage":  {func(dir string) error { return os.WriteFile(dir+"/x.pem", []byte("garbage"), 0o600) }, "is no PEM private key"},
		"empty":    {func(dir string) error { return os.WriteFile(dir+"/x.pem", nil, 0o600) }, "EOF"},
		"a folder": {func(dir string) error { return os.Mkdir(dir+"/x.pem", 0o700) }, "is a directory"},
		"another name": {func(dir string) error {
			files, err := filepath.Glob(dir + "/*.pem")
			return errors.Join(err, os.Rename(files[0], dir+"/0123.pem"))
		}, "is not the Ed25519 key of its name"},
	} {
		dir := t.TempDir()
		if _, err := OpenKeys(KeysOptions{Folder: dir}); err != nil {
			t.Fatal(err)
		}
		if err := c.make(dir); err != nil {
			t.Fatal(err)
		}
		_, err := OpenKeys(KeysOptions{Folder: dir})
		if err == nil || !strings.Contains(err.Error(), c.want) && !strings.Contains(err.Error(), "readable") || strings.Contains(err.Error(), "PRIVATE") {
			if what != "a folder" || err == nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	if _, err := OpenKeys(KeysOptions{Folder: "/proc/nowhere"}); err == nil {
		t.Error("keys in a folder that cannot be")
	}
}

func TestHtpasswd(t *testing.T) {
	good := quickHash(t, "x")
	apache := "$2y$" + good[4:]
	for _, c := range []struct{ text, want string }{
		{"ann:" + good + "\n\n# a remark\nbob:" + apache + "\r\n", ""},
		{"ann:$apr1$x$y", "line 1: the hash of ann is not bcrypt's"},
		{"ann:{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=", "is not bcrypt's"},
		{"ann:plain", "is not bcrypt's"},
		{"bob:" + good + "\nann:$6$rounds=5000$x$y", "line 2: the hash of ann"},
		{"ann", "line 1: expected name:hash"},
		{":" + good, "line 1: user name"},
		{"*:" + good, "line 1: user name"},
		{"ann:" + good + "\nann:" + good, "line 2: ann is there twice"},
	} {
		_, err := ParseHtpasswd([]byte(c.text))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v", c.text, err)
		}
		if err != nil && (strings.Contains(err.Error(), good) || strings.Contains(err.Error(), "plain\"")) {
			t.Errorf("a hash is in the error: %v", err)
		}
	}
}

// The file is read again when it changes; a version that is no good leaves the last one in force.
func TestHtpasswdChanges(t *testing.T) {
	p := newPlace(t, Basic)
	login := func(password string) error { return p.Allow(t.Context(), basic("bob", password), "") }
	wantKind(t, "before", login("berry"), nil)
	p.write(t, map[string]string{"bob": "cherry"})
	p.opts.Users.next = time.Time{}
	wantKind(t, "the new password", login("cherry"), nil)
	wantKind(t, "the old one, though it was remembered", login("berry"), errs.Unauthorized)
	if err := os.WriteFile(p.users, []byte("bob:plain\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.opts.Users.next = time.Time{}
	wantKind(t, "with a broken file", login("cherry"), nil)
	if err := p.opts.Users.Reload(); err == nil {
		t.Error("a broken file is taken")
	}
	if err := os.Remove(p.users); err != nil {
		t.Fatal(err)
	}
	p.opts.Users.next = time.Time{}
	wantKind(t, "without the file", login("cherry"), nil)
	if _, err := OpenHtpasswd(p.users, nil); err == nil {
		t.Error("a file that is not there is taken")
	}
}

func TestFailuresSlow(t *testing.T) {
	var now time.Time
	th := newThrottle(func() time.Time { return now })
	now = time.Unix(1e9, 0)
	one, two := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	fail := func(user string, addr netip.Addr) time.Duration {
		wait := th.reserve("a "+Network(addr), "u "+user)
		th.settle(false, "a "+Network(addr), "u "+user)
		return wait
	}
	var waits []time.Duration
	for range 9 {
		wait := fail("ann", one)
		waits = append(waits, wait)
		now = now.Add(wait)
	}
	for i, w := range waits {
		if i < freeFailures && w != 0 || i > freeFailures && i < 8 && w < waits[i-1] {
			t.Errorf("waits are %v", waits)
			break
		}
	}
	if waits[8] < 4*time.Second {
		t.Errorf("nine guesses cost %v", waits)
	}
	if th.reserve("a "+Network(two), "u zoe") == 0 {
		t.Error("another address of the same network is free")
	}
	if w := th.reserve("a 192.0.2.1", "u ann"); w > userDelay+time.Millisecond {
		t.Errorf("the user is locked out for %v by somebody else", w)
	}
	now = now.Add(forget + time.Hour)
	if w := th.reserve("a "+Network(one), "u ann"); w != 0 {
		t.Errorf("nothing is forgotten: %v", w)
	}
	for range 40 {
		fail("eve", one)
	}
	_, err := th.admit(t.Context(), "eve", one)
	var many *TooMany
	if !errors.As(err, &many) || many.RetryAfter <= 0 {
		t.Errorf("a crowd of guesses gives %v", err)
	}
	for i := range 3 * throttleSize {
		th.settle(false, fmt.Sprint("a ", i), "u x")
	}
	if len(th.by) > throttleSize+2 {
		t.Errorf("%d addresses are remembered", len(th.by))
	}
}

func TestGuessingOverHTTP(t *testing.T) {
	p := newPlace(t, Token)
	synctest.Test(t, func(t *testing.T) { // looking at a password takes a while, which must not count
		ctx, cancel := context.WithTimeout(WithAddr(t.Context(), netip.MustParseAddr("192.0.2.7")), 300*time.Millisecond)
		defer cancel()
		refused := 0
		for range 8 {
			if err := p.Allow(ctx, basic("ann", "guess"), ""); errors.Is(err, errs.Unauthorized) {
				refused++
			}
		}
		if refused < freeFailures || refused > freeFailures+2 {
			t.Errorf("%d guesses were looked at in 300 ms", refused)
		}
	})
}
