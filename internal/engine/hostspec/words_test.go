package hostspec

import (
	"slices"
	"strings"
	"testing"
)

func TestEnvironment(t *testing.T) {
	got := Environment("host", true, []string{"PATH=/x", "A=1", "TERM", "A=2"}, "/home/me")
	if !slices.Equal(got, []string{"PATH=/x", "HOSTNAME=host", "A=2", "HOME=/home/me"}) {
		t.Error(got)
	}
}

func TestTmpfsOptions(t *testing.T) {
	if got := tmpfsOptions([]string{"exec", "size=1m", "exec"}); strings.Join(got, " ") != "nosuid nodev exec size=1m rprivate" {
		t.Error(got)
	}
}
