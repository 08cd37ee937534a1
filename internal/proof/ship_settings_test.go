package proof

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// outer is the world beyond the engine: a proxy to names that only it knows, which lead to one registry. It counts who was asked for, and how much went on at a time.
type outer struct {
	to     *httputil.ReverseProxy
	secure string // where https goes

	mu       sync.Mutex // guards the rest
	asked    map[string]int
	now, top map[string]int
	uploads  int
}

func (o *outer) begin(what string) (end func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now[what]++
	o.top[what] = max(o.top[what], o.now[what])
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.now[what]--
	}
}

func (o *outer) most(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.top[what]
}

func (o *outer) seen(host string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[host]
}

func (o *outer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	o.mu.Lock()
	o.asked[req.Host]++
	o.mu.Unlock()
	if req.Method == http.MethodConnect {
		o.tunnel(w)
		return
	}
	switch {
	case req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/"):
		defer o.begin("download")()
		for end := time.Now().Add(time.Second); time.Now().Before(end) && o.most("download") < 2; time.Sleep(10 * time.Millisecond) { // until it meets another
		}
		time.Sleep(50 * time.Millisecond) // and one more, which should not be
	case req.Method == http.MethodPatch || req.Method == http.MethodPut && strings.Contains(req.URL.Path, "/blobs/"):
		o.mu.Lock()
		o.uploads++
		o.mu.Unlock()
		defer o.begin("upload")()
		time.Sleep(50 * time.Millisecond)
	}
	o.to.ServeHTTP(w, req)
}

func (o *outer) tunnel(w http.ResponseWriter) {
	far, err := net.Dial("tcp", o.secure)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer far.Close()
	near, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer near.Close()
	_, _ = io.WriteString(near, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		_, _ = io.Copy(far, near) // ends with either side
		far.Close()
	}()
	_, _ = io.Copy(near, far)
}

// What the configuration file says about registries takes effect in the engine that a person runs: how much goes on at a time, proxies and their exceptions, roots and certificates,
// mirrors, and what stays on disk.
func TestRegistrySettings(t *testing.T) {
	enginetest.Bin(t)
	reg := enginetest.NewRegistry(t)
	world := &outer{to: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.Addr}), asked: map[string]int{}, now: map[string]int{}, top: map[string]int{}}
	proxy := httptest.NewServer(world)
	defer proxy.Close()

	ca := newAuthority(t, "ca")
	ca.issue("server", &x509.Certificate{DNSNames: []string{"secure.lab.example", "stranger.lab.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	ca.issue("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	pair, err := tls.LoadX509KeyPair(ca.file("server"), ca.file("server-key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	secure := httptest.NewUnstartedServer(world)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // strangers are turned away
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	secure.StartTLS()
	defer secure.Close()
	world.secure = secure.Listener.Addr().String()
	certs := filepath.Join(t.TempDir(), "certs.d")
	for from, to := range map[string]string{"ca": "ca.crt", "client": "client.cert", "client-key": "client.key"} {
		raw, err := os.ReadFile(ca.file(from))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(certs, "secure.lab.example", to), string(raw))
	}

	raw, err := json.Marshal(map[string]any{
		"max-concurrent-downloads": 2, "max-concurrent-uploads": 1, "image-blobs": "always", "registry-certs": []string{certs},
		"insecure-registries": []string{"plain.lab.example", "direct.lab.example"},
		"proxies":             map[string]string{"http-proxy": proxy.URL, "https-proxy": proxy.URL, "no-proxy": "direct.lab.example"},
		"registries": []any{map[string]any{
			"match": "*.mirrored.example/team/*", "mirrors-only": true, "mirrors": []any{map[string]any{"url": "http://" + reg.Addr, "rewrite": "mirror/{1}/{2}"}},
		}},
		"max-download-attempts": 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "daemon.json")
	writeFile(t, config, string(raw))
	e := enginetest.New(t, "--config-file", config)
	e.Up()

	// Through the proxy, two layers at a time, and all blobs stay.
	total, files := shipImage(t, reg.Addr, "set/many", "1", 200<<10, 200<<10, 200<<10, 200<<10, 200<<10, 200<<10)
	const plain = "plain.lab.example/set/many:1"
	e.Corten("pull", "-q", plain)
	checkImage(t, e, plain, files)
	if world.seen("plain.lab.example") == 0 || world.top["download"] != 2 {
		t.Errorf("asked for %v, %d downloads at a time", world.asked, world.top["download"])
	}
	if n := arrived(e); n < total {
		t.Errorf("%d of %d bytes of blobs stay", n, total)
	}
	// Not through the proxy, which alone knows where that is.
	if _, err := e.Try("pull", "-q", "direct.lab.example/set/many:1"); err == nil || world.seen("direct.lab.example") != 0 {
		t.Errorf("a host that needs no proxy: %v, asked for %v", err, world.asked)
	}
	// By https through the proxy: with the root and the certificate of its folder, and only with them.
	_, files = shipImage(t, reg.Addr, "set/secret", "1", 100<<10, 100<<10, 100<<10, 100<<10)
	e.Corten("pull", "-q", "secure.lab.example/set/secret:1")
	checkImage(t, e, "secure.lab.example/set/secret:1", files)
	if world.seen("secure.lab.example:443") == 0 {
		t.Errorf("asked for %v", world.asked)
	}
	if _, err := e.Try("pull", "-q", "stranger.lab.example/set/secret:1"); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("a registry whose folder is not there: %v", err)
	}
	// One layer at a time goes out, to a registry where nothing can be mounted from.
	const fresh = "plain.lab.example/set/new:1"
	e.Corten("tag", "secure.lab.example/set/secret:1", fresh)
	e.Corten("push", "-q", fresh)
	if world.top["upload"] != 1 || world.uploads < 4 {
		t.Errorf("%d uploads, %d at a time", world.uploads, world.top["upload"])
	}
	// From a mirror, whose name comes out of two wildcards.
	_, files = shipImage(t, reg.Addr, "mirror/eu/app", "1", 100<<10)
	e.Corten("pull", "-q", "eu.mirrored.example/team/app:1")
	checkImage(t, e, "eu.mirrored.example/team/app:1", files)
	if _, err := e.Try("pull", "-q", "us.mirrored.example/team/app:1"); err == nil {
		t.Error("what the mirror does not have came from somewhere")
	}
	if world.seen("eu.mirrored.example") != 0 {
		t.Errorf("asked for %v", world.asked)
	}
}
