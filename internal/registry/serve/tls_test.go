package serve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/registry/server/servertest"
)

// makeCert writes a certificate that signs itself.
func makeCert(t *testing.T, dir, host string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	cert = writeFile(t, filepath.Join(dir, "cert.pem"), string(certPEM))
	key = writeFile(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, key, pool
}

func handshake(t *testing.T, addr, host string, pool *x509.CertPool) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{ServerName: host, RootCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key, pool := makeCert(t, dir, "registry.test")
	r := start(t, nil, "--tls-cert", cert, "--tls-key", key, "--htpasswd", users(t, "ann:apple"))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + r.addr + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.ProtoMajor != 2 || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), `Bearer realm="https://`+r.addr+`/token"`) {
		t.Errorf("%s %s", resp.Proto, resp.Header.Get("WWW-Authenticate"))
	}
	// The certificate is renewed beside us.
	old := handshake(t, r.addr, "registry.test", pool)
	_, _, pool = makeCert(t, dir, "registry.test")
	r.signals <- syscall.SIGHUP
	r.waitLog("settings read again")
	if renewed := handshake(t, r.addr, "registry.test", pool); renewed.SerialNumber.Cmp(old.SerialNumber) == 0 {
		t.Error("the old certificate is still shown")
	}
	if err := os.WriteFile(cert, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGHUP
	r.waitLog("the settings stay as they were")
	handshake(t, r.addr, "registry.test", pool)
}

// dnsServer says that every name is this machine, over TCP, which is how pebble asks.
func dnsServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answerDNS(conn)
		}
	}()
	return l.Addr().String()
}

func answerDNS(conn net.Conn) {
	defer conn.Close()
	var size [2]byte
	for {
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		buf := make([]byte, int(size[0])<<8|int(size[1]))
		var msg dnsmessage.Message
		if _, err := io.ReadFull(conn, buf); err != nil || msg.Unpack(buf) != nil || len(msg.Questions) != 1 {
			return
		}
		msg.Response, msg.Authoritative, msg.Additionals = true, true, nil
		if q := msg.Questions[0]; q.Type == dnsmessage.TypeA {
			msg.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
		}
		out, err := msg.AppendPack([]byte{0, 0})
		if err != nil {
			return
		}
		out[0], out[1] = byte((len(out)-2)>>8), byte(len(out)-2)
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

// pebble is Let's Encrypt's own test directory, in a module of its own below testdata.
func pebble(t *testing.T, tlsAddr, httpAddr string) (directory, ca string) {
	t.Helper()
	program := servertest.Tool(t, "testdata/acme", "pebble")
	dir := t.TempDir()
	cert, key, _ := makeCert(t, dir, "directory.test")
	port := func(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }
	addr := enginetest.Addr(t)
	conf := writeFile(t, filepath.Join(dir, "pebble.json"), fmt.Sprintf(`{"pebble": {"listenAddress": %q, "certificate": %q, "privateKey": %q, "httpPort": %s, "tlsPort": %s}}`,
		addr, cert, key, port(httpAddr), port(tlsAddr)))
	cmd := exec.Command(program, "-config", conf, "-dnsserver", dnsServer(t))
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0")
	log := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the directory says:\n%s", log)
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return "https://" + addr + "/dir", cert
		}
		if time.Now().After(end) {
			t.Fatalf("the directory does not answer:\n%s", log)
		}
	}
}

// A registry gets its certificate by itself, and keeps it.
func TestACME(t *testing.T) {
	addr, httpAddr := enginetest.Addr(t), enginetest.Addr(t)
	directory, ca := pebble(t, addr, httpAddr)
	root := filepath.Join(t.TempDir(), "root")
	acme := map[string]any{"directory": directory, "domains": []string{"registry.example.test"}, "email": "ops@example.com", "ca": ca, "http-addr": httpAddr}
	var serial *big.Int
	for range 2 {
		r := start(t, map[string]any{"tls": map[string]any{"acme": acme}}, "--addr", addr, "--root", root, "-l", "debug")
		conn, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "registry.example.test", InsecureSkipVerify: true}) // the directory's root is made anew each time
		if err != nil {
			t.Fatalf("%v\n%s", err, r.log)
		}
		cert := conn.ConnectionState().PeerCertificates[0]
		conn.Close()
		if err := cert.VerifyHostname("registry.example.test"); err != nil || !strings.Contains(cert.Issuer.CommonName, "Pebble") {
			t.Errorf("the certificate is of %s: %v", cert.Issuer, err)
		}
		if serial != nil && serial.Cmp(cert.SerialNumber) != 0 {
			t.Error("a restart asked for another certificate")
		}
		serial = cert.SerialNumber
		if _, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "other.example.test", InsecureSkipVerify: true}); err == nil {
			t.Error("there is a certificate for a name that was not given")
		}
		r.stop()
	}
}
