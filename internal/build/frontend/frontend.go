// Package frontend turns what people write into graphs: it runs frontends (the Dockerfile language, and frontends that come as images), and is the gateway that they ask.
//
// It owns nothing on disk. It knows a build only as a [Job] that solves definitions; it does not know exporters, sessions or the engine. It promises: the Dockerfile language is the one of BuildKit's
// own packages, run in this process; a frontend reads results below their root and within bounds, whatever links they hold; a frontend that comes as an image runs in a container like any step, and
// sees nothing but what this gateway answers.
//
//	Run("dockerfile.v0") ──▶ builder.Build ──asks──▶ client ──▶ Job.Solve, Sources.Resolve, trees
//	Run("gateway.v0", source=docker/dockerfile:…) ──▶ the same: the built-in one serves these names
//	Run("gateway.v0", source=other) ──▶ container of that image ──gRPC over its stdin and stdout──▶ [Bridge] ──▶ client
package frontend

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// Version is that of the BuildKit packages whose Dockerfile language, and whose wire, this is; clients compare it.
const Version = "v0.33.1"

// Names of frontends.
const (
	Dockerfile = "dockerfile.v0"
	Image      = "gateway.v0" // attribute "source" names the image
)

// Job is the build that a frontend works for.
type Job interface {
	// Solve takes a definition, or refuses one that can never be solved; nothing is run before the result is asked for.
	Solve(ctx context.Context, def *pb.Definition) (Result, error)
	// Progress tells of work that belongs to no vertex of a graph; done must be called with its end.
	Progress(dgst digest.Digest, name string) (p build.Progress, done func(error))
	// Warn adds a warning to the build's.
	Warn(w build.Warning)
	// Import is told of caches that a frontend asks for.
	Import(ctx context.Context, caches []gateway.CacheOptionsEntry) error
}

// Result is a definition that a job has taken.
type Result interface {
	// Evaluate makes the output; equal work is done once.
	Evaluate(ctx context.Context) (build.Output, error)
	// Bring makes the output, with its layers on this host.
	Bring(ctx context.Context) (build.Output, error)
}

// Sources resolve what names stand for, without fetching it.
type Sources interface {
	Resolve(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, p build.Progress) (*sourceresolver.MetaResponse, error)
}

// Trees show the layers of results.
type Trees interface {
	View(ctx context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error)
}

// Containers run what frontends ask for: their own images, and containers made through the gateway.
type Containers interface {
	New(ctx context.Context, spec ContainerSpec) (Container, error)
}

// ContainerSpec describes a container without its processes. Mounts are those of the gateway, their trees solved; the one at "/" is the root.
type ContainerSpec struct {
	Mounts     []Mount
	Hostname   string
	Net        pb.NetMode
	ExtraHosts []*pb.HostIP
	Platform   *pb.Platform
}

// Mount is a mount of a container, with the output it shows.
type Mount struct {
	gateway.Mount
	Tree *build.Output // nil: an empty tree, or none is needed
}

// Container is a container of a frontend. Release ends its processes and takes everything away.
type Container interface {
	Start(ctx context.Context, req ProcessSpec) (gateway.ContainerProcess, error)
	// Open gives the root of a mount's tree, as the processes see it.
	Open(ctx context.Context, mount int) (*snapshot.Mounted, error)
	Release(ctx context.Context) error
}

// ProcessSpec is a process in a container.
type ProcessSpec struct {
	Args, Env      []string
	SecretEnv      []*pb.SecretEnv
	User, Cwd      string
	Tty            bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Security       pb.SecurityMode
}

// Options join a gateway with its build. Containers may be nil: what needs one is refused then.
type Options struct {
	Job        Job
	Sources    Sources
	Trees      Trees
	Containers Containers
	// Platforms are those that steps can run for, the host's first.
	Platforms []ocispec.Platform
	// Session is the id of the build's own session.
	Session string
	// Policy looks at a source that is to be resolved: it gives the source as it is to be, or refuses it. Nil: all are fine.
	Policy func(ctx context.Context, op *pb.SourceOp) (*pb.SourceOp, error)
	Log    *slog.Logger
}

// Gateway is what the frontends of one build ask.
type Gateway struct{ Options }

// New makes the gateway of a build.
func New(opts Options) *Gateway {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Gateway{opts}
}

// Run runs a frontend by its name, and returns what it made.
func (g *Gateway) Run(ctx context.Context, name string, attrs map[string]string, inputs map[string]*pb.Definition) (*gateway.Result, error) {
	attrs = maps.Clone(attrs)
	if attrs == nil {
		attrs = map[string]string{}
	}
	switch name {
	case Dockerfile:
		return g.dockerfile(ctx, attrs, inputs)
	case Image:
		source := attrs["source"]
		if source == "" {
			return nil, errs.New(errs.Invalid, "frontend %s needs the attribute source, the name of an image", name)
		}
		if ours, notice := builtIn(source); ours {
			if notice != "" {
				g.Job.Warn(build.Warning{Level: 1, Short: []byte(notice)})
			}
			if _, ok := attrs["cmdline"]; !ok {
				attrs["cmdline"] = source
			}
			return g.dockerfile(ctx, attrs, inputs)
		}
		return g.foreign(ctx, source, attrs, inputs)
	}
	return nil, errs.New(errs.NotFound, "frontend %q is not known here: %s and %s are", name, Dockerfile, Image)
}

func (g *Gateway) dockerfile(ctx context.Context, attrs map[string]string, inputs map[string]*pb.Definition) (*gateway.Result, error) {
	return builder.Build(ctx, g.Client(attrs, inputs))
}

// Client is the gateway as a frontend with these attributes and inputs sees it.
func (g *Gateway) Client(attrs map[string]string, inputs map[string]*pb.Definition) gateway.Client {
	if attrs == nil {
		attrs = map[string]string{}
	}
	return &client{gw: g, attrs: attrs, inputs: inputs}
}

// nested runs a frontend for another frontend: what the outer one was told of caches holds for the inner one.
func (g *Gateway) nested(ctx context.Context, outer map[string]string, req gateway.SolveRequest) (*gateway.Result, error) {
	attrs := maps.Clone(req.FrontendOpt)
	if attrs == nil {
		attrs = map[string]string{}
	}
	for _, key := range []string{"cache-imports", "cache-from"} {
		if v, ok := outer[key]; ok && attrs[key] == "" {
			attrs[key] = v
		}
	}
	res, err := g.Run(ctx, req.Frontend, attrs, req.FrontendInputs)
	if err != nil || !req.Evaluate {
		return res, err
	}
	return res, res.EachRef(func(ref gateway.Reference) error {
		if err := ref.Evaluate(ctx); err != nil {
			return fmt.Errorf("evaluate: %w", err)
		}
		return nil
	})
}
