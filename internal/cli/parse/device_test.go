package parse

import (
	"strings"
	"testing"

	"tags.cncf.io/container-device-interface/pkg/parser"
)

// The client must know a name of a device from a path without the library, which would slow down its start.
func FuzzCDI(f *testing.F) {
	for _, s := range []string{"vendor.com/class=name", "/dev/x=y", "v/c=0", "v/c=0:1", "v/c=", "1/c=n", "v./c=n", "a/b/c=d", "v/c=é", "v/c=n=", "=", "/=a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := isCDI(s), parser.IsQualifiedName(s); got != want {
			t.Errorf("%q: %v, the library says %v", s, got, want)
		}
		if _, name, err := Device(s); err == nil && name != "" && name != s {
			t.Errorf("%q became %q", s, name)
		}
	})
}

// What is read must be what the flag's words say, whatever comes: each part of a device is found again in the text.
func FuzzDevice(f *testing.F) {
	for _, s := range []string{"/dev/null", "/dev/null:r", "/dev/null:/dev/x", "/dev/null:/dev/x:rwm", "a:b:c:d", ":", "/dev/a:/b:rr"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		dev, name, err := Device(s)
		if err != nil || name != "" {
			return
		}
		if dev.PathOnHost == "" || !strings.HasPrefix(dev.PathInContainer, "/") || !deviceMode(dev.CgroupPermissions) || !strings.HasPrefix(s, dev.PathOnHost) {
			t.Errorf("%q: %+v", s, dev)
		}
	})
}

func FuzzUlimit(f *testing.F) {
	for _, s := range []string{"nofile=1:2", "nofile=1", "core=-1", "nofile=2:1", "x=1", "nofile=1:2:3", "nofile=-1:1", "="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := Ulimit(s)
		if err != nil {
			return
		}
		if u.Name == "" || u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			t.Errorf("%q: %+v", s, u)
		}
		again, err := Ulimit(u.String())
		if err != nil || *again != *u {
			t.Errorf("%q: %+v became %+v, %v", s, u, again, err)
		}
	})
}
