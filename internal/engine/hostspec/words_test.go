package hostspec

import (
	"slices"
	"strings"
	"testing"
)

func TestEnvironment(t *testing.T) {
	got := Environment("host", true, "/home/me", []string{"PATH=/x", "A=1", "TERM", "A=2"})
	if !slices.Equal(got, []string{"PATH=/x", "HOSTNAME=host", "A=2", "HOME=/home/me"}) {
		t.Error(got)
	}
	// An exec's list goes above the container's.
	got = Environment("host", false, "", []string{"A=1", "B=1"}, []string{"A", "B=2", "C=3", "C"})
	if !slices.Equal(got[2:], []string{"B=2", "C=3"}) {
		t.Error(got)
	}
}

// A name without a value takes away what the image or the engine set, never what the same list says: for that, Docker looks at what was there before alone.
func TestNamesWithoutValues(t *testing.T) {
	for _, c := range []struct{ base, env, want string }{
		{"A=1 B=2", "A", "B=2"},
		{"A=1 B=2", "A=3 A", "B=2"},
		{"A=1 B=2", "A A=3", "B=2 A=3"},
		{"B=2", "C=1 C", "B=2 C=1"},
		{"A=1 B=2", "A C=1 C B", "C=1"},
		{"A=1", "C", "A=1"},
		{"", "A=1 A A=2", "A=2"},
	} {
		if got := strings.Join(Override(strings.Fields(c.base), strings.Fields(c.env)), " "); got != c.want {
			t.Errorf("%q with %q: %q, not %q", c.base, c.env, got, c.want)
		}
	}
}

func TestTmpfsOptions(t *testing.T) {
	if got := tmpfsOptions([]string{"exec", "size=1m", "exec"}); strings.Join(got, " ") != "nosuid nodev exec size=1m rprivate" {
		t.Error(got)
	}
}
