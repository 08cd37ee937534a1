package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestPage(t *testing.T) {
	for in, want := range map[string]string{"GET /": "200 OK", "HEAD /?x": "200 OK", "GET /x": "404 Not Found", "POST /": "405 Method Not Allowed"} {
		method, path, _ := strings.Cut(in, " ")
		if got, _, _ := page(method, path); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// answer speaks HTTP well enough for net/http.
func TestAnswer(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	go answer(fds[0])
	f := os.NewFile(uintptr(fds[1]), "client")
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	resp, err := client.Get("http://hello/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), "Hello from Corten!") {
		t.Errorf("%d %s %v", resp.StatusCode, body, err)
	}
}
