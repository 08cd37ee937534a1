package access

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

func FuzzMatch(f *testing.F) {
	f.Add("team/**", "team/a/b")
	f.Add("a*b?c/**/d", "axbyc/d")
	f.Fuzz(func(t *testing.T, glob, name string) {
		if strings.Count(glob, "**") > 4 || len(name) > 200 {
			return
		}
		if server.Match(glob, name) && !strings.ContainsAny(glob, `*?[\`) && glob != name {
			t.Errorf("%q matches %q", glob, name)
		}
	})
}

func FuzzToken(f *testing.F) {
	p := newPlace(f, Token)
	_, a := p.token(f, "GET", basic("bob", "berry"), url.Values{"scope": {"repository:team/a:pull"}})
	f.Add(a.Token)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		if c, err := p.opts.Keys.verify(token, accessToken, "svc", time.Now()); err == nil && token != a.Token {
			t.Errorf("%q is taken for %+v", token, c)
		}
	})
}

func FuzzScopes(f *testing.F) {
	f.Add("repository:a/b:pull,push registry:catalog:*")
	f.Add("repository(plugin):localhost:5000/a:pull")
	r := NewRights([]Rule{{Anyone: true, Repositories: []string{"team/**"}, Actions: []server.Action{server.Pull}}})
	f.Fuzz(func(t *testing.T, param string) {
		scopes, err := ParseScopes([]string{param})
		if err != nil {
			return
		}
		for _, s := range r.grant("", scopes) {
			if !strings.HasPrefix(s.Name, "team") || len(s.Actions) != 1 || s.Actions[0] != server.Pull {
				t.Errorf("%q is granted %+v", param, s)
			}
		}
	})
}

func FuzzHtpasswd(f *testing.F) {
	f.Add("ann:" + quickHash(f, "x"))
	f.Fuzz(func(t *testing.T, text string) {
		users, err := ParseHtpasswd([]byte(text))
		if err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("%v is of another kind", err)
		}
		for name := range users {
			if CheckUser(name) != nil {
				t.Errorf("user %q", name)
			}
		}
	})
}

func BenchmarkBearer(b *testing.B) {
	p := newPlace(b, Token)
	_, a := p.token(b, "GET", basic("bob", "berry"), url.Values{"scope": {"repository:team/a:pull"}})
	for b.Loop() {
		if err := p.Allow(b.Context(), "Bearer "+a.Token, "team/a", server.Pull); err != nil {
			b.Fatal(err)
		}
	}
}
