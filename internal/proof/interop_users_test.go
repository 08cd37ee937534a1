package proof

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// private makes an authority and a certificate by it for 127.0.0.1: ca.crt, reg.crt and reg.key in dir.
func private(t *testing.T, dir string) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write := func(name, kind string, der []byte, err error) {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, regKey := key(), key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "private"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	write("ca.crt", "CERTIFICATE", der, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err = x509.CreateCertificate(rand.Reader, leaf, ca, &regKey.PublicKey, caKey)
	write("reg.crt", "CERTIFICATE", der, err)
	der, err = x509.MarshalECPrivateKey(regKey)
	write("reg.key", "EC PRIVATE KEY", der, err)
}

// A registry of ours with users, tokens or basic, and a certificate by an authority that only certs.d knows: everybody gets in with the password, and nobody without.
func TestInteropUsers(t *testing.T) {
	for _, mode := range []string{"token", "basic"} {
		t.Run(mode, func(t *testing.T) { interopUsers(t, mode) })
	}
}

func interopUsers(t *testing.T, mode string) {
	p := newPeers(t, "skopeo", "podman", "docker")
	keys := filepath.Join(p.dir, "keys")
	if err := os.Mkdir(keys, 0o700); err != nil {
		t.Fatal(err)
	}
	private(t, keys)
	users := filepath.Join(p.dir, "users")
	ht := exec.Command(filepath.Join(enginetest.Bin(t), "cortend"), "registry", "htpasswd", "-f", users, "ann")
	ht.Stdin = strings.NewReader("s3cret pass:word\n")
	if out, err := ht.CombinedOutput(); err != nil {
		t.Fatalf("htpasswd: %v %s", err, out)
	}
	reg := enginetest.NewRegistry(t, "--htpasswd", users, "--auth", mode, "--tls-cert", keys+"/reg.crt", "--tls-key", keys+"/reg.key")
	certs := filepath.Join(p.dir, "certs.d")
	mine := filepath.Join(certs, reg.Addr)
	if err := os.MkdirAll(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(keys + "/ca.crt")
	if err == nil {
		err = os.WriteFile(mine+"/ca.crt", ca, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	e := enginetest.New(t, "--registry-certs-dir", certs)
	e.Up()
	p.dockerd("SSL_CERT_FILE=" + keys + "/ca.crt") // its certs.d is in /etc, where tests do not write
	const creds = "ann:s3cret pass:word"
	want := makeLayout(t, p.dir+"/in", "amd64", "arm64")
	at := "docker://" + reg.Addr + "/usr"

	// skopeo, with the authority only, then with a wrong and with the right password.
	for _, bad := range [][]string{{"--dest-cert-dir", mine}, {"--dest-cert-dir", mine, "--dest-creds", "ann:wrong"}, {"--dest-creds", creds}} {
		if _, err := p.try("skopeo", append([]string{"copy", "--all", "oci:" + p.dir + "/in:v1", at + "/one:v1"}, bad...)...); err == nil {
			t.Errorf("skopeo got in with %q", bad)
		}
	}
	p.run("skopeo", "copy", "--all", "--dest-cert-dir", mine, "--dest-creds", creds, "oci:"+p.dir+"/in:v1", at+"/one:v1")
	p.run("skopeo", "copy", "--all", "--src-cert-dir", mine, "--src-creds", creds, at+"/one:v1", "oci:"+p.dir+"/out:v1")
	same(t, "skopeo with a password", want, inLayout(t, p.dir+"/out"))

	// podman logs in and out.
	secret := func(name string, args ...string) (string, error) {
		cmd := p.command(name, args...)
		cmd.Stdin = strings.NewReader("s3cret pass:word")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if _, err := p.try("podman", "pull", "-q", "--cert-dir", mine, reg.Addr+"/usr/one:v1"); err == nil {
		t.Error("podman got in without a password")
	}
	if out, err := secret("podman", "login", "--cert-dir", mine, "-u", "ann", "--password-stdin", reg.Addr); err != nil {
		t.Fatalf("podman login: %v %s", err, out)
	}
	p.run("podman", "pull", "-q", "--cert-dir", mine, reg.Addr+"/usr/one:v1")
	p.run("podman", "push", "-q", "--cert-dir", mine, reg.Addr+"/usr/one:v1", reg.Addr+"/usr/pod:v1")
	p.run("podman", "logout", reg.Addr)

	// docker, which has its credentials kept by its own client; the same client speaks to our engine.
	for _, host := range []string{"unix://" + p.dir + "/docker.sock", e.Socket()} {
		home := "DOCKER_CONFIG=" + filepath.Join(p.dir, "docker-"+mode)
		docker := func(in string, args ...string) (string, error) {
			cmd := exec.CommandContext(p.deadline, "docker", append([]string{"-H", host}, args...)...)
			cmd.Env, cmd.Stdin = append(p.env, home), strings.NewReader(in)
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		// docker.io tries loopback addresses without TLS afterwards, and then shows what came of that.
		if out, err := docker("", "pull", reg.Addr+"/usr/one:v1"); err == nil || host == e.Socket() && !strings.Contains(out, "pull access denied") {
			t.Errorf("%s: pull without login: %v %s", host, err, out)
		}
		if out, err := docker("wrong", "login", "-u", "ann", "--password-stdin", reg.Addr); err == nil || !strings.Contains(out, "nauthorized") {
			t.Errorf("%s: login with a wrong password: %v %s", host, err, out)
		}
		for _, args := range [][]string{{"login", "-u", "ann", "--password-stdin", reg.Addr}, {"pull", reg.Addr + "/usr/one:v1"},
			{"tag", reg.Addr + "/usr/one:v1", reg.Addr + "/usr/dock:v1"}, {"push", reg.Addr + "/usr/dock:v1"}, {"rmi", reg.Addr + "/usr/dock:v1", reg.Addr + "/usr/one:v1"},
			{"pull", reg.Addr + "/usr/dock:v1"}, {"rmi", reg.Addr + "/usr/dock:v1"}, {"logout", reg.Addr}} {
			if out, err := docker("s3cret pass:word", args...); err != nil {
				t.Errorf("%s: docker %s: %v %s", host, strings.Join(args, " "), err, out)
			}
		}
		if out, err := docker("", "pull", reg.Addr+"/usr/one:v1"); err == nil {
			t.Errorf("%s: pull after logout: %s", host, out)
		}
	}

	// corten itself; certs.d is the engine's, as with docker.
	login := e.Client("login", "-u", "ann", "--password-stdin", reg.Addr)
	login.Stdin = strings.NewReader("s3cret pass:word")
	if out, err := login.CombinedOutput(); err != nil {
		t.Fatalf("corten login: %v %s\n%s", err, out, e.Log())
	}
	e.Corten("pull", "-q", "--all-platforms", reg.Addr+"/usr/one:v1")
	e.Corten("tag", reg.Addr+"/usr/one:v1", reg.Addr+"/usr/two:v1")
	e.Corten("push", "-q", reg.Addr+"/usr/two:v1")
	e.Corten("image", "tags", reg.Addr+"/usr/two")
	if out := e.Corten("manifest", "inspect", reg.Addr+"/usr/two:v1"); !strings.Contains(out, "arm64") {
		t.Errorf("manifest inspect: %s", out)
	}
	e.Corten("search", reg.Addr+"/usr")
	p.run("skopeo", "copy", "--all", "--src-cert-dir", mine, "--src-creds", creds, at+"/two:v1", "oci:"+p.dir+"/two:v1")
	same(t, "corten with a password", want, inLayout(t, p.dir+"/two"))
	e.Corten("logout", reg.Addr)
	if _, err := e.Try("pull", reg.Addr+"/usr/pod:v1"); err == nil {
		t.Error("pull after logout")
	}
	for _, log := range []string{reg.Log(), e.Log()} {
		if strings.Contains(log, "s3cret") {
			t.Errorf("the password is in a log:\n%s", log)
		}
	}
}
