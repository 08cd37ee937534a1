package server_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"corten.dev/corten/internal/server"
)

func TestListenTLS(t *testing.T) {
	certs := httptest.NewTLSServer(nil) // only for its certificate, and a client that trusts it
	defer certs.Close()
	l, err := server.Listen("tcp://127.0.0.1:0", "", certs.TLS)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(options(&engine{}))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	resp, err := certs.Client().Get("https://" + l.Addr().String() + "/_ping")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(b) != "OK" || resp.Proto != "HTTP/1.1" {
		t.Errorf("%s %q %v: a hijack needs HTTP/1.1", resp.Proto, b, err)
	}
	certs.Client().CloseIdleConnections()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Socket activation: a child gets a listening socket as descriptor 3, as systemd hands it over, and answers on it.
func TestListenFD(t *testing.T) {
	const marker = "SERVER_TEST_FD"
	if os.Getenv(marker) != "" {
		activated(t)
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestListenFD$")
	cmd.Env = append(os.Environ(), marker+"=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=api")
	cmd.ExtraFiles = []*os.File{f}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + l.Addr().String() + "/_ping")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "OK" {
		t.Errorf("got %q", b)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, &out)
	}
}

func activated(t *testing.T) {
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	if _, err := server.Listen("fd://other", "", nil); err == nil {
		t.Error("a socket of another name was taken")
	}
	l, err := server.Listen("fd://api", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
	conn.Close()
}
