// Package buildkitapi is the door for BuildKit's clients (buildx, the docker client, bake, SDKs): sessions and the control API over upgraded connections.
//
// It owns the sessions of those clients and the builds that they drive themselves. It translates and never decides: what a build is, package engine/builds says. It promises: a client that is
// gone ends what it asked for; errors keep their kind and the lines of the Dockerfile they speak of.
//
//	client                                       door                                    engine/builds
//	POST /session, Upgrade: h2c ───────────────▶ the client becomes a gRPC *server*:     Session: contexts, secrets, ssh,
//	  ◀══ DiffCopy, GetSecret, Credentials … ══════════════════════════════════════════    credentials, outputs, blobs
//	POST /grpc, Upgrade: h2c ──────────────────▶ Control: Solve ───────────────────────▶ Build
//	                                             Status ◀───────────────────────────────── Status
//	                                             LLBBridge (builds that the client drives: Solve without a frontend waits for Return)
package buildkitapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	control "github.com/moby/buildkit/api/services/control"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// Mirrors keeps copies of the directories of clients. What travels is what changed since the last build of the same key.
type Mirrors interface {
	// Receive takes what fsutil's sender gives; it returns when the copy is up to date.
	Receive(ctx context.Context, stream fsutil.Stream, req mirror.Request) (files *build.Files, release func(), err error)
}

// Options join the door to the engine.
type Options struct {
	Builds  builds.API
	Mirrors Mirrors
	Version string
	Logger  *slog.Logger
}

// Door answers BuildKit's clients.
type Door struct {
	Options
	sessions *session.Manager
	server   *grpc.Server
	conns    *connections
	driven   driven
	pastLogs pastLogs
	ended    sync.WaitGroup
}

// Messages of more than this are refused: a definition of LLB has at most some megabytes.
const maxMessage = 32 << 20

// New makes the door.
func New(opts Options) (*Door, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	d := &Door{Options: opts, sessions: sessions, conns: newConnections()}
	d.server = grpc.NewServer(append(frontend.Contained(d.Logger),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(d.unary), grpc.StreamInterceptor(d.stream),
	)...)
	control.RegisterControlServer(d.server, service{Door: d})
	contentapi.RegisterContentServer(d.server, contents{Door: d})
	gwpb.RegisterLLBBridgeServer(d.server, bridges{Door: d})
	healthpb.RegisterHealthServer(d.server, health.NewServer())
	d.ended.Go(func() {
		if err := d.server.Serve(d.conns); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			d.Logger.Error("control API of builds", "err", err)
		}
	})
	return d, nil
}

// unary answers a call, and notes one that is refused.
func (d *Door) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer d.refused(info.FullMethod, &err)
	return handle(ctx, req)
}

// stream is unary for streams.
func (d *Door) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer d.refused(info.FullMethod, &err)
	return handle(srv, stream)
}

func (d *Door) refused(method string, err *error) {
	if *err != nil {
		d.Logger.Debug("request refused", "method", method, "err", *err)
	}
}

// Close ends all connections and the builds that were asked for over them.
func (d *Door) Close() error {
	d.server.Stop()
	d.ended.Wait()
	return nil
}

// GRPC answers POST /grpc: the connection carries the control API from then on.
func (d *Door) GRPC(w http.ResponseWriter, r *http.Request) error {
	conn, err := upgrade(w, r)
	if err != nil {
		return err
	}
	return d.conns.add(conn)
}

// Session answers POST /session; it returns when the session has ended.
func (d *Door) Session(w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("X-Docker-Expose-Session-Uuid") == "" {
		return errs.New(errs.Invalid, "a session needs an id (header X-Docker-Expose-Session-Uuid)")
	}
	conn, err := upgrade(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context())) // of a request that is over; the connection's end is the session's
	defer cancel()
	if err := d.sessions.HandleConn(ctx, &ending{Conn: conn, ended: cancel}, r.Header); err != nil {
		d.Logger.Debug("session of a build", "err", err)
		return errors.Join(err, conn.Close())
	}
	return nil
}

// upgrade takes the connection of a request that asked to speak HTTP/2 on it.
func upgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	if proto := r.Header.Get("Upgrade"); proto != "h2c" {
		return nil, errs.New(errs.Invalid, "no upgrade to %q: this speaks h2c", proto)
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
	if err = errors.Join(err, conn.SetDeadline(time.Time{})); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if n := buf.Reader.Buffered(); n > 0 { // a client that did not wait for the answer
		return &prefixed{Conn: conn, r: io.MultiReader(io.LimitReader(buf.Reader, int64(n)), conn)}, nil
	}
	return conn, nil
}

// ending is the connection of a session. BuildKit's manager notices a client that is gone by two health checks that fail, which takes it ten seconds and leaves errors in the log; what
// reads the connection knows at once.
type ending struct {
	net.Conn
	ended func()
}

func (c *ending) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.ended()
	}
	return n, err
}

// prefixed is a connection some of which was read already.
type prefixed struct {
	net.Conn
	r io.Reader
}

func (p *prefixed) Read(b []byte) (int, error) { return p.r.Read(b) }

// connections is a listener whose connections are handed to it.
type connections struct {
	next   chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newConnections() *connections {
	return &connections{next: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *connections) add(conn net.Conn) error {
	select {
	case l.next <- conn:
		return nil
	case <-l.closed:
		return errors.Join(errs.New(errs.Unavailable, "the engine is stopping"), conn.Close())
	}
}

// Accept implements [net.Listener].
func (l *connections) Accept() (net.Conn, error) {
	select {
	case conn := <-l.next:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *connections) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements [net.Listener].
func (l *connections) Addr() net.Addr { return &net.UnixAddr{Name: "/grpc", Net: "unix"} }
