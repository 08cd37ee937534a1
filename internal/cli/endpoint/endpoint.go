// Package endpoint finds the engine that a command shall talk to and opens connections to it.
//
// It owns the order in which the places are asked: the --host flag, --context, CORTEN_HOST, DOCKER_HOST,
// DOCKER_CONTEXT, the current context of docker's config file, the default socket. It promises that a named engine is
// never silently replaced by another: only the default socket may lead to an engine being started (see package
// autostart), and only there Default is set.
package endpoint

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
)

// DefaultSocket is where the host's engine listens.
const DefaultSocket = "/run/corten/corten.sock"

// Flags are the global options that choose the engine.
type Flags struct {
	Host    string
	Context string

	TLS       bool
	TLSVerify bool
	VerifySet bool // --tlsverify was given: it means TLS even when it says false, and more than DOCKER_TLS_VERIFY
	CAFile    string
	CertFile  string
	KeyFile   string
}

// Endpoint is one engine's address and the way to reach it.
type Endpoint struct {
	Host    string // as a URL: unix://, tcp://, ssh://
	Context string // name of the context it came from, "default" if none
	Default bool   // nobody named an engine
	tls     *tlsFiles
}

// tlsFiles says how to secure a tcp connection.
type tlsFiles struct {
	ca, cert, key string
	caPEM         []byte // a context's own certificates, instead of the files
	certPEM       []byte
	keyPEM        []byte
	skipVerify    bool
}

// Resolve chooses the endpoint. It reads files only when a context is named.
func Resolve(f Flags, cfg *Config) (*Endpoint, error) {
	if f.Host != "" && f.Context != "" {
		return nil, errs.New(errs.Invalid, "conflicting options: cannot specify both --host and --context")
	}
	host, ctxName := f.Host, f.Context
	if host == "" && ctxName == "" {
		host = firstEnv("CORTEN_HOST", "DOCKER_HOST")
	}
	if host == "" && ctxName == "" {
		ctxName = os.Getenv("DOCKER_CONTEXT")
	}
	if host == "" && ctxName == "" {
		ctxName = cfg.CurrentContext
	}
	if host == "" && ctxName != "" && ctxName != "default" {
		return fromContext(ctxName, cfg.Dir)
	}
	ep := &Endpoint{Host: host, Context: "default", tls: f.files(cfg.Dir)}
	if host == "" {
		ep.Host, ep.Default = "unix://"+DefaultSocket, true
		return ep, nil
	}
	return ep, ep.at(host)
}

// at sets the address. One that begins with https:// means TLS even where nothing else asks for it; then the system's CAs count.
func (e *Endpoint) at(host string) (err error) {
	if strings.HasPrefix(host, "https://") && e.tls == nil {
		e.tls = &tlsFiles{}
	}
	e.Host, err = normalize(host, e.tls != nil)
	return err
}

func firstEnv(names ...string) string {
	for _, n := range names {
		if v := os.Getenv(n); v != "" {
			return v
		}
	}
	return ""
}

// files reads the TLS flags and docker's TLS environment; nil means plain text. Of the usual files, a client certificate need not be there, and without verification no CA either.
func (f Flags) files(dir string) *tlsFiles {
	verify := f.TLSVerify || !f.VerifySet && os.Getenv("DOCKER_TLS_VERIFY") != ""
	if !verify && !f.VerifySet && !f.TLS && os.Getenv("DOCKER_TLS") == "" {
		return nil
	}
	if p := os.Getenv("DOCKER_CERT_PATH"); p != "" {
		dir = p
	}
	pick := func(flag, name string, must bool) string {
		if flag != "" {
			return flag
		}
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); errors.Is(err, fs.ErrNotExist) && !must {
			return ""
		}
		return p
	}
	return &tlsFiles{ca: pick(f.CAFile, "ca.pem", verify), cert: pick(f.CertFile, "cert.pem", false), key: pick(f.KeyFile, "key.pem", false), skipVerify: !verify}
}

// normalize checks a host and fills in what docker lets users leave out.
func normalize(host string, secure bool) (string, error) {
	scheme, rest, ok := strings.Cut(host, "://")
	if !ok {
		scheme, rest = "tcp", host
	}
	bad := func(why string) (string, error) {
		return "", errs.New(errs.Invalid, "unable to parse docker host %q: %s", host, why)
	}
	switch scheme {
	case "unix":
		if rest == "" {
			rest = DefaultSocket
		}
		if !strings.HasPrefix(rest, "/") {
			return bad("a unix socket needs an absolute path")
		}
		return "unix://" + rest, nil
	case "tcp", "http", "https":
		return normalizeTCP(rest, secure, bad)
	case "ssh":
		if u, err := url.Parse(host); err != nil || u.Hostname() == "" || strings.HasPrefix(u.Hostname(), "-") {
			return bad("use ssh://[user@]host[:port][/socket]")
		} else if _, set := u.User.Password(); set {
			return bad("a plain-text password is not supported")
		}
		return host, nil
	case "npipe":
		return bad("named pipes are not supported; use tcp:// or ssh://")
	}
	return bad("unknown scheme " + scheme)
}

func normalizeTCP(rest string, secure bool, bad func(string) (string, error)) (string, error) {
	addr, path, _ := strings.Cut(rest, "/")
	port := "2375"
	if secure {
		port = "2376"
	}
	h, p, err := net.SplitHostPort(addr)
	if err != nil {
		h, p = strings.Trim(addr, "[]"), port
		if strings.Contains(addr, ":") && !strings.HasPrefix(addr, "[") {
			return bad("write an IPv6 address in brackets")
		}
	}
	if h == "" {
		h = "localhost"
	}
	if p == "" {
		p = port
	}
	host := "tcp://" + net.JoinHostPort(h, p)
	if path != "" {
		host += "/" + strings.TrimSuffix(path, "/")
	}
	return host, nil
}

// Socket is the path of a unix endpoint, "" for others.
func (e *Endpoint) Socket() string {
	p, ok := strings.CutPrefix(e.Host, "unix://")
	if !ok {
		return ""
	}
	return p
}

// Authority is what goes into the Host header.
func (e *Endpoint) Authority() string {
	if a, ok := strings.CutPrefix(e.Host, "tcp://"); ok {
		a, _, _ = strings.Cut(a, "/")
		return a
	}
	return "api.corten.localhost"
}

// BasePath is a path that a reverse proxy puts before the API, "" if none.
func (e *Endpoint) BasePath() string {
	if a, ok := strings.CutPrefix(e.Host, "tcp://"); ok {
		if _, p, found := strings.Cut(a, "/"); found {
			return "/" + p
		}
	}
	return ""
}

// Dial opens a connection.
func (e *Endpoint) Dial(ctx context.Context) (net.Conn, error) {
	scheme, rest, _ := strings.Cut(e.Host, "://")
	switch scheme {
	case "unix":
		return dialUnix(ctx, rest)
	case "ssh":
		return dialSSH(ctx, e.Host)
	}
	d := net.Dialer{Timeout: 30 * time.Second}
	nc, err := d.DialContext(ctx, "tcp", e.Authority())
	if err != nil {
		return nil, err
	}
	if e.tls != nil {
		host, _, err := net.SplitHostPort(e.Authority())
		if err != nil {
			nc.Close()
			return nil, err
		}
		return secure(ctx, nc, e.tls, host)
	}
	return nc, nil
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}
