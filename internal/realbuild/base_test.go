package realbuild

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// host is what this host's own package managers are configured with: builds get the same.
type host struct {
	mirror  string   // of Debian
	apt     string   // apt's configuration of proxies
	args    []string // of every build
	env     []string // of the base image
	trusted string   // the bundle of certificates

	goroot, goproxy string
	archive         string // the tree of Debian
}

// theHost asks the package managers of this host.
func theHost(t *testing.T) *host {
	t.Helper()
	h := &host{mirror: "http://deb.debian.org/debian", trusted: os.Getenv("SSL_CERT_FILE"), goroot: said(t, "go", "env", "GOROOT"), goproxy: said(t, "go", "env", "GOPROXY")}
	if h.trusted == "" {
		h.trusted = "/etc/ssl/certs/ca-certificates.crt"
	}
	for line := range strings.Lines(said(t, "apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages", "Component: main")) {
		if origin, uri, _ := strings.Cut(strings.TrimSpace(line), " "); origin == "Debian" && strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian") {
			h.mirror = uri
			break
		}
	}
	for line := range strings.Lines(said(t, "apt-config", "dump")) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(name, "Acquire::http") && strings.Contains(strings.ToLower(name), "::proxy") && value != `"";` {
			h.apt += line
		}
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if os.Getenv(name) != "" {
			h.args = append(h.args, "--build-arg", name) // the client's own value
		}
	}
	if _, err := exec.LookPath("npm"); err == nil {
		if registry := said(t, "npm", "config", "get", "registry"); registry != "https://registry.npmjs.org/" {
			h.env = append(h.env, "npm_config_registry="+registry)
		}
	}
	h.archive = h.base(t)
	return h
}

// said is what a command says.
func said(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// base is the archive of a tree of Debian: it is made once, and made anew when its recipe changes, or what the host trusts.
func (h *host) base(t *testing.T) string {
	t.Helper()
	const recipe = "testdata/base/make"
	hash := sha256.New()
	for _, name := range []string{recipe, h.trusted} {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		hash.Write(raw)
	}
	fmt.Fprint(hash, h.mirror, h.apt)
	dir := os.Getenv("CORTEN_REAL_CACHE")
	if dir == "" {
		dir = "/var/tmp/corten-real"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, fmt.Sprintf("bookworm-%.6x.tar", hash.Sum(nil)))
	if _, err := os.Stat(archive); err == nil {
		return archive
	}
	if resp, err := http.Get(h.mirror); err != nil {
		t.Fatalf("Debian's mirror: %v", err)
	} else {
		resp.Body.Close()
	}
	old, err := filepath.Glob(filepath.Join(dir, "bookworm-*"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(recipe, archive, h.mirror, h.trusted, h.apt).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", recipe, err, out)
	}
	for _, name := range slices.DeleteFunc(old, func(name string) bool { return strings.HasPrefix(name, archive) }) {
		if err := os.RemoveAll(name); err != nil {
			t.Error(err)
		}
	}
	return archive
}
