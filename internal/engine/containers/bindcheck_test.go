package containers

import (
	"strings"
	"testing"
)

func TestMountOf(t *testing.T) {
	const table = `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:30 / /srv rw - tmpfs none rw
31 21 0:31 / /srv/a\040b rw,relatime master:7 - tmpfs none rw
32 30 0:32 / /srv rw shared:9 master:2 - tmpfs over rw
`
	for name, want := range map[string][2]string{
		"/":          {"/", "shared:1"},
		"/srvx":      {"/", "shared:1"},
		"/srv/x":     {"/srv", "shared:9 master:2"},
		"/srv/a b/c": {"/srv/a b", "master:7"},
	} {
		at, optional, err := mountOf(strings.NewReader(table), name)
		if err != nil || at != want[0] || optional != want[1] {
			t.Errorf("%s lies on %q with %q (%v), want %q", name, at, optional, err, want)
		}
	}
}
