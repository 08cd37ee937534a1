package link_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"corten.dev/corten/internal/logs/link"
	"corten.dev/corten/internal/logs/shiptest"
)

// A receiver that takes nothing does not hold a writer for ever, and one that the caller gives up on not at all.
func TestStall(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		addr := "127.0.0.1:0"
		if network == "unix" {
			addr = t.TempDir() + "/s"
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		open := func(stall time.Duration) *link.Link {
			conn, err := link.Dial(t.Context(), link.Options{Network: network, Address: l.Addr().String(), Stall: stall})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		if err := open(50*time.Millisecond).Write(t.Context(), make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", network, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := open(time.Hour).Write(ctx, make([]byte, 64<<20)); err == nil {
			t.Errorf("%s: written to nobody", network)
		}
		cancel()
	}
}

// Over a unix socket Write waits until the receiver has read: what is written but not read would be lost with the receiver.
func TestUnixWaitsForTheReader(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := link.Dial(t.Context(), link.Options{Network: "unix", Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- conn.Write(t.Context(), []byte("hello")) }()
	select {
	case err := <-written:
		t.Fatalf("written before it was read: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(peer, buf); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	go func() { written <- conn.Write(t.Context(), []byte("hello")) }()
	peer.Close()
	if err := <-written; err == nil {
		t.Error("written to one who left")
	}
}

func TestMuchOverTLS(t *testing.T) {
	certs := shiptest.Certify(t)
	r := shiptest.Listen(t, "tcp", "", certs.Server)
	conf, err := link.TLS(map[string]string{"x-ca-cert": certs.CA, "x-cert": certs.Cert, "x-key": certs.Key}, "x")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := link.Dial(t.Context(), link.Options{Network: "tcp", Address: r.Address, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := conn.Write(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	shiptest.Eventually(t, "all of it", func() bool { return bytes.Equal(r.Bytes(), want) })
	if _, err := link.TLS(map[string]string{"x-cert": certs.Cert}, "x"); err == nil {
		t.Error("a certificate without its key")
	}
}
