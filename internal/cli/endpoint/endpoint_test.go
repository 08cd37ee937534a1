package endpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOrderOfPlaces(t *testing.T) {
	dir := t.TempDir()
	sum := sha256.Sum256([]byte("far"))
	meta := filepath.Join(dir, "contexts", "meta", hex.EncodeToString(sum[:]))
	if err := os.MkdirAll(meta, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(meta, "meta.json"), []byte(`{"Name":"far","Endpoints":{"docker":{"Host":"tcp://far:1"}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flags                            Flags
		corten, docker, context, current string
		want                             string
		isDefault                        bool
	}{
		{want: "unix://" + DefaultSocket, isDefault: true},
		{current: "default", want: "unix://" + DefaultSocket, isDefault: true},
		{current: "far", want: "tcp://far:1"},
		{context: "far", want: "tcp://far:1"},
		{docker: "unix:///d", context: "far", want: "unix:///d"},
		{corten: "unix:///c", docker: "unix:///d", want: "unix:///c"},
		{flags: Flags{Context: "far"}, corten: "unix:///c", want: "tcp://far:1"},
		{flags: Flags{Context: "default"}, corten: "unix:///c", want: "unix://" + DefaultSocket, isDefault: true},
		{flags: Flags{Host: "tcp://h"}, corten: "unix:///c", want: "tcp://h:2375"},
		{flags: Flags{Host: "tcp://h", TLS: true}, want: "tcp://h:2376"},
		{flags: Flags{Host: "[::1]:9"}, want: "tcp://[::1]:9"},
		{flags: Flags{Host: "ssh://me@h:22/run/x.sock"}, want: "ssh://me@h:22/run/x.sock"},
		{flags: Flags{Host: "a", Context: "b"}, want: "conflicting options"},
		{flags: Flags{Context: "nowhere"}, want: "context not found"},
		{flags: Flags{Host: "unix://relative"}, want: "absolute path"},
		{flags: Flags{Host: "ssh://me:secret@h"}, want: "plain-text password"},
		{flags: Flags{Host: "ssh://-oProxyCommand=x"}, want: "unable to parse"},
		{flags: Flags{Host: "ftp://h"}, want: "unknown scheme"},
	} {
		t.Setenv("CORTEN_HOST", c.corten)
		t.Setenv("DOCKER_HOST", c.docker)
		t.Setenv("DOCKER_CONTEXT", c.context)
		ep, err := Resolve(c.flags, &Config{Dir: dir, CurrentContext: c.current})
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if ep.Host != c.want || ep.Default != c.isDefault {
			t.Errorf("%+v: %s, default %t", c, ep.Host, ep.Default)
		}
	}
}

func TestSSHArgumentsCannotBecomeOptionsOrCommands(t *testing.T) {
	u, err := url.Parse("ssh://me@host:2222/run/it's.sock")
	if err != nil {
		t.Fatal(err)
	}
	args := sshArgs(u)
	got := strings.Join(args, " ")
	for _, want := range []string{"-l me", "-p 2222", "-- host ", `--host 'unix:///run/it'\''s.sock' system dial-stdio`} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
}

func TestBrokenConfigIsNamed(t *testing.T) {
	dir := t.TempDir()
	if cfg, err := LoadConfig(dir); err != nil || cfg.Dir != dir {
		t.Error(cfg, err)
	}
	name := filepath.Join(dir, "config.json")
	if err := os.WriteFile(name, []byte("\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if cfg, err := LoadConfig(dir); err != nil || cfg.Dir != dir { // as docker's client takes it
		t.Error(cfg, err)
	}
	if err := os.WriteFile(name, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if cfg, err := LoadConfig(dir); err == nil || !strings.Contains(err.Error(), name) || cfg.Dir != dir {
		t.Error(cfg, err)
	}
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"tcp://h:1/p", "unix:///a", "ssh://u@h", "[::1]", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, err := normalize(s, false)
		if err != nil {
			return
		}
		ep := &Endpoint{Host: host}
		if ep.Authority() == "" {
			t.Errorf("%q has no authority", host)
		}
		_, _ = ep.BasePath(), ep.Socket()
	})
}

// Ctrl-C at a terminal goes to all programs of its foreground group: ssh ended by it, and with it the connection over which `run` had to tell the container.
func TestCtrlCDoesNotReachSSH(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\nread -r pid comm state ppid group session rest < /proc/$$/stat\necho $pid $session\n"
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	nc, err := dialSSH(t.Context(), "ssh://host")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	buf := make([]byte, 64)
	n, err := nc.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(string(buf[:n])); len(f) != 2 || f[0] != f[1] {
		t.Errorf("process and session: %q", buf[:n])
	}
}
