package server

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true}, {"a", "a/b", false}, {"*", "a", true}, {"*", "a/b", false}, {"team/*", "team/x", true}, {"team/*", "team/x/y", false},
		{"team/**", "team/x/y", true}, {"team/**", "team", true}, {"**", "a/b/c", true}, {"**/c", "a/b/c", true}, {"**/c", "c", true},
		{"a/**/c", "a/c", true}, {"a/**/c", "a/b/b/c", true}, {"a/**/c", "a/b", false}, {"v[0-9]*", "v1.2", true}, {"v?", "v10", false},
		{"**/**", "x", true}, {"", "x", false},
	} {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

func TestRuleGivesUp(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	tags := map[string]tagValue{}
	for i, tag := range []string{"v5", "v4", "latest", "v3", "dev-2", "v2", "dev-1", "v1"} { // a day between each, v5 is new
		tags[tag] = tagValue{Pushed: now.Add(-time.Duration(i) * 24 * time.Hour)}
	}
	tags["sha256-"+strings.Repeat("a", 64)+".sig"] = tagValue{Pushed: now.Add(-1000 * time.Hour)}
	for name, c := range map[string]struct {
		rule Rule
		want string
	}{
		"nothing":            {Rule{}, ""},
		"last three":         {Rule{KeepLast: 3}, "dev-1 dev-2 v1 v2 v3"},
		"three days":         {Rule{KeepFor: 72*time.Hour + 1}, "dev-1 dev-2 v1 v2"},
		"either":             {Rule{KeepLast: 6, KeepFor: time.Hour}, "dev-1 v1"},
		"only dev":           {Rule{Tags: []string{"dev-*"}, KeepLast: 1}, "dev-1"},
		"protected":          {Rule{Keep: []string{"v1", "latest"}, KeepLast: 2}, "dev-1 dev-2 v2 v3"},
		"of the protected":   {Rule{Keep: []string{"v*"}, KeepLast: 1}, "dev-1 dev-2"},
		"more than there is": {Rule{KeepLast: 100}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			goes := map[string]string{}
			if c.rule.KeepLast > 0 || c.rule.KeepFor > 0 {
				goes = c.rule.giveUp(tags, now)
			}
			if got := strings.Join(slices.Sorted(maps.Keys(goes)), " "); got != c.want {
				t.Errorf("gives up %q, want %q", got, c.want)
			}
		})
	}
}

func TestRuleIsChecked(t *testing.T) {
	for _, rule := range []Rule{{KeepLast: -1}, {KeepFor: -1}, {Untagged: -1}, {Tags: []string{"[a"}}, {Repositories: []string{""}}, {Keep: []string{"a[-]"}}} {
		if rule.check() == nil {
			t.Errorf("%+v is accepted", rule)
		}
	}
}
