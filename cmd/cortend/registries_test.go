package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/client/rules"
	"corten.dev/corten/internal/settings"
)

// heard is a server that refuses everything, and remembers what it was asked.
type heard struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func listenTo(t *testing.T, status int) *heard {
	h := &heard{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.asked = append(h.asked, r.Method+" "+r.Host+r.URL.Path)
		h.mu.Unlock()
		w.WriteHeader(status)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *heard) host() string { return strings.TrimPrefix(h.URL, "http://") }

func (h *heard) count(sub string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range h.asked {
		if strings.Contains(line, sub) {
			n++
		}
	}
	return n
}

// What the operator says of registries reaches the client that speaks to them.
func TestRegistrySettings(t *testing.T) {
	resolve := func(set settings.Settings, name string) {
		t.Helper()
		set.MaxAttempts = max(set.MaxAttempts, 1)
		c, err := openRegistries(set, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ref, err := reference.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		repo, err := c.Repository(ref, client.Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := repo.Resolve(t.Context(), "1"); err == nil {
			t.Errorf("%s: a server that has nothing gave something", name)
		}
	}
	own, mirror, proxy := listenTo(t, http.StatusNotFound), listenTo(t, http.StatusNotFound), listenTo(t, http.StatusBadGateway)

	resolve(settings.Settings{DefaultRegistry: own.host()}, "busybox")
	if own.count("/v2/busybox/manifests/1") == 0 {
		t.Errorf("default-registry: asked %q", own.asked)
	}
	resolve(settings.Settings{Registries: []rules.Rule{{Match: "reg.example", MirrorsOnly: true, Mirrors: []rules.Mirror{{URL: mirror.URL, Rewrite: "{host}/{path}"}}}}}, "reg.example/app")
	if mirror.count("/v2/reg.example/app/manifests/1") == 0 {
		t.Errorf("registries: asked %q", mirror.asked)
	}
	proxies := settings.Proxies{HTTP: proxy.URL, HTTPS: proxy.URL}
	resolve(settings.Settings{Proxies: proxies}, "reg.example/app")
	if proxy.count("CONNECT reg.example:443") == 0 || proxy.count("GET reg.example/") != 0 {
		t.Errorf("proxies: asked %q", proxy.asked)
	}
	resolve(settings.Settings{Proxies: proxies, InsecureRegistries: []string{"lax.example"}}, "lax.example/app")
	if proxy.count("lax.example/v2/") == 0 {
		t.Errorf("insecure-registries: no http; asked %q", proxy.asked)
	}
	resolve(settings.Settings{Proxies: proxies, RegistryMirrors: []string{"https://mirror.example"}}, "busybox")
	if proxy.count("CONNECT mirror.example:443") == 0 {
		t.Errorf("registry-mirrors: asked %q", proxy.asked)
	}
	for _, attempts := range []int{1, 2} {
		weak := listenTo(t, http.StatusServiceUnavailable)
		resolve(settings.Settings{DefaultRegistry: weak.host(), MaxAttempts: attempts}, "busybox")
		if n := weak.count("/v2/"); n != attempts {
			t.Errorf("max-download-attempts %d: asked %q", attempts, weak.asked)
		}
	}
}
