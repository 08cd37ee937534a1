package hostspec

import (
	"io"
	"log/slog"
	"testing"

	"corten.dev/corten/internal/container"
)

// The engine's --no-new-privileges is every container's default, but for a privileged one; what a container asks for itself goes above both.
func TestNoNewPrivilegesByDefault(t *testing.T) {
	for _, c := range []struct {
		byDefault, privileged bool
		opt                   string
		want                  bool
	}{
		{},
		{byDefault: true, want: true},
		{byDefault: true, privileged: true},
		{opt: "no-new-privileges", want: true},
		{opt: "no-new-privileges=true", privileged: true, want: true},
		{byDefault: true, opt: "no-new-privileges=false"},
	} {
		m := &Maker{Security: NewSecurity("unconfined", slog.New(slog.NewTextHandler(io.Discard, nil))), NoNewPrivs: c.byDefault}
		host := &container.Host{Privileged: c.privileged}
		if c.opt != "" {
			host.SecurityOpt = []string{c.opt}
		}
		spec, err := m.Spec(&Run{ID: "id", Args: []string{"true"}, Config: &container.Config{}, Host: host})
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		if got := spec.Process.NoNewPrivileges; got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}
