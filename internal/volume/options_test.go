package volume

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

func TestResolve(t *testing.T) {
	lookup := func(_ context.Context, host string) (netip.Addr, error) {
		if host != "files.example" {
			return netip.Addr{}, errors.New("no such host")
		}
		return netip.MustParseAddr("10.1.2.3"), nil
	}
	for _, c := range []struct {
		fstype, device, o string
		want, err         string
	}{
		{"nfs", ":/export", "addr=10.0.0.1,rw", "addr=10.0.0.1", ""},
		{"nfs", ":/export", "addr=files.example,nolock", "addr=10.1.2.3,nolock", ""},
		{"nfs4", "files.example:/export", "soft", "soft,addr=10.1.2.3", ""},
		{"nfs4", "[fd00::1]:/export", "soft", "soft,addr=fd00::1", ""},
		{"nfs", ":/export", "addr=gone.example", "", "find the address of gone.example"},
		{"cifs", "//files.example/share", "username=u", "username=u,addr=10.1.2.3", ""},
		{"cifs", "//10.9.9.9/share", "ip=10.8.8.8", "ip=10.8.8.8", ""},
		{"tmpfs", "tmpfs", "addr=gone.example", "addr=gone.example", ""},
	} {
		mo, err := parseOptions(map[string]string{"type": c.fstype, "device": c.device, "o": c.o})
		if err != nil {
			t.Fatal(err)
		}
		err = mo.resolve(context.Background(), lookup)
		if c.err != "" {
			if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s %s: %v", c.device, c.o, err)
			}
			continue
		}
		if got := strings.Join(mo.data, ","); err != nil || got != c.want {
			t.Errorf("%s %s: %q, %v; want %q", c.device, c.o, got, err, c.want)
		}
	}
}

func TestParseOptions(t *testing.T) {
	mo, err := parseOptions(map[string]string{"type": "none", "device": "/x", "o": "rbind,ro,nosuid,suid,rshared,custom=1,,noexec"})
	if err != nil {
		t.Fatal(err)
	}
	if mo.flags != unix.MS_BIND|unix.MS_REC|unix.MS_RDONLY|unix.MS_NOEXEC || len(mo.propagation) != 1 || strings.Join(mo.data, ",") != "custom=1" {
		t.Errorf("%+v", mo)
	}
}

// A name that is taken stays inside the store's folder, and never meets its own files there.
func FuzzName(f *testing.F) {
	docker := regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
	for _, s := range []string{"web", "a", "..", ".records", "a/b", "x\n", "é0", "a..b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := CheckName(name)
		if want := docker.MatchString(name) && len(name) <= maxName; (err == nil) != want {
			t.Fatalf("%q: %v, docker takes it: %v", name, err, want)
		}
		if err == nil && (filepath.Dir(filepath.Join("/r", name)) != "/r" || strings.HasPrefix(name, ".")) {
			t.Fatalf("%q leaves the folder", name)
		}
	})
}

func FuzzOptions(f *testing.F) {
	f.Add("tmpfs", "tmpfs", "size=1m,uid=1000")
	f.Add("nfs", "host:/x", "addr=host,ro")
	f.Add("none", "/x", "rbind,rslave")
	f.Fuzz(func(t *testing.T, fstype, device, o string) {
		mo, err := parseOptions(map[string]string{"type": fstype, "device": device, "o": o})
		if err != nil {
			return
		}
		if mo.flags&unix.MS_REMOUNT != 0 || mo.flags&unix.MS_BIND != 0 && !strings.HasPrefix(mo.device, "/") {
			t.Fatalf("%+v", mo)
		}
		lookup := func(context.Context, string) (netip.Addr, error) { return netip.MustParseAddr("10.0.0.1"), nil }
		if err := mo.resolve(context.Background(), lookup); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsRune(strings.Join(mo.data, ","), 0) {
			t.Fatal("a zero byte reaches the kernel")
		}
	})
}
