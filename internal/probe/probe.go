// Package probe looks once at a service inside a network namespace, by HTTP, TCP or the gRPC health protocol, as a load balancer would, without a process of its own there.
//
// It owns nothing that outlives a call. It promises that a look never leaves the namespace (only addresses and localhost are taken, no names), follows no redirect, reads a bounded answer, and ends
// with its context. An error says why the service does not answer as it should; nil is a healthy one.
package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/ns"
)

// maxAnswer is how much of an answer's body is read, in bytes: enough for what is shown of it.
const maxAnswer = 4096

// A Target is where to look.
type Target struct {
	Address netip.AddrPort
	TLS     bool   // certificates are not verified: those of a service are for its name in the world, not for the container's own loopback
	Host    string // of HTTP
	Path    string // of HTTP, with its query
	Service string // of gRPC; empty asks for the server as a whole
}

// ParseHTTP reads a URL whose host is empty, localhost or an address: http://:8080/healthz, https://127.0.0.1/, :8080/healthz, 8080.
func ParseHTTP(text string) (Target, error) {
	whole := text
	if !strings.Contains(text, "://") {
		whole = "http://" + colon(text)
	}
	u, err := url.Parse(whole)
	if err != nil {
		return Target{}, errs.New(errs.Invalid, "health check HTTP %q is not a URL", text)
	}
	if text == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Opaque != "" {
		return Target{}, errs.New(errs.Invalid, "health check HTTP %q: want http://[address]:port/path or https://…", text)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	addr, err := address("HTTP", text, u.Hostname(), port)
	if err != nil {
		return Target{}, err
	}
	host := u.Host
	if u.Hostname() == "" {
		host = "localhost" + u.Host
	}
	return Target{Address: addr, TLS: u.Scheme == "https", Host: host, Path: u.RequestURI()}, nil
}

// ParseTCP reads [address:]port.
func ParseTCP(text string) (Target, error) {
	addr, err := hostPort("TCP", text, text)
	return Target{Address: addr}, err
}

// ParseGRPC reads [address:]port[/service], or the same behind grpcs:// for TLS.
func ParseGRPC(text string) (Target, error) {
	rest, secure := strings.CutPrefix(text, "grpcs://")
	rest = strings.TrimPrefix(rest, "grpc://")
	at, service, _ := strings.Cut(rest, "/")
	addr, err := hostPort("GRPC", text, at)
	return Target{Address: addr, TLS: secure, Service: service}, err
}

// colon puts the colon before what begins with a port.
func colon(text string) string {
	digits := len(text) - len(strings.TrimLeft(text, "0123456789"))
	if digits > 0 && (digits == len(text) || text[digits] == '/') {
		return ":" + text
	}
	return text
}

func hostPort(kind, text, at string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(colon(at))
	if err != nil {
		return netip.AddrPort{}, errs.New(errs.Invalid, "health check %s %q: want [address:]port", kind, text)
	}
	return address(kind, text, host, port)
}

func address(kind, text, host, port string) (netip.AddrPort, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, errs.New(errs.Invalid, "health check %s %q: %q is not a port", kind, text, port)
	}
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, errs.New(errs.Invalid, "health check %s %q: the host is the container itself: leave it out, or give an address of it", kind, text)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// dialer connects from inside netns, always to one address: what a server asks for makes no difference.
func dialer(netns *os.File, to netip.AddrPort) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (conn net.Conn, err error) {
		d := net.Dialer{FallbackDelay: -1} // one address, so the socket is made on the thread that calls
		err = ns.InNet(netns, func() error {
			conn, err = d.DialContext(ctx, "tcp", to.String())
			return err
		})
		return conn, err
	}
}

// TCP is satisfied with a connection.
func TCP(ctx context.Context, netns *os.File, to Target) error {
	conn, err := dialer(netns, to.Address)(ctx)
	if err != nil {
		return bare(ctx, err)
	}
	return conn.Close()
}

// HTTP asks with GET and is satisfied with a status from 200 to 399. The first part of the body is returned either way.
func HTTP(ctx context.Context, netns *os.File, to Target) (body string, err error) {
	dial := dialer(netns, to.Address)
	scheme := "http"
	if to.TLS {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+to.Host+to.Path, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", "corten-health")
	req.Close = true
	conn, err := dial(ctx)
	if err != nil {
		return "", bare(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // whoever reads or writes then is told
	defer stop()
	if to.TLS {
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: req.URL.Hostname()})
		if err := secure.HandshakeContext(ctx); err != nil {
			return "", bare(ctx, err)
		}
		conn = secure
	}
	resp, err := exchange(conn, req)
	if err != nil {
		return "", bare(ctx, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return string(b), errs.New(errs.Unavailable, "HTTP status %s", resp.Status)
	}
	if err != nil {
		return string(b), fmt.Errorf("body of the answer: %w", bare(ctx, err))
	}
	return string(b), nil
}

// exchange sends a request and reads the answer. The standard library's transport would do more: it watches connections that it may use again, and writes to the standard error what it thinks of servers
// that speak before they are asked.
func exchange(conn net.Conn, req *http.Request) (*http.Response, error) {
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	r := bufio.NewReader(io.LimitReader(conn, maxHead+maxAnswer))
	for range maxInterim {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode < 100 || resp.StatusCode > 199 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errors.New("the server answers with nothing but interim responses")
}

// maxHead bounds the bytes of an answer before its body.
const maxHead = 64 << 10

// maxInterim bounds the answers before the answer (1xx).
const maxInterim = 5

// GRPC asks grpc.health.v1.Health and is satisfied with SERVING.
func GRPC(ctx context.Context, netns *os.File, to Target) error {
	dial := dialer(netns, to.Address)
	var secure credentials.TransportCredentials = insecure.NewCredentials()
	if to.TLS {
		secure = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	conn, err := grpc.NewClient("passthrough:///"+to.Address.String(), grpc.WithTransportCredentials(secure), grpc.WithNoProxy(),
		grpc.WithUserAgent("corten-health"), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: to.Service})
	if err != nil {
		return bare(ctx, err)
	}
	if got := resp.GetStatus(); got != grpc_health_v1.HealthCheckResponse_SERVING {
		return errs.New(errs.Unavailable, "gRPC health: %s", got)
	}
	return nil
}

// bare takes away what the library says around the reason, and says what ended a look that took too long.
func bare(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var of *url.Error
	if errors.As(err, &of) {
		err = of.Err
	}
	return err
}
