// Package server is the Docker Engine API door: HTTP in, verbs of the engine's services out.
//
// It owns listening sockets, the routes, the conversions between Docker's wire types and the engine's nouns (convert_*.go), and which field
// belongs to which API version (1.24 to 1.56). It translates and never decides: what a container may do, the services say.
// It promises: every answer has the status, shape and words that Docker clients know; an unknown field of a newer API is never taken for an old one;
// a body is bounded and its JSON checked; after a hijack nothing here touches the connection again.
//
// Fields that are ours stand beside those of Docker, whose clients pass over them: LogDestinations of a container (docs/logging.md); Egress of containers and networks (docs/egress.md); IDMap (text) and Chown (true) in
// HostConfig.Mounts (mountBody). Routes that are ours are those below /volumes/{name}/ that copy (volumecopies.go), and those of edit.go.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/engine/networks"
	"corten.dev/corten/internal/engine/system"
	"corten.dev/corten/internal/engine/volumes"
	"corten.dev/corten/internal/snapshot"
)

// VersionInfo is what `version` shows of the engine.
type VersionInfo struct {
	Version   string
	Commit    string
	BuildTime string
	Kernel    string // as uname -r; asked of the system service when empty
}

// Options join the door to the engine. All services are needed, but where it is said.
type Options struct {
	Containers containers.API
	Images     images.API
	Registries images.Registries
	Documents  images.Documents
	Volumes    volumes.API
	Networks   networks.API
	System     system.API
	// Builds may be nil: then all of it is refused. BuildMirrors may be: then builds take directories from clients on this host only.
	Builds       builds.API
	BuildMirrors BuildMirrors
	// BuildKit may be nil: then BuildKit's clients are refused.
	BuildKit BuildKit
	Version  VersionInfo
	// Driver is the snapshot driver that image inspection names.
	Driver string
	// Layers tells where the layers of an image lie on the host, topmost first; nil where the driver keeps no such folders.
	Layers func(chain snapshot.ChainID) ([]string, error)
	// CgroupV2 tells which default older clients expect for the cgroup namespace.
	CgroupV2 bool
	// DefaultRegistry is where names without a registry lead, empty for Docker Hub; Mirrors and Insecure are docker's settings of those names. For `info`.
	DefaultRegistry   string
	Mirrors, Insecure []string
	Logger            *slog.Logger
}

// Server answers requests. It is an [http.Handler]; Serve and Shutdown run it on listeners.
type Server struct {
	Options
	routes  map[string][]route
	http    *http.Server
	origins *http.CrossOriginProtection
	name    string // of the Server header
	kernel  atomic.Pointer[string]
	cancels cancels
	uploads handIns

	// streams is cancelled by Shutdown, so that answers without an end (events, followed logs, stats) end too.
	streams context.Context
	cancel  context.CancelFunc
}

// New makes a server; it listens nowhere yet.
func New(opts Options) *Server {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{Options: opts, origins: http.NewCrossOriginProtection(), name: "Corten/" + opts.Version.Version + " (linux)"}
	s.streams, s.cancel = context.WithCancel(context.Background())
	s.routes = s.table()
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: time.Minute,
		MaxHeaderBytes:    256 << 10,
		ErrorLog:          slog.NewLogLogger(opts.Logger.Handler(), slog.LevelWarn),
		Protocols:         new(http.Protocols),
	}
	s.http.Protocols.SetHTTP1(true) // alone: HTTP/2 has no hijack
	return s
}

// Serve answers the requests of one listener until Shutdown, and then returns nil. It may be called for several listeners at once.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown stops listening, ends the answers that have no end of their own, and waits for the others until ctx ends; then it cuts them.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// request is one request with what the router learnt of it.
type request struct {
	*http.Request
	version int      // 1.version
	vars    []string // wildcards of the route, in order
	query   form
}

// id is the first wildcard of the route.
func (r *request) id() string { return r.vars[0] }

// steady is the context of verbs that change something: a client that hangs up does not stop them half way.
func (r *request) steady() context.Context { return context.WithoutCancel(r.Context()) }

// ServeHTTP finds the route, runs it, and translates its error.
func (s *Server) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	h := w.Header()
	h["Server"] = []string{s.name}
	h["Api-Version"] = []string{MaxAPI()}
	h["Ostype"] = []string{"linux"}
	h["Docker-Experimental"] = []string{"false"}
	if err := s.origins.Check(hr); err != nil {
		s.fail(w, http.StatusForbidden, "cross-origin request refused: "+err.Error())
		return
	}
	path, asked := splitVersion(hr.URL.Path)
	handle, vars := s.find(hr.Method, path)
	if handle == nil && hr.Method == http.MethodOptions {
		return // 200 for any path, as Docker's
	}
	if handle == nil {
		s.fail(w, http.StatusNotFound, "page not found")
		return
	}
	version, err := spokenVersion(asked)
	if err != nil {
		s.fail(w, http.StatusBadRequest, err.Error())
		return
	}
	r := &request{Request: hr, version: version, vars: vars}
	if r.query, err = readForm(hr); err == nil {
		err = handle(w, r)
	}
	if err != nil {
		s.failWith(w, r, err)
	}
}
