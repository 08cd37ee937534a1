package client

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// dockerRegistry starts Debian's docker-registry, the reference of the protocol; tests that need it skip where it is not installed.
func dockerRegistry(t *testing.T, extra string) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {delete: {enabled: true}, filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n%s", dir, addr, extra)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	})
	for range 100 {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return addr
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("docker-registry did not come up")
	return ""
}

func TestJourneyDockerRegistry(t *testing.T) {
	journey(t, dockerRegistry(t, ""), Credentials{}, true)
}

func TestJourneyDockerRegistryWithPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("ann:"+bcrypted+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host := dockerRegistry(t, fmt.Sprintf("auth: {htpasswd: {realm: here, path: %s}}\n", file))
	creds := Credentials{Username: "ann", Password: "pa55:word"}
	c := quick(t, nil)
	if _, err := c.Login(t.Context(), host, creds); err != nil {
		t.Fatal(err)
	}
	_, err := c.Login(t.Context(), host, Credentials{Username: "ann", Password: "wrong-word"})
	if want := fmt.Sprintf(`Get "http://%s/v2/": unauthorized: authentication required`, host); err == nil || err.Error() != want {
		t.Fatalf("login with the wrong password: %v, want %s", err, want)
	}
	_, err = repo(t, c, host+"/team/app", Credentials{}).Resolve(t.Context(), "1")
	if want := fmt.Sprintf(`Get "http://%s/v2/team/app/manifests/1": no basic auth credentials`, host); err == nil || err.Error() != want {
		t.Fatalf("without a password: %v, want %s", err, want)
	}
	journey(t, host, creds, true)
}

// bcrypted is "pa55:word".
const bcrypted = "$2a$04$9e.ryWG.E9p68cjBqs3N0.qkSo2wrM1X4zRBJ5O5xI/ZhbJ8XIO3O"
