package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/tcp"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/access"
	"corten.dev/corten/internal/registry/server/config"
)

const (
	healthWithin = 2 * time.Second
)

// doors are the handlers in front of the registry.
type doors struct {
	r        *registry
	proxies  []netip.Prefix
	draining atomic.Bool
}

// handler joins the routes:
//
//	/healthz    is the storage there?
//	/token      tokens
//	/v1/…       the search
//	everything  the distribution API
//
// and before all but the first: whose address counts, and the limits.
func (d *doors) handler() http.Handler {
	find := &search{guard: d.r.guard, repositories: d.r.reg.Repositories, log: d.r.log}
	spaces := namespaces(&d.r.conf)
	mux := http.NewServeMux()
	mux.Handle("GET /v1/search", find)
	mux.HandleFunc("GET /v1/_ping", ping)
	if d.r.guard != nil {
		mux.Handle("/token", d.r.guard.guard)
	}
	// Not through the mux, which cleans paths: what a path means is the registry's affair.
	routes := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/v2") {
			withNamespace(spaces, w, req)
			d.r.reg.ServeHTTP(w, req)
			return
		}
		mux.ServeHTTP(w, req)
	})
	limited := d.r.limiter.wrap(routes, func(req *http.Request) string {
		user := ""
		if d.r.guard != nil {
			user = d.r.guard.guard.User(req.Header.Get("Authorization"))
		}
		addr, _ := netip.ParseAddr(req.RemoteAddr)
		return asker(user, addr)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/healthz" {
			d.health(w, req)
			return
		}
		addr := d.client(req)
		req.RemoteAddr = addr.String()
		limited.ServeHTTP(w, req.WithContext(access.WithAddr(req.Context(), addr)))
	})
}

// client is who sent a request: the address of the connection, or, from a proxy that is trusted, the last address in X-Forwarded-For that is no such
// proxy. What others say in these headers is thrown away.
func (d *doors) client(req *http.Request) netip.Addr {
	conn, err := netip.ParseAddrPort(req.RemoteAddr)
	addr := conn.Addr().Unmap()
	if err != nil || !d.trusted(addr) {
		req.Header.Del("X-Forwarded-For")
		req.Header.Del("X-Forwarded-Proto")
		return addr
	}
	hops := strings.Split(strings.Join(req.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = hop.Unmap()
		if !d.trusted(addr) {
			break
		}
	}
	return addr
}

func (d *doors) trusted(addr netip.Addr) bool {
	for _, p := range d.proxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// health tells a balancer whether to send requests here.
func (d *doors) health(w http.ResponseWriter, req *http.Request) {
	if d.draining.Load() {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), healthWithin)
	defer cancel()
	if _, err := d.r.driver.Get(ctx, "health"); err != nil && !errors.Is(err, errs.NotFound) {
		d.r.log.Error("the storage does not answer", "err", err)
		http.Error(w, "the storage does not answer", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// listen opens the addresses and serves them; the channel tells when one of them fails.
func (r *registry) listen(ctx context.Context) (<-chan error, error) {
	d := &doors{r: r}
	for _, p := range r.conf.Proxies {
		prefix, err := config.ParsePrefix(p)
		if err != nil {
			return nil, err
		}
		d.proxies = append(d.proxies, prefix)
	}
	r.metrics.limited = r.limiter.refused.Load
	r.metrics.walk = func(do func(context.Context)) { r.work.Go(func() { do(ctx) }) }
	conf, challenges, err := r.tlsConfig()
	if err != nil {
		return nil, err
	}
	failed := make(chan error, 3)
	addr, err := r.serveOn(ctx, listener{addr: r.conf.Addr, handler: d.handler(), tls: conf, draining: &d.draining}, failed)
	if err != nil {
		return nil, err
	}
	if challenges != nil {
		if _, err := r.serveOn(ctx, listener{addr: r.conf.TLS.ACME.HTTPAddr, handler: challenges}, failed); err != nil {
			return nil, err
		}
	}
	if r.conf.Metrics != "" {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", r.metrics)
		mux.HandleFunc("GET /healthz", d.health)
		if _, err := r.serveOn(ctx, listener{addr: r.conf.Metrics, handler: mux}, failed); err != nil {
			return nil, err
		}
	}
	if r.guard == nil && !loopback(addr) {
		r.log.Warn("everybody who reaches this address may pull, push and delete: give a file of users (--htpasswd)", "addr", addr)
	}
	if r.guard != nil && conf == nil && r.conf.URL == "" && !loopback(addr) {
		r.log.Warn("passwords cross the network in the clear: give a certificate (--tls-cert, --tls-key), or --url if a proxy in front has one", "addr", addr)
	}
	r.log.Info("the registry serves", "version", r.std.Version, "addr", addr, "tls", conf != nil, "root", r.conf.Root, "storage", storageName(&r.conf))
	if r.std.Ready != nil {
		r.std.Ready(addr)
	}
	return failed, nil
}

func storageName(conf *config.Config) string {
	if conf.Storage.Driver == "s3" {
		return "s3:" + conf.Storage.S3.Bucket
	}
	return "disk"
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip, perr := netip.ParseAddr(host)
	return err == nil && perr == nil && ip.IsLoopback()
}

// listener is one address with what answers there.
type listener struct {
	addr     string
	handler  http.Handler
	tls      *tls.Config
	draining *atomic.Bool // set when the end begins; may be nil
}

func (r *registry) serveOn(ctx context.Context, l listener, failed chan<- error) (string, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", l.addr)
	if err != nil {
		return "", fmt.Errorf("listen on %s: %w", l.addr, lastError(err))
	}
	conn := ln
	if listener, ok := ln.(*net.TCPListener); ok {
		conn = tcp.Listener{TCPListener: listener}
	}
	srv := server.NewHTTPServer(l.handler)
	srv.TLSConfig, srv.ErrorLog = l.tls, slog.NewLogLogger(r.log.Handler(), slog.LevelDebug)
	r.work.Go(func() {
		var err error
		if l.tls != nil {
			err = srv.ServeTLS(conn, "", "")
		} else {
			err = srv.Serve(conn)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve %s: %w", l.addr, err)
		}
	})
	// The registry's own end waits for its requests, whatever context they were started under.
	r.work.Go(func() {
		<-ctx.Done()
		if l.draining != nil {
			l.draining.Store(true)
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if err := srv.Shutdown(end); err != nil {
			r.log.Warn("some requests were cut off", "addr", l.addr, "err", errors.Join(err, srv.Close()))
		}
	})
	return conn.Addr().String(), nil
}

// lastError is the reason at the end of a chain of network errors: "address already in use" without the address twice.
func lastError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
