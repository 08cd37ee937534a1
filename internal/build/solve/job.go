package solve

import (
	"context"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// Solver solves graphs. It is shared by all builds.
type Solver struct{ opts Options }

// New makes a solver.
func New(opts Options) *Solver { return &Solver{opts: opts} }

// Close waits until nothing of ended jobs is under way any more.
func (s *Solver) Close(ctx context.Context) error { return nil }

// Job begins a build request. It ends with ctx, or by Close, which must be called in any case.
func (s *Solver) Job(ctx context.Context, opts JobOptions) *Job { return &Job{} }

// Job is one build request: what is solved in it is held until it is closed. Its methods may be called concurrently.
type Job struct{}

// Solve takes a definition. It is lazy: the graph is verified and told to Status, and nothing is run before the result is asked for. An empty definition is the empty tree.
func (j *Job) Solve(ctx context.Context, def *pb.Definition) (*Result, error) {
	return nil, errs.New(errs.NotImplemented, "solving is not there yet")
}

// Progress tells of work that belongs to no vertex of a graph ("exporting to image"). done must be called with its end.
func (j *Job) Progress(dgst digest.Digest, name string) (p build.Progress, done func(error)) {
	return nil, func(error) {}
}

// Warn adds a warning to the job's status.
func (j *Job) Warn(w build.Warning) {}

// Flush tells Status what it was not told yet.
func (j *Job) Flush() {}

// Close ends the job: what runs for it alone is cancelled, waited for and taken away with what failed steps left; what it used is let go.
func (j *Job) Close() {}

// Result is one output of a graph.
type Result struct{}

// Graph is the definition that the result is of; nil for the empty tree.
func (r *Result) Graph() *Graph { return nil }

// Evaluate gives the output. Its layers need not be here: Fetch may bring them, Bring does in any case.
func (r *Result) Evaluate(ctx context.Context) (build.Output, error) { return build.Output{}, nil }

// Bring evaluates, and brings the layers here. They stay until the job is closed.
func (r *Result) Bring(ctx context.Context) (build.Output, error) { return build.Output{}, nil }

// Walk gives each vertex that was evaluated for this result, inputs first, nested builds included.
func (r *Result) Walk(fn func(Step) error) error { return nil }

// Graph is a verified definition.
type Graph struct {
	// Root is the output that the definition stands for.
	Root build.Edge
	// Vertices are all that Root needs, inputs first.
	Vertices []*build.Vertex
}

// Load reads and verifies a definition.
func Load(def *pb.Definition) (*Graph, error) { return nil, nil }
