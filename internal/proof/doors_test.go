package proof

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
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

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue(name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes NAME.pem and NAME-key.pem, signed by the authority, or by itself as long as there is none.
func (a *authority) issue(name string, tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writeFile(a.t, a.file(name), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(a.t, a.file(name+"-key"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})))
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name+".pem") }

func (a *authority) flags(client string) []string {
	return []string{"--tlsverify", "--tlscacert", a.file("ca"), "--tlscert", a.file(client), "--tlskey", a.file(client + "-key")}
}

// clients are the command lines to try: ours, and docker's where it is installed.
func clients(e *enginetest.Engine) map[string]string {
	found := map[string]string{"corten": filepath.Join(e.Bin, "corten")}
	if path, err := exec.LookPath("docker"); err == nil {
		found["docker"] = path
	}
	return found
}

// Over tcp, with certificates on both sides: the right ones get in and work, hijacked streams too; none, another's or a stranger's do not.
func TestTLS(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "ca")
	ca.issue("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	ca.issue("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	other.issue("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	at := enginetest.Addr(t)
	e := enginetest.Start(t, append([]string{"-H", "tcp://" + at}, ca.flags("server")...)...)
	for name, path := range clients(e) {
		call := func(stdin string, args ...string) (string, error) {
			cmd := exec.Command(path, append([]string{"-H", "tcp://" + at}, args...)...)
			cmd.Env, cmd.Stdin = append(os.Environ(), "HOME="+e.Dir), strings.NewReader(stdin)
			out, err := cmd.CombinedOutput()
			return strings.TrimSpace(string(out)), err
		}
		if out, err := call("through", append(ca.flags("client"), "run", "--rm", "-i", enginetest.Busybox, "cat")...); err != nil || out != "through" {
			t.Errorf("%s: %q %v", name, out, err)
		}
		stranger := []string{"--tlsverify", "--tlscacert", ca.file("ca"), "--tlscert", other.file("client"), "--tlskey", other.file("client-key")}
		for what, flags := range map[string][]string{
			"without TLS": nil, "without a certificate": {"--tls"}, "with another's certificate": stranger, "when the server is a stranger's": other.flags("client"),
		} {
			if out, err := call("", append(flags, "ps")...); err == nil {
				t.Errorf("%s gets in %s: %s", name, what, out)
			} else if strings.Contains(out, "panic") || strings.Count(out, "\n") > 3 {
				t.Errorf("%s %s: %s", name, what, out)
			}
		}
	}
}

// sshServer runs a private sshd with throw-away keys, and gives the folder of an ssh that knows them.
func sshServer(t *testing.T, e *enginetest.Engine) (port, sshDir string) {
	t.Helper()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		if _, serr := os.Stat("/usr/sbin/sshd"); serr != nil {
			t.Skip("needs sshd (Debian: openssh-server)")
		}
		sshd = "/usr/sbin/sshd"
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("needs ssh (Debian: openssh-client)")
	}
	dir := filepath.Join(e.Dir, "ssh")
	writeFile(t, filepath.Join(dir, "empty"), "")
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v %s", err, out)
		}
	}
	if err := os.Mkdir("/run/sshd", 0o755); err == nil { // sshd wants it even when it does not use it
		t.Cleanup(func() { _ = os.Remove("/run/sshd") })
	}
	_, port, _ = net.SplitHostPort(enginetest.Addr(t))
	path := e.Bin + ":" + os.Getenv("PATH")
	writeFile(t, filepath.Join(dir, "sshd_config"), fmt.Sprintf("ListenAddress 127.0.0.1\nPort %s\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nSetEnv PATH=%s\n", port, dir, dir, path))
	server := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	server.Stderr = log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	writeFile(t, filepath.Join(dir, "ssh"), fmt.Sprintf("#!/bin/sh\nexec %s -F %s/empty -i %s/user -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \"$@\"\n", ssh, dir, dir))
	if err := os.Chmod(filepath.Join(dir, "ssh"), 0o755); err != nil {
		t.Fatal(err)
	}
	wait(t, "sshd", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return port, dir
}

// An engine on another machine, by ssh: corten starts corten there, docker starts docker.
func TestSSH(t *testing.T) {
	e := enginetest.Start(t)
	port, sshDir := sshServer(t, e)
	host := "ssh://root@127.0.0.1:" + port + strings.TrimPrefix(e.Socket(), "unix://")
	for name, path := range clients(e) {
		cmd := exec.Command(path, "-H", host, "run", "--rm", "-i", enginetest.Busybox, "cat")
		cmd.Env = append(os.Environ(), "HOME="+e.Dir, "PATH="+sshDir+":"+os.Getenv("PATH"))
		cmd.Stdin = strings.NewReader("through")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "through" {
			log, _ := os.ReadFile(filepath.Join(sshDir, "log"))
			t.Errorf("%s: %q %v\n%s", name, out, err, log)
		}
	}
	_, nobody, _ := net.SplitHostPort(enginetest.Addr(t))
	cmd := exec.Command(filepath.Join(e.Bin, "corten"), "-H", "ssh://root@127.0.0.1:"+nobody, "ps")
	cmd.Env = append(os.Environ(), "HOME="+e.Dir, "PATH="+sshDir+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Connection refused") {
		t.Errorf("where no sshd is: %s %v", out, err)
	}
}

// The completion scripts in the shells that they are for.
func TestCompletion(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("create", "--name", "wellknown", enginetest.Busybox, "true")
	// The parts of zsh that the script calls stand in for a terminal.
	const zsh = `compdef() { :; }; _files() { :; }; compadd() { print -l -- ${(P)argv[-1]}; }; source <(corten completion zsh)
at() { words=("$@"); CURRENT=$#; _corten; }; at corten volu; at corten rm wel; at corten run --netw; true`
	for shell, c := range map[string]struct{ script, want string }{
		"bash": {`source <(corten completion bash); at() { COMP_LINE="$*"; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _corten; echo "${COMPREPLY[*]}"; }; at corten volu; at corten rm wel; at corten run --netw`, "volume\nwellknown\n--network"},
		"fish": {`corten completion fish | source; for l in "corten volu" "corten rm wel" "corten run --netw"; complete -C $l; end`, "volume\nwellknown\n--network"},
		"zsh":  {zsh, "volume\nwellknown\n--network"},
	} {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(shell); err != nil {
				t.Skip("needs " + shell)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, shell, "-c", c.script)
			cmd.Env = append(os.Environ(), "HOME="+e.Dir, "CORTEN_HOST="+e.Socket(), "PATH="+e.Bin+":"+os.Getenv("PATH"), "TERM=dumb")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasPrefix(strings.ReplaceAll(string(out), " \n", "\n"), c.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// A published port carries sctp, where the kernel has it.
func TestSCTP(t *testing.T) {
	if raw, err := os.ReadFile("/proc/net/protocols"); err != nil || !strings.Contains(string(raw), "SCTP") {
		t.Skip("this kernel has no sctp")
	}
	if _, err := exec.LookPath("socat"); err != nil {
		t.Skip("needs socat")
	}
	e := enginetest.Start(t)
	_, port, _ := net.SplitHostPort(enginetest.Addr(t))
	socat, err := exec.LookPath("socat")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"run", "-d", "--name", "echo", "-p", "127.0.0.1:" + port + ":7000/sctp"}
	for _, dir := range []string{"/lib", "/lib64", "/usr"} {
		args = append(args, "-v", dir+":"+dir+":ro")
	}
	e.Corten(append(args, enginetest.Busybox, socat, "SCTP-LISTEN:7000,fork", "EXEC:/bin/cat")...)
	wait(t, "the echo", func() bool {
		cmd := exec.Command(socat, "-t2", "-", "SCTP:127.0.0.1:"+port)
		cmd.Stdin = strings.NewReader("hello")
		out, err := cmd.Output()
		return err == nil && string(out) == "hello"
	})
}
