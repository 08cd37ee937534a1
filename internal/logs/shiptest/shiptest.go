// Package shiptest is the other end for tests of log drivers: receivers for every transport, and what is sent to them.
//
// It owns the listening sockets and certificates of a test. It knows no log format: each driver's test reads what came with a parser of its own, written from the format's specification.
// It promises that everything is closed when the test ends.
package shiptest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/logs/ship"
)

// Patience is how long a test waits for something that must happen.
const Patience = 60 * time.Second

// Receiver takes what comes.
type Receiver struct {
	t       testing.TB
	Address string // host:port or path
	network string
	l       net.Listener
	pc      net.PacketConn

	mu     sync.Mutex // guards what follows
	stream bytes.Buffer
	grams  [][]byte
	conns  []net.Conn
	// Answer, if set, is called with each piece that a stream brings; what it returns is sent back.
	Answer func(piece []byte) []byte
}

// Listen makes a receiver: network is tcp, udp, unix or unixgram. With a config streams are TLS. address may be empty for one that is free.
func Listen(t testing.TB, network, address string, conf *tls.Config) *Receiver {
	t.Helper()
	r := &Receiver{t: t, network: network}
	if address == "" {
		address = "127.0.0.1:0"
		if strings.HasPrefix(network, "unix") {
			dir, err := os.MkdirTemp("", "rcv")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			address = filepath.Join(dir, "s")
		}
	}
	var err error
	if network == "udp" || network == "unixgram" {
		r.pc, err = net.ListenPacket(network, address)
	} else {
		r.l, err = net.Listen(network, address)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	if r.pc != nil {
		r.Address = r.pc.LocalAddr().String()
		go r.packets()
		return r
	}
	r.Address = r.l.Addr().String()
	if conf != nil {
		r.l = tls.NewListener(r.l, conf)
	}
	go r.accept()
	return r
}

func (r *Receiver) packets() {
	buf := make([]byte, 1<<17)
	for {
		n, _, err := r.pc.ReadFrom(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.grams = append(r.grams, bytes.Clone(buf[:n]))
		r.mu.Unlock()
	}
}

func (r *Receiver) accept() {
	for {
		conn, err := r.l.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.conns = append(r.conns, conn)
		r.mu.Unlock()
		go r.read(conn)
	}
}

func (r *Receiver) read(conn net.Conn) {
	buf := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buf)
		r.mu.Lock()
		r.stream.Write(buf[:n])
		answer := r.Answer
		r.mu.Unlock()
		if n > 0 && answer != nil {
			if back := answer(bytes.Clone(buf[:n])); len(back) > 0 {
				if _, err := conn.Write(back); err != nil {
					return
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// Bytes is everything that streams brought.
func (r *Receiver) Bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.stream.Bytes())
}

// Datagrams is everything that came as datagrams.
func (r *Receiver) Datagrams() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([][]byte{}, r.grams...)
}

// Drop closes the connections there are; new ones are taken.
func (r *Receiver) Drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.conns {
		conn.Close()
	}
	r.conns = nil
}

// Close ends the receiver.
func (r *Receiver) Close() {
	if r.pc != nil {
		r.pc.Close()
	} else {
		r.l.Close()
	}
	r.Drop()
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !fn(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Info is a container.
func Info(opts map[string]string) *ship.Info {
	return &ship.Info{
		Config: opts, ContainerID: strings.Repeat("0123456789abcdef", 4), ContainerName: "/web", ContainerEntrypoint: "sh", ContainerArgs: []string{"-c", "x"},
		ContainerImageID: "sha256:" + strings.Repeat("f", 64), ContainerImageName: "app:1", ContainerCreated: time.Unix(1600000000, 5e6).UTC(), ContainerEnv: []string{"FOO=x y"},
		ContainerLabels: map[string]string{"com.ex.a": "va"}, DaemonName: "docker", Host: "desk",
	}
}

// When is the time of the first message; each is a millisecond and a microsecond later.
var When = time.Date(2026, 2, 3, 4, 5, 6, 789012345, time.UTC)

// Messages are lines as a container says them: those that begin with "!" are of stderr.
func Messages(lines ...string) []ship.Message {
	var all []ship.Message
	for i, line := range lines {
		m := ship.Message{Stream: logs.Stdout, Time: When.Add(time.Duration(i) * 1001 * time.Microsecond), Line: []byte(line), Number: int64(i + 1), Ends: true}
		if strings.HasPrefix(line, "!") {
			m.Stream = logs.Stderr
		}
		all = append(all, m)
	}
	return all
}

// Send opens a destination and sends everything, and returns it open.
func Send(t testing.TB, d ship.Driver, info *ship.Info, msgs []ship.Message) ship.Destination {
	t.Helper()
	if err := d.Check(info.Config); err != nil {
		t.Fatal(err)
	}
	dest, err := d.Open(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dest.Close() })
	for len(msgs) > 0 {
		ctx, cancel := context.WithTimeout(t.Context(), Patience)
		n, err := dest.Send(ctx, msgs)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			t.Fatal(errors.New("nothing was sent, without an error"))
		}
		msgs = msgs[n:]
	}
	return dest
}

// Certificates are a CA, a server's for 127.0.0.1 and a client's, as files.
type Certificates struct {
	CA, Cert, Key string // files; Cert and Key are the client's
	Server        *tls.Config
}

// Certify makes certificates. The server asks for the client's.
func Certify(t testing.TB) Certificates {
	t.Helper()
	dir := t.TempDir()
	ca, caKey := certificate(t, nil, nil)
	server, serverKey := certificate(t, ca, caKey)
	client, clientKey := certificate(t, ca, caKey)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	c := Certificates{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	der, err := x509.MarshalECPrivateKey(clientKey)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		c.CA: {Type: "CERTIFICATE", Bytes: ca.Raw}, c.Cert: {Type: "CERTIFICATE", Bytes: client.Raw}, c.Key: {Type: "EC PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Server = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw}, PrivateKey: serverKey}}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
	return c
}

func certificate(t testing.TB, by *x509.Certificate, byKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if by == nil {
		tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign
		by, byKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, &key.PublicKey, byKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}
