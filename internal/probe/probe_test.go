package probe_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"corten.dev/corten/internal/linux/ns"
	"corten.dev/corten/internal/probe"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"http://:8080/healthz?x=1": "127.0.0.1:8080 localhost:8080 /healthz?x=1 false",
		":8080/a":                  "127.0.0.1:8080 localhost:8080 /a false",
		"8080":                     "127.0.0.1:8080 localhost:8080 / false",
		"8080/a/b":                 "127.0.0.1:8080 localhost:8080 /a/b false",
		"https://localhost/":       "127.0.0.1:443 localhost / true",
		"http://[::1]:81":          "[::1]:81 [::1]:81 / false",
		"10.0.0.3:80/x":            "10.0.0.3:80 10.0.0.3:80 /x false",
	} {
		to, err := probe.ParseHTTP(text)
		if got := fmt.Sprint(to.Address, " ", to.Host, " ", to.Path, " ", to.TLS); err != nil || got != want {
			t.Errorf("%q: %s %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "http://example.com/", "ftp://:1/", "http://:0/", "http://:99999/", "http://u@:80/", "http:80", "http://[fe80::1%25]:x/"} {
		if to, err := probe.ParseHTTP(text); err == nil {
			t.Errorf("%q became %+v", text, to)
		}
	}
	if to, err := probe.ParseGRPC("grpcs://:9000/a.b/C"); err != nil || !to.TLS || to.Service != "a.b/C" || to.Address.Port() != 9000 {
		t.Errorf("%+v %v", to, err)
	}
	if to, err := probe.ParseTCP("5432"); err != nil || to.Address.String() != "127.0.0.1:5432" {
		t.Errorf("%+v %v", to, err)
	}
	for _, text := range []string{"", "db:5432", ":", "1:2:3", "80/x"} {
		if to, err := probe.ParseTCP(text); err == nil {
			t.Errorf("%q became %+v", text, to)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("http://:8080/a")
	f.Add("[::1]:80/b c")
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(string) (probe.Target, error){probe.ParseHTTP, probe.ParseTCP, probe.ParseGRPC} {
			if to, err := parse(text); err == nil && (!to.Address.IsValid() || to.Address.Port() == 0) {
				t.Errorf("%q became %+v", text, to)
			}
		}
	})
}

// inside makes a network namespace with its loopback up, and serves in it.
func inside(t *testing.T, serve func(l net.Listener)) (netns *os.File, port string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	made := make(chan *os.File)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- nil
			return
		}
		f, _ := os.Open("/proc/thread-self/ns/net")
		made <- f
	}()
	netns = <-made
	if netns == nil {
		t.Fatal("no network namespace")
	}
	t.Cleanup(func() { netns.Close() })
	var l net.Listener
	err := ns.InNet(netns, func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		ifr, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
			return err
		}
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go serve(l)
	t.Cleanup(func() { l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return netns, port
}

func brief(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestHTTP(t *testing.T) {
	netns, port := inside(t, func(l net.Listener) {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/ok":
				fmt.Fprint(w, "fine ", r.Host)
			case "/moved":
				http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound) // following it would leave the container
			case "/endless":
				for r.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 65536)); err != nil {
						return
					}
				}
			default:
				http.Error(w, "sick", http.StatusServiceUnavailable)
			}
		}))
	})
	look := func(path string) (string, error) {
		to, err := probe.ParseHTTP(":" + port + path)
		if err != nil {
			t.Fatal(err)
		}
		return probe.HTTP(brief(t), netns, to)
	}
	if body, err := look("/ok"); err != nil || body != "fine localhost:"+port {
		t.Errorf("%q %v", body, err)
	}
	if _, err := look("/moved"); err != nil {
		t.Error(err)
	}
	if body, err := look("/endless"); err != nil || len(body) != 4096 {
		t.Errorf("%d bytes, %v", len(body), err)
	}
	if body, err := look("/"); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(body, "sick") {
		t.Errorf("%q %v", body, err)
	}
	to, _ := probe.ParseHTTP(":" + port + "/ok")
	to.TLS = true
	if _, err := probe.HTTP(brief(t), netns, to); err == nil {
		t.Error("TLS with a server that has none")
	}
	if err := probe.TCP(brief(t), netns, to); err != nil {
		t.Error(err)
	}
	to, _ = probe.ParseTCP("1")
	if err := probe.TCP(brief(t), netns, to); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

// Certificates of services are for their names in the world: a probe on the loopback cannot match them.
func TestHTTPS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "safe") }))
	netns, port := inside(t, func(l net.Listener) {
		srv.Listener.Close()
		srv.Listener = l
		srv.StartTLS()
	})
	to, err := probe.ParseHTTP("https://:" + port + "/")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := probe.HTTP(brief(t), netns, to); err != nil || body != "safe" {
		t.Errorf("%q %v", body, err)
	}
}

func TestGRPC(t *testing.T) {
	state := health.NewServer()
	srv := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, state)
	netns, port := inside(t, func(l net.Listener) { _ = srv.Serve(l) })
	t.Cleanup(srv.Stop)
	look := func(service string) error {
		to, err := probe.ParseGRPC(":" + port + service)
		if err != nil {
			t.Fatal(err)
		}
		return probe.GRPC(brief(t), netns, to)
	}
	if err := look(""); err != nil {
		t.Error(err)
	}
	state.SetServingStatus("shop.Cart", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if err := look("/shop.Cart"); err == nil || !strings.Contains(err.Error(), "NOT_SERVING") {
		t.Error(err)
	}
	if err := look("/nobody"); err == nil {
		t.Error("a service that is not there is healthy")
	}
}

// A server that takes connections and says nothing holds a probe no longer than its context.
func TestSilentServer(t *testing.T) {
	netns, port := inside(t, func(l net.Listener) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	})
	to, err := probe.ParseHTTP(":" + port)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := probe.HTTP(ctx, netns, to); err != context.DeadlineExceeded {
		t.Error(err)
	}
	if err := probe.GRPC(ctx, netns, to); err != context.DeadlineExceeded {
		t.Error(err)
	}
}

// A server that speaks before it is asked (SSH, SMTP, or one that is confused) made the standard library write to the engine's standard error at each look.
func TestServerThatSpeaksFirst(t *testing.T) {
	var said strings.Builder
	log.SetOutput(&said)
	defer log.SetOutput(os.Stderr)
	for greeting, want := range map[string]string{
		"220 mail.example ESMTP\r\n":                             "malformed HTTP",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":         "",
		"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 204 No\r\n\r\n": "",
		strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 50):    "interim",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20):    "unexpected EOF",
		"": "EOF",
	} {
		netns, port := inside(t, func(l net.Listener) {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if greeting == "" { // without an answer, but with the question read: what is closed with something unread is reset
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				return
			}
			fmt.Fprint(conn, greeting)
			_, _ = io.Copy(io.Discard, conn) // until the other side has enough
		})
		to, err := probe.ParseHTTP("http://:" + port + "/")
		if err != nil {
			t.Fatal(err)
		}
		_, err = probe.HTTP(brief(t), netns, to)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40q: %v, want %q", greeting, err, want)
		}
	}
	if said.Len() > 0 {
		t.Errorf("said aloud: %s", said.String())
	}
}
