package endpoint

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An engine's certificate is for the name it is called by. It was compared with the address that the name leads to, so that no engine with a name could be reached by TLS; a CA without a client
// certificate beside it was refused; --tlsverify=false talked in plain text, where docker's means TLS without a check, and so did https://.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	port := tlsServer(t, filepath.Join(dir, "ca.pem"))
	for _, c := range []struct {
		name  string
		flags Flags
		env   string
		want  string // in the error
	}{
		{"the name", Flags{Host: "tcp://localhost:" + port, TLSVerify: true}, "", ""},
		{"by the environment", Flags{Host: "tcp://localhost:" + port}, "1", ""},
		{"another name", Flags{Host: "tcp://127.0.0.1:" + port, TLSVerify: true}, "", "doesn't contain any IP SANs"},
		{"no check", Flags{Host: "tcp://127.0.0.1:" + port, VerifySet: true}, "1", ""},
		{"TLS only", Flags{Host: "tcp://127.0.0.1:" + port, TLS: true}, "", ""},
		{"by the address", Flags{Host: "https://localhost:" + port}, "", "unknown authority"},
		{"half a certificate", Flags{Host: "tcp://localhost:" + port, TLSVerify: true, CertFile: filepath.Join(dir, "ca.pem")}, "", "go together"},
	} {
		t.Setenv("DOCKER_TLS_VERIFY", c.env)
		t.Setenv("DOCKER_CERT_PATH", dir)
		ep, err := Resolve(c.flags, &Config{})
		if err != nil {
			t.Fatal(err)
		}
		nc, err := ep.Dial(context.Background())
		if err == nil {
			nc.Close()
		}
		if _, secure := nc.(*tls.Conn); err == nil && !secure {
			t.Errorf("%s: plain text", c.name)
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// tlsServer has a certificate for localhost, which it writes to a file. It shakes hands, and that is all.
func tlsServer(t *testing.T, file string) (port string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				_ = nc.(*tls.Conn).Handshake() // the client tells what is wrong
				nc.Read(make([]byte, 1))
			}()
		}
	}()
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
