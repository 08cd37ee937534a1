package rules_test

import (
	"fmt"
	"strings"
	"testing"

	"corten.dev/corten/internal/registry/client/rules"
)

func ExampleRule() {
	r := rules.Rule{Match: "*.example.com/team/*", Mirrors: []rules.Mirror{{URL: "https://cache.example", Rewrite: "{1}/{2}/{rest}"}}}
	if err := r.Check(); err != nil {
		fmt.Println(err)
		return
	}
	m, ok := r.Fit("eu.example.com:5000", "team/web/frontend")
	path, err := m.Rewrite(r.Mirrors[0].Rewrite)
	fmt.Println(ok, path, err)
	// Output: true eu/web/frontend <nil>
}

func TestFit(t *testing.T) {
	for _, tc := range []struct {
		match, domain, path string
		fits                bool
	}{
		{"*", "anything.example:5", "a", true},
		{"docker.io", "docker.io", "library/busybox", true},
		{"docker.io", "quay.example", "library/busybox", false},
		{"reg.example", "reg.example:5000", "a", false},
		{"reg.example:5000", "REG.example:5000", "a", true},
		{"*.example", "a.b.example", "x", true},
		{"*.example", "a.example:7", "x", true},
		{"*.example:7", "a.example:8", "x", false},
		{"*.example", "example", "x", false},
		{"*.example", "badexample", "x", false},
		{"r.example/team", "r.example", "team/a/b", true},
		{"r.example/team", "r.example", "teams/a", false},
		{"r.example/team", "r.example", "team", true},
		{"r.example/*/web", "r.example", "a/web", true},
		{"r.example/*/web", "r.example", "a/api", false},
		{"r.example/*/web", "r.example", "a", false},
		{"[::1]:5000", "[::1]:5000", "a", true},
	} {
		r := rules.Rule{Match: tc.match, Insecure: true}
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", tc.match, err)
		}
		if _, ok := r.Fit(tc.domain, tc.path); ok != tc.fits {
			t.Errorf("%s and %s/%s: %v", tc.match, tc.domain, tc.path, ok)
		}
	}
}

func TestCheck(t *testing.T) {
	good := []rules.Mirror{{URL: "https://m.example"}}
	for _, tc := range []struct {
		rule rules.Rule
		want string
	}{
		{rules.Rule{Match: "", Mirrors: good}, "match"},
		{rules.Rule{Match: "a_b.example", Mirrors: good}, "match"},
		{rules.Rule{Match: "x.*.example", Mirrors: good}, "match"},
		{rules.Rule{Match: "x.example/", Mirrors: good}, "no part of a repository name"},
		{rules.Rule{Match: "x.example/a*", Mirrors: good}, "no part of a repository name"},
		{rules.Rule{Match: "x.example:99999", Mirrors: good}, "match"},
		{rules.Rule{Match: "x.example", Mirrors: []rules.Mirror{{URL: "m.example"}}}, "mirror"},
		{rules.Rule{Match: "x.example", Mirrors: []rules.Mirror{{URL: "https://m.example?x"}}}, "mirror"},
		{rules.Rule{Match: "x.example", Mirrors: []rules.Mirror{{URL: "https://m.example", Rewrite: "{path"}}}, "brace"},
		{rules.Rule{Match: "x.example", Mirrors: []rules.Mirror{{URL: "https://m.example", Rewrite: "UP/{path}"}}}, "no repository name"},
		{rules.Rule{Match: "x.example", Mirrors: []rules.Mirror{{URL: "https://m.example", Rewrite: "{2}"}}}, "not known"},
		{rules.Rule{Match: "x.example", Mirrors: []rules.Mirror{{URL: "https://m.example", Credentials: "rel"}}}, "absolute"},
	} {
		if err := tc.rule.Check(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.rule, err, tc.want)
		}
	}
}
