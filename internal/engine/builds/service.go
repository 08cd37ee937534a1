package builds

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/export"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/build/travel"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
)

// Sessions finds what an asker offers, by the session's id.
type Sessions func(ctx context.Context, id string) (*build.Session, error)

// Exporter makes things of results.
type Exporter interface {
	Export(ctx context.Context, spec export.Spec, job export.Job) (map[string]string, error)
}

// Records are the kept results, and what else takes space.
type Records interface {
	Usage(ctx context.Context, filters filter.Args) ([]UsageRecord, error)
	Prune(ctx context.Context, opts PruneOptions, each func(UsageRecord)) (space int64, err error)
	// Disk tells the size of the disk that they are on.
	Disk() (bytes int64, err error)
}

// Steps are the parts that run programs for who drives a build.
type Steps interface {
	// For gives the containers of the frontends of a build with these entitlements.
	For(sessions Sessions, granted []string) frontend.Containers
	// Shell runs another program where a step failed.
	Shell(ctx context.Context, failed *build.StepError, sessions Sessions, args []string, stdio Terminal) (exitCode int, err error)
}

// Caches come from elsewhere, and go there; travel.Caches has it.
type Caches interface {
	// Check refuses a place or attributes that are not known.
	Check(option travel.Option, export bool) error
	// Import gives the cache at a place.
	Import(ctx context.Context, from travel.Option, job travel.Job) (solve.Import, error)
	// Export puts what the results of a build were made of there. It gives what the asker hears of it.
	Export(ctx context.Context, to travel.Option, results []travel.Result, job travel.Job) (map[string]string, error)
	// Inline gives what an image's config carries of the cache.
	Inline(ctx context.Context, result travel.Result) ([]byte, error)
}

// Options join the service with its rooms; those without a default are needed.
type Options struct {
	// Root is <data-root>/builds.
	Root    string
	Solver  *solve.Solver
	Sources func(sessions Sessions) frontend.Sources
	Trees   frontend.Trees
	Export  Exporter
	Records Records
	Steps   Steps  // nil: frontends get no containers, failed steps no shell
	Caches  Caches // nil: caches are neither imported nor exported
	// Platforms gives those that steps can run for now, the host's first.
	Platforms func() []ocispec.Platform
	// Entitlements that this engine grants to who asks for them; see [Request.Entitlements].
	Entitlements []string
	Collection   Collection
	Events       *events.Bus
	Log          *slog.Logger
}

// Service implements [API].
type Service struct {
	Options
	history *history
	work    sync.WaitGroup
	stop    context.CancelFunc
	built   chan struct{} // a build ended: there may be something to collect
}

var _ API = (*Service)(nil)

// New opens the history, and begins to collect.
func New(opts Options) (*Service, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	hist, err := openHistory(filepath.Join(opts.Root, "history"), opts.Log)
	if err != nil {
		return nil, err
	}
	s := &Service{Options: opts, history: hist, built: make(chan struct{}, 1)}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	if opts.Collection.Enabled && opts.Records != nil {
		s.work.Go(func() { s.collecting(ctx) })
	}
	return s, nil
}

// Close waits for what builds that ended left to do. Builds under way end with their requests.
func (s *Service) Close() error {
	s.stop()
	s.work.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(s.Solver.Close(ctx), s.history.close())
}

// History implements [API].
func (s *Service) History(ctx context.Context, follow bool, each func(Build) error) error {
	return s.history.follow(ctx, follow, each)
}

// Document implements [Past].
func (s *Service) Document(_ context.Context, dgst digest.Digest) ([]byte, error) {
	return s.history.document(dgst)
}

// Status implements [API].
func (s *Service) Status(ctx context.Context, ref string, each func(build.Status) error) error {
	return s.history.replay(ctx, ref, each)
}

// Forget removes a build of the past from history.
func (s *Service) Forget(_ context.Context, ref string) error { return s.history.remove(ref) }

// DiskUsage implements [API].
func (s *Service) DiskUsage(ctx context.Context, filters filter.Args) ([]UsageRecord, error) {
	return s.Records.Usage(ctx, filters)
}

// sessions finds the sessions of a request: its own under its id and "", others as the request says.
func (req Request) sessions() Sessions {
	own := req.Session
	return func(ctx context.Context, id string) (*build.Session, error) {
		switch {
		case id == "" || id == own.ID:
			return own, nil
		case req.Sessions != nil:
			return req.Sessions(ctx, id)
		}
		return nil, errs.New(errs.NotFound, "no session %s", id)
	}
}
