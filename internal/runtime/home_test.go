package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/safefs"
)

// An empty HOME got a second one behind it. A program takes the first it finds, so that `run -e HOME=` left it without one, other than with runc.
func TestWithHome(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := "root:x:0:0::/root:/bin/sh\nnone:x:7:7:::\n\nweb:x:500:501:web:/home/web\n"
	if err := os.WriteFile(filepath.Join(dir, "etc", "passwd"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uid       uint32
		env, want []string
	}{
		{0, []string{"A=1"}, []string{"A=1", "HOME=/root"}},
		{0, []string{"HOME=", "A=1"}, []string{"HOME=/root", "A=1"}},
		{500, []string{"A=1", "HOME=", "B=2"}, []string{"A=1", "HOME=/home/web", "B=2"}},
		{500, []string{"HOME=/mine"}, []string{"HOME=/mine"}},
		{7, nil, []string{"HOME=/"}},
		{4000000000, nil, []string{"HOME=/"}},
	} {
		before := slices.Clone(c.env)
		proc := &specs.Process{Env: c.env, User: specs.User{UID: c.uid}}
		got := withHome(proc, func() (*os.File, error) { return safefs.Root(dir) })
		if !slices.Equal(got.Env, c.want) || !slices.Equal(c.env, before) {
			t.Errorf("user %d, %q: %q, want %q", c.uid, before, got.Env, c.want)
		}
	}
}
