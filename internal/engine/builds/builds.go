// Package builds is the engine's service for the noun build: the build room, joined with images, registries, networks and the runtime.
//
// It owns nothing on disk beside what the build room keeps. It does not know HTTP or gRPC. It promises: a build ends with the request that asked for it, and leaves no process, mount,
// namespace or tree behind; builds of any number of askers share equal work.
package builds

import (
	"context"
	"time"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/filter"
)

// Request is one build. Frontend attributes, exporters and cache options are those of BuildKit's control API, so that buildx and our own doors mean the same.
type Request struct {
	Ref string // chosen by the asker; names the build in history
	// Frontend is "dockerfile.v0", "gateway.v0", or empty with a Definition.
	Frontend       string
	FrontendAttrs  map[string]string
	FrontendInputs map[string]*pb.Definition
	Definition     *pb.Definition
	// Exports are what becomes of the result; none: only the cache.
	Exports      []Export
	CacheImports []CacheOption
	CacheExports []CacheOption
	// Entitlements that the asker allows: "network.host", "security.insecure", "device".
	Entitlements []string
	SourcePolicy *spb.Policy
	Session      *build.Session
	// Sessions finds other sessions by id, for contexts of LLB that name one; nil: none.
	Sessions func(ctx context.Context, id string) (*build.Session, error)
	// Status is told what happens, from one goroutine at a time.
	Status func(build.Status)
	// OnError is called with a failed step before what it left is taken away; nil: nothing.
	OnError func(ctx context.Context, failed Failed)
	// Gateway, when set, is the frontend: a client that drives the build itself (buildx with raw LLB, bake). It is given the gateway that frontends get.
	Gateway GatewayFunc
	// Provenance "min" or "max" has the response tell how the results came to be, as buildx puts it into metadata files ("buildx.build.provenance").
	Provenance string
	// Internal builds are not kept in history.
	Internal bool
}

// Export is one exporter: Type "image", "moby", "oci", "docker", "tar", "local", "cacheonly"; ID names its stream in Session.Outputs.
type Export struct {
	Type  string
	Attrs map[string]string
	ID    string
}

// CacheOption is a place the cache comes from or goes to: Type "registry", "local", "inline".
type CacheOption struct {
	Type  string
	Attrs map[string]string
}

// Response is what an exporter says of a build, by BuildKit's keys ("containerimage.digest", "containerimage.config.digest", "image.name", "containerimage.descriptor", …), and what
// frontend subrequests answer ("result.json", "result.txt").
type Response struct {
	Exporter map[string]string
}

// Failed is a step that failed, while its tree and mounts are still there.
type Failed interface {
	Step() *build.StepError
	// Shell runs another program where the step ran: its tree, mounts, environment and user. Empty args: the image's shell.
	Shell(ctx context.Context, args []string, stdio Terminal) (exitCode int, err error)
}

// Terminal is what a program's standard streams are joined to.
type Terminal interface {
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
	// Sizes gives the terminal's size at start and when it changes: columns, rows. Nil: no terminal is wanted.
	Sizes() <-chan [2]uint16
}

// UsageRecord is one line of `buildx du`.
type UsageRecord struct {
	ID          string
	Parents     []string
	Kind        string
	Description string
	Size        int64
	InUse       bool
	Shared      bool
	Mutable     bool
	Created     time.Time
	LastUsed    *time.Time
	UsageCount  int
}

// PruneOptions choose what is pruned. The bounds in bytes are BuildKit's: keep at least Reserved, at most MaxUsed, and MinFree free on the disk; all zero: everything that is not in use.
type PruneOptions struct {
	All                        bool
	Filters                    filter.Args // until, id, type, inuse, parent, description, mutable, immutable, shared, private
	KeepDuration               time.Duration
	Reserved, MaxUsed, MinFree int64
}

// Build is a line of history.
type Build struct {
	Ref                string
	Frontend           string
	FrontendAttrs      map[string]string
	Exports            []Export
	Response           map[string]string
	Created, Completed time.Time
	Error              string
	Steps, Cached      int
	Warnings           int
	// Provenance tells how each result came to be; a single one has no Platform. It is there when the build is.
	Provenance []Document
}

// Document is something that is kept with a build of the past: a predicate of an in-toto statement.
type Document struct {
	Platform string // "linux/amd64"
	Type     string // of the predicate: an address
	Digest   digest.Digest
	Size     int64
}

// API is everything that doors may ask of this service.
type API interface {
	Build(ctx context.Context, req Request) (Response, error)
	Past
	Planner
	// Platforms are those that steps can run for now, the host's first: "linux/amd64".
	PlatformNames() []string
	DiskUsage(ctx context.Context, filters filter.Args) ([]UsageRecord, error)
	// Prune removes what is not in use, and tells each record that went.
	Prune(ctx context.Context, opts PruneOptions, each func(UsageRecord)) (space int64, err error)
}

// Past are the builds that were, and those under way.
type Past interface {
	// History lists builds, the newest last; those under way have no Completed. Follow calls of each go on until ctx ends.
	History(ctx context.Context, follow bool, each func(Build) error) error
	// Status follows a build under way by its Ref from its beginning, or replays a past one.
	Status(ctx context.Context, ref string, each func(build.Status) error) error
	// Document reads what a Build names; errs.NotFound.
	Document(ctx context.Context, dgst digest.Digest) ([]byte, error)
	// Forget removes a build of the past; errs.NotFound, errs.Conflict while it is under way.
	Forget(ctx context.Context, ref string) error
}

// Planner reads files that say what to build.
type Planner interface {
	// Bake reads bake files (HCL, JSON, compose) and gives the plan as `buildx bake --print` does. missing are the files that it takes besides, as extra ones; there is no plan then.
	Bake(ctx context.Context, req BakeRequest) (plan []byte, missing []BakeMissing, err error)
	// Fetch reads files at an address.
	Fetch(ctx context.Context, req FetchRequest) ([]BakeFile, error)
}

// FetchRequest is which files are wanted.
type FetchRequest struct {
	// Address is a git repository, an archive by http, or, without names, one file by http.
	Address string
	// Names are those of files in it; those that are not there are left out.
	Names   []string
	Session *build.Session
}

// BakeRequest is what `bake` was asked: files by name with their content, targets, overrides ("app.platform=linux/amd64"), and the environment that variables may take values from.
type BakeRequest struct {
	Files     []BakeFile
	Targets   []string
	Overrides []string
	Env       map[string]string
}

// BakeMissing is a file that others lead to and that was not given. An optional one is given without content when it is not there.
type BakeMissing struct {
	Name     string
	Optional bool
}

// BakeFile is one file. Extra ones are only what others name (extends, include).
type BakeFile struct {
	Name  string
	Data  []byte
	Extra bool
}
