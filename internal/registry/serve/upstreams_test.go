package serve

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// One registry in front of another, by its configuration file: by prefix, by namespace, and with a password of its own.
func TestCache(t *testing.T) {
	behind := start(t, nil, "--htpasswd", users(t, "cache:secret"))
	if _, err := behind.push("team/app:1", "cache:secret"); err != nil {
		t.Fatal(err)
	}
	password := writeFile(t, filepath.Join(t.TempDir(), "password"), "secret\n")
	front := start(t, map[string]any{"cache": []any{map[string]any{
		"prefix": "mirror/one", "namespace": "one.example", "url": behind.url, "username": "cache", "password-file": password, "tag-ttl": "1h",
	}}})
	wantError(t, "by prefix", front.pull("mirror/one/team/app:1", ""), "")
	status, h, _ := front.get("/v2/team/app/manifests/1?ns=one.example", "")
	if status != http.StatusOK || h.Get("Docker-Content-Digest") == "" || h.Get("OCI-Namespace") != "one.example" {
		t.Errorf("by namespace: %d, %v", status, h)
	}
	if status, _, _ := front.get("/v2/team/app/manifests/1?ns=two.example", ""); status != http.StatusNotFound {
		t.Errorf("by another namespace: %d", status)
	}
	if status, _, _ := front.get("/v2/?ns=one.example", ""); status != http.StatusOK {
		t.Errorf("ping with a namespace: %d", status)
	}
	behind.stop()
	wantError(t, "without the registry behind", front.pull("mirror/one/team/app:1", ""), "")
	if strings.Contains(front.log.String(), "secret") {
		t.Error("the password is in the log")
	}
	if files, err := os.ReadDir(filepath.Join(front.dir, "root", "staging")); err != nil || len(files) > 0 {
		t.Errorf("staging holds %v, %v", files, err)
	}
}
