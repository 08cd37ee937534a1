package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/client/rules"
)

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func table(t testing.TB, opts HostsOptions) *Table {
	t.Helper()
	hosts, err := NewHosts(opts)
	if err != nil {
		t.Fatal(err)
	}
	return hosts
}

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	a := &authority{}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.pem, _ = a.sign(t, tmpl)
	return a
}

func (a *authority) sign(t testing.TB, tmpl *x509.Certificate) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a.key == nil {
		a.key, a.cert = key, tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

func (a *authority) leaf(t testing.TB, name string) (certPEM, keyPEM []byte) {
	return a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// proxy is a proxy that takes everybody to one address; it wants a password.
type proxy struct {
	*httptest.Server
	to      string
	carried atomic.Int64
}

func newProxy(t testing.TB, to string) *proxy {
	p := &proxy{to: to}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("me:pr0xy-word")) {
			w.WriteHeader(407)
			return
		}
		p.carried.Add(1)
		if r.Method != "CONNECT" {
			giveManifest(w, emptyManifest)
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		in, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			io.Copy(out, in)
			out.Close()
		}()
		io.Copy(in, out)
		in.Close()
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) find(t testing.TB, except string) func(*http.Request) (*url.URL, error) {
	t.Helper()
	u := strings.Replace(p.URL, "http://", "http://me:pr0xy-word@", 1)
	find, err := ProxyFrom(Proxies{HTTP: u, HTTPS: u, No: except})
	if err != nil {
		t.Fatal(err)
	}
	return find
}

// A registry with a certificate of its own root, that wants one of its clients: certs.d says both, and what changes there counts at once.
func TestCertsAndProxies(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.leaf(t, "reg.example")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.pem)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) }))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	defer srv.Close()
	p := newProxy(t, srv.Listener.Addr().String())

	dir := t.TempDir()
	folder := filepath.Join(dir, "reg.example:5443")
	write := func(name string, raw []byte) {
		t.Helper()
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := quick(t, table(t, HostsOptions{CertDirs: []string{filepath.Join(dir, "none"), dir}, Proxy: p.find(t, "")}))
	resolve := func() error {
		t.Helper()
		_, err := repo(t, c, "reg.example:5443/team/app", Credentials{}).Resolve(t.Context(), "1")
		return err
	}
	if err := resolve(); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Fatalf("no root: %v", err)
	}
	write("ca.crt", []byte("no certificate"))
	if err := resolve(); err == nil || !strings.Contains(err.Error(), "no certificate in PEM form") {
		t.Fatalf("a root that is none: %v", err)
	}
	write("ca.crt", ca.pem)
	if err := resolve(); err == nil || !strings.Contains(err.Error(), "certificate required") && !strings.Contains(err.Error(), "bad certificate") {
		t.Fatalf("no client certificate: %v", err)
	}
	clientCert, clientKey := ca.leaf(t, "client")
	write("client.cert", clientCert)
	if err := resolve(); err == nil || !strings.Contains(err.Error(), "missing key "+folder+"/client.key for client certificate "+folder+"/client.cert. CA certificates must use the extension .crt") {
		t.Fatalf("no key: %v", err)
	}
	write("client.key", clientKey)
	if err := resolve(); err != nil {
		t.Fatalf("all there: %v", err)
	}
	if p.carried.Load() == 0 {
		t.Error("the proxy was not used")
	}
	if err := os.Remove(folder + "/client.cert"); err != nil {
		t.Fatal(err)
	}
	if err := resolve(); err == nil || !strings.Contains(err.Error(), "missing client certificate") {
		t.Fatalf("a key alone: %v", err)
	}
}

func TestProxyFailsWithoutItsPassword(t *testing.T) {
	p := newProxy(t, "127.0.0.1:1")
	find, err := ProxyFrom(Proxies{HTTPS: strings.Replace(p.URL, "http://", "http://me:wr0ng-word@", 1), HTTP: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = repo(t, quick(t, table(t, HostsOptions{Proxy: find})), "reg.example/team/app", Credentials{}).Resolve(t.Context(), "1")
	if err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("got %v", err)
	}
	_, err = repo(t, quick(t, table(t, HostsOptions{Proxy: p.find(t, "")})), "reg.example/team/app", Credentials{}).Resolve(t.Context(), "1")
	if err == nil || !strings.Contains(err.Error(), "Bad Gateway") {
		t.Errorf("a proxy without a way: %v", err)
	}
}

func TestNoProxy(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("HTTPS_PROXY", "proxy.example:3128")
	t.Setenv("no_proxy", "corp.example, .below.example,10.0.0.0/8,192.0.2.7,port.example:5000,*.star.example,[2001:db8::1]")
	find, err := ProxyFrom(Proxies{HTTP: "http://plain.example"})
	if err != nil {
		t.Fatal(err)
	}
	for u, want := range map[string]string{
		"https://reg.example/": "http://proxy.example:3128", "http://reg.example/": "http://plain.example", "https://corp.example/": "", "https://a.corp.example:8/": "",
		"https://xcorp.example/": "http://proxy.example:3128", "https://below.example/": "http://proxy.example:3128", "https://a.below.example/": "", "https://10.1.2.3:5000/": "",
		"https://192.0.2.7/": "", "https://192.0.2.8/": "http://proxy.example:3128", "https://port.example:5000/": "", "https://port.example/": "http://proxy.example:3128",
		"https://a.star.example/": "", "https://[2001:db8::1]/": "", "https://localhost:5000/": "", "https://127.0.0.1/": "", "https://[::1]:5/": "",
	} {
		got, err := find(&http.Request{URL: mustURL(t, u)})
		if s := fmt.Sprint(got); err != nil || s != want && !(want == "" && got == nil) {
			t.Errorf("%s: %v %v, want %q", u, got, err, want)
		}
	}
	if _, err := ProxyFrom(Proxies{HTTP: "http://me:hidden@a b"}); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("got %v", err)
	}
}

// A proxy that is none is an error of each request, not a crash at the start.
func TestBrokenProxyOfTheEnvironment(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://a b")
	if _, err := NewHosts(HostsOptions{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("got %v", err)
	}
	if _, err := repo(t, quick(t, nil), "reg.example/a/b", Credentials{}).Resolve(t.Context(), "1"); err == nil || !strings.Contains(err.Error(), "proxy: give http://HOST:PORT") {
		t.Errorf("got %v", err)
	}
}

// http is for insecure registries; everybody else hears Docker's words.
func TestPlainHTTP(t *testing.T) {
	plain := serve(t, false, func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) })
	host := strings.TrimPrefix(plain.URL, "http://")
	port := host[strings.LastIndexByte(host, ':'):]
	secure := fixed{list: []Endpoint{{URL: "https://" + host}}, way: Direct().way(wayKey{})}
	_, err := repo(t, quick(t, secure), host+"/team/app", Credentials{}).Resolve(t.Context(), "1")
	want := `Get "https://` + host + `/v2/team/app/manifests/1": http: server gave HTTP response to HTTPS client`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	for name, c := range map[string]*Client{host: quick(t, nil), "localhost" + port: quick(t, nil)} {
		for range 2 {
			if _, err := repo(t, c, name+"/team/app", Credentials{}).Resolve(t.Context(), "1"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	https := serve(t, true, func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) })
	if _, err := repo(t, quick(t, nil), strings.TrimPrefix(https.URL, "https://")+"/team/app", Credentials{}).Resolve(t.Context(), "1"); err != nil {
		t.Errorf("a certificate that nobody signed, on this host: %v", err)
	}
	plain.Close()
	began := time.Now()
	_, err = repo(t, New(Options{}), host+"/team/app", Credentials{}).Resolve(t.Context(), "1")
	if err == nil || !strings.Contains(err.Error(), "connection refused") || time.Since(began) > 10*time.Second {
		t.Errorf("nobody there: %v after %v", err, time.Since(began))
	}
}

// Two uploads of one push set out for https at the same time. The one whose refusal came back when the other had found http already failed, with docker's words for a
// registry that is not insecure.
func TestPlainHTTPFoundByTwo(t *testing.T) {
	plain := serve(t, false, func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) })
	host := strings.TrimPrefix(plain.URL, "http://")
	for range 20 {
		one := repo(t, quick(t, nil), host+"/team/app", Credentials{})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if _, err := one.Resolve(t.Context(), "1"); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
}

// A pull that takes longer than it is remembered that a host has no https goes on by http.
func TestPlainHTTPForAsLongAsItTakes(t *testing.T) {
	plain := serve(t, false, func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) })
	host := strings.TrimPrefix(plain.URL, "http://")
	c := quick(t, nil)
	r := repo(t, c, host+"/team/app", Credentials{})
	for range 2 {
		if _, err := r.Resolve(t.Context(), "1"); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		c.plain[host] = time.Now().Add(-2 * plainMemory)
		c.mu.Unlock()
	}
}

// A request that was cancelled while it asked by https once made the engine ask by http for ten minutes, which a server that has TLS refuses.
func TestAccidentsAreNoDowngrade(t *testing.T) {
	https := serve(t, true, func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) })
	c := quick(t, nil)
	r := repo(t, c, strings.TrimPrefix(https.URL, "https://")+"/team/app", Credentials{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Resolve(ctx, "1"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	// A connection that broke tries http, which is refused; the next request begins with https again.
	s := r.(*repository).sites[0]
	if s.fallBack(t.Context(), mustURL(t, https.URL), io.EOF) == nil {
		t.Fatal("an insecure registry is not tried by http")
	}
	if _, err := r.Resolve(t.Context(), "1"); err == nil || !strings.Contains(err.Error(), "400 Bad Request") {
		t.Fatal(err)
	}
	if _, err := r.Resolve(t.Context(), "1"); err != nil {
		t.Error(err)
	}
}

// What is insecure by the network it is in must be there when it is dialled, whatever its name means then.
func TestInsecureNetworks(t *testing.T) {
	hosts := table(t, HostsOptions{Insecure: []string{"10.0.0.0/8", "Named.example:5000", "whole.example"}})
	hosts.look = func(_ context.Context, host string) ([]netip.Addr, error) {
		switch host {
		case "inside.example":
			return []netip.Addr{netip.MustParseAddr("10.1.2.3")}, nil
		case "outside.example":
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		}
		return nil, errors.New("no such host")
	}
	for domain, want := range map[string]bool{
		"10.9.8.7:5000": true, "11.0.0.1": false, "named.example:5000": true, "named.example": false, "whole.example:1": true, "inside.example:5000": true,
		"outside.example": false, "unknown.example": false, "127.0.0.5:5000": true, "[::1]:5000": true, "localhost": true, "a.localhost:5": true, "docker.io": false,
	} {
		list, err := hosts.Endpoints(domain, "team/app")
		if err != nil || list[0].PlainToo != want {
			t.Errorf("%s: insecure %v %v", domain, list[0].PlainToo, err)
		}
	}
	list, err := hosts.Endpoints("inside.example:5000", "team/app")
	if err != nil {
		t.Fatal(err)
	}
	base := list[0].Transport.(*transport).base
	if _, err := base.DialContext(context.WithValue(t.Context(), dialKey{}, dialRule{host: "inside.example"}), "tcp", "192.0.2.1:5000"); err == nil || !strings.Contains(err.Error(), "not in the insecure networks") {
		t.Errorf("dialled elsewhere: %v", err)
	}
}

func TestRulesOfEndpoints(t *testing.T) {
	hosts := table(t, HostsOptions{
		Mirrors: []string{"https://hub-mirror.example/", "http://second.example:5000"},
		Rules: []rules.Rule{
			{Match: "docker.io/library", Mirrors: []rules.Mirror{{URL: "https://official.example", Rewrite: "hub/{rest}", Namespace: true}}},
			{Match: "*.corp.example/team/*", Mirrors: []rules.Mirror{{URL: "https://m.example/prefix", Rewrite: "{1}/{2}/{host}"}, {URL: "https://m2.example", Insecure: true}}, Location: "https://real.example:5000", Rewrite: "t/{path}"},
			{Match: "old.example", Location: "http://new.example"},
			{Match: "bad.example", Blocked: true},
			{Match: "air.example", Mirrors: []rules.Mirror{{URL: "https://gap.example"}}, MirrorsOnly: true},
		},
	})
	show := func(domain, path string) string {
		list, err := hosts.Endpoints(domain, path)
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, ep := range list {
			to := path
			if ep.Rewrite != nil {
				to = ep.Rewrite(path)
			}
			s := ep.URL + " " + to
			for word, is := range map[string]bool{" mirror": ep.Mirror, " insecure": ep.PlainToo, " ns": ep.NameSpace} {
				if is && word == " mirror" {
					s = "mirror " + s
				} else if is {
					s += word
				}
			}
			out = append(out, s)
		}
		return strings.Join(out, " | ")
	}
	for _, tc := range []struct{ domain, path, want string }{
		{"docker.io", "library/busybox", "mirror https://official.example hub/busybox ns | https://registry-1.docker.io library/busybox"},
		{"docker.io", "ann/app", "mirror https://hub-mirror.example/ ann/app | mirror http://second.example:5000 ann/app | https://registry-1.docker.io ann/app"},
		{"x.corp.example:5000", "team/app/web", "mirror https://m.example/prefix x/app/x.corp.example | mirror https://m2.example team/app/web insecure | https://real.example:5000 t/team/app/web"},
		{"x.corp.example", "other/app", "https://x.corp.example other/app"},
		{"corp.example", "team/app", "https://corp.example team/app"},
		{"old.example", "a", "http://new.example a"},
		{"bad.example", "a", `registry bad.example: blocked by the engine's settings (registries: match "bad.example")`},
		{"air.example", "a", "mirror https://gap.example a"},
		{"plain.example", "a/b", "https://plain.example a/b"},
	} {
		// A wildcard host keeps the name without port for {1}.
		if got := show(tc.domain, tc.path); got != tc.want {
			t.Errorf("%s/%s:\n got %s\nwant %s", tc.domain, tc.path, got, tc.want)
		}
	}
	for _, bad := range []HostsOptions{{Mirrors: []string{"mirror.example"}}, {Insecure: []string{"a b"}}, {Rules: []rules.Rule{{Match: "/"}}}} {
		if _, err := NewHosts(bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// Speaking HTTP/2, a client keeps one connection for many layers.
func TestHTTP2(t *testing.T) {
	var proto atomic.Value
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto.Store(r.Proto)
		giveManifest(w, emptyManifest)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	if _, err := repo(t, quick(t, nil), strings.TrimPrefix(srv.URL, "https://")+"/a/b", Credentials{}).Resolve(t.Context(), "1"); err != nil || proto.Load() != "HTTP/2.0" {
		t.Errorf("%v %v", proto.Load(), err)
	}
}

// A server that answers nonsense is an error, not a crash.
func TestNonsense(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 4<<10)) // whatever it says
			conn.Write(bytes.Repeat([]byte("HTTP/9 \x00\xff"), 100))
			conn.Close()
		}
	}()
	_, err = repo(t, quick(t, nil), l.Addr().String()+"/a/b", Credentials{}).Resolve(t.Context(), "1")
	if !errors.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
}

// A mirror has a user of its own, or none; the registry's is not for it.
func TestCredentialsOfMirrors(t *testing.T) {
	mirror := serve(t, false, wantBasic(func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) }))
	host := strings.TrimPrefix(mirror.URL, "http://")
	file := filepath.Join(t.TempDir(), "config.json")
	c := quick(t, table(t, HostsOptions{Rules: []rules.Rule{{Match: "127.0.0.1:1", Mirrors: []rules.Mirror{{URL: mirror.URL, Credentials: file}}}}}))
	for text, good := range map[string]bool{
		fmt.Sprintf(`{"auths":{"https://%s/v1/":{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("ann:s3cr3t-word"))): true,
		fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("ann:other-s3cr3t"))):              false,
		`{"auths":{}}`: false,
		`{"auths":{"` + host + `":{"auth":"s3cr3t"}}}`: false,
		`s3cr3t`: false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := repo(t, c, "127.0.0.1:1/a/b", Credentials{Username: "bob", Password: "not-for-mirrors"}).Resolve(t.Context(), "1")
		if (err == nil) != good || err != nil && (strings.Contains(err.Error(), "s3cr3t") || !strings.Contains(err.Error(), "connection refused")) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if n := mirror.count(func(r *http.Request) bool { user, _, _ := r.BasicAuth(); return user == "bob" }); n > 0 {
		t.Error("the registry's user went to a mirror")
	}
}

// Names without a registry are docker.io's in every client; with another default registry they lead there, and rules still come first.
func TestDefaultRegistry(t *testing.T) {
	hosts := table(t, HostsOptions{Default: "reg.example:5000", Mirrors: []string{"https://hub-mirror.example"}, Rules: []rules.Rule{{Match: "docker.io/other", Location: "https://other.example"}}})
	for path, want := range map[string]string{"library/busybox": "https://reg.example:5000 busybox", "team/app": "https://reg.example:5000 team/app", "other/app": "https://other.example other/app"} {
		list, err := hosts.Endpoints("docker.io", path)
		if err != nil || len(list) != 1 {
			t.Fatalf("%s: %v %v", path, list, err)
		}
		got := path
		if list[0].Rewrite != nil {
			got = list[0].Rewrite(path)
		}
		if got = list[0].URL + " " + got; got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	if list, err := hosts.Endpoints("quay.example", "team/app"); err != nil || list[0].URL != "https://quay.example" {
		t.Errorf("a name with a registry: %v %v", list, err)
	}
}
