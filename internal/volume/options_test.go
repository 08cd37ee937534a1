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
		err = mo.complete(context.Background(), outside{lookup: lookup})
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

// What the kernel is told in place of mount.nfs and mount.cifs, and what a message shows of it.
func TestComplete(t *testing.T) {
	out := outside{
		lookup: func(context.Context, string) (netip.Addr, error) { return netip.MustParseAddr("10.1.2.3"), nil },
		local:  func(netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("10.1.2.9"), nil },
		read: func(string) ([]byte, error) {
			return []byte("# ours\nusername=me\n password=a,b=c\ndomain=D\nother=x\n"), nil
		},
	}
	for _, c := range []struct{ fstype, device, o, want, shown, err string }{
		{"nfs", "files:/x", "vers=3,nolock,mountaddr=files", "vers=3,nolock,mountaddr=10.1.2.3,addr=10.1.2.3", "", ""},
		{"nfs", "files:/x", "nfsvers=4.0,_netdev,x-systemd.automount,soft", "nfsvers=4.0,soft,addr=10.1.2.3,clientaddr=10.1.2.9", "", ""},
		{"nfs4", ":/x", "addr=files,minorversion=0", "addr=10.1.2.3,minorversion=0,clientaddr=10.1.2.9", "", ""},
		{"nfs4", ":/x", "addr=files,vers=4.2", "addr=10.1.2.3,vers=4.2", "", ""},
		{"nfs", ":/x", "soft", "", "", "no server in the device"},
		{"cifs", "//files/s", "credentials=/f,vers=3.0", "username=me,password=a,,b=c,domain=D,vers=3.0,addr=10.1.2.3", "username=me,password=xxxxx,domain=D,vers=3.0,addr=10.1.2.3", ""},
		// A password with a comma was torn apart there: the mount failed, and the message showed what came after the comma.
		{"cifs", "//files/s", "password=a,,b,,,,c,,,vers=3.0,username=me", "password=a,,b,,,,c,,,vers=3.0,username=me,addr=10.1.2.3", "password=xxxxx,vers=3.0,username=me,addr=10.1.2.3", ""},
		{"cifs", "//files/s", "username=me,,pass=a,,", "username=me,pass=a,,,addr=10.1.2.3", "username=me,pass=xxxxx,addr=10.1.2.3", ""},
	} {
		mo, err := parseOptions(map[string]string{"type": c.fstype, "device": c.device, "o": c.o})
		if err == nil {
			err = mo.complete(context.Background(), out)
		}
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", c.o, err)
			}
			continue
		}
		if got := strings.Join(mo.data, ","); err != nil || got != c.want || c.shown != "" && mo.shown() != c.shown {
			t.Errorf("%s: %q, shown %q, %v", c.o, got, mo.shown(), err)
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
		out := outside{
			lookup: lookup, local: func(netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("10.0.0.2"), nil },
			read: func(string) ([]byte, error) { return []byte("username=u\npassword=p,q\n"), nil },
		}
		if err := mo.complete(context.Background(), out); err != nil && !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
		if strings.ContainsRune(strings.Join(mo.data, ","), 0) {
			t.Fatal("a zero byte reaches the kernel")
		}
	})
}
