package server

import (
	"context"
	"io"
	"net/http"

	"corten.dev/corten/internal/build"
)

// BuildKit answers BuildKit's clients: it takes the connection of a request for good.
type BuildKit interface {
	// Session returns when the session has ended.
	Session(w http.ResponseWriter, r *http.Request) error
	GRPC(w http.ResponseWriter, r *http.Request) error
	// BuildSession gives an open session for a build that was asked for beside it; errs.NotFound.
	BuildSession(ctx context.Context, id string) (*build.Session, error)
	// Trace gives what happened as BuildKit's clients read it.
	Trace(st build.Status) ([][]byte, error)
	// Archive writes builds of the past as a file that other tools read. Nothing is written before an error of what was asked for.
	Archive(ctx context.Context, refs []string, w io.Writer) error
}

// buildKitRoutes are the doors of buildx and of the docker client; what is said on the connections, package buildkitapi knows.
func (s *Server) buildKitRoutes() []entry {
	if s.BuildKit == nil {
		refuse := absent("this engine was started without the service for builds")
		return []entry{{"POST /session", refuse}, {"POST /grpc", refuse}}
	}
	return []entry{
		{"POST /session", func(w http.ResponseWriter, r *request) error { return s.BuildKit.Session(w, r.Request) }},
		{"POST /grpc", func(w http.ResponseWriter, r *request) error { return s.BuildKit.GRPC(w, r.Request) }},
	}
}

// builderVersion is what `docker` chooses its builder by: 2 is BuildKit.
func (s *Server) builderVersion() string {
	if s.BuildKit == nil {
		return "1"
	}
	return "2"
}
