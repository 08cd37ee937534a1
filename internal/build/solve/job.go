package solve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// closing bounds how long the end of a job waits for what does not heed its cancellation.
const closing = 30 * time.Second

var errClosed = errs.New(errs.Unavailable, "the build has ended: %w", context.Canceled)

// Solver solves graphs. It is shared by all builds.
type Solver struct {
	opts    Options
	slots   chan struct{} // one for each heavy step
	running crew          // flights

	mu      sync.Mutex // guards flights
	flights map[flightID]*flight
}

// New makes a solver.
func New(opts Options) *Solver {
	if opts.Parallelism <= 0 {
		opts.Parallelism = max(8, 2*runtime.NumCPU())
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Solver{opts: opts, running: crew{log: opts.Log}, slots: make(chan struct{}, opts.Parallelism), flights: map[flightID]*flight{}}
}

// Close waits until nothing of ended jobs is under way any more.
func (s *Solver) Close(ctx context.Context) error { return s.running.wait(ctx) }

// hold keeps a chain from being removed until release.
func (s *Solver) hold(chain snapshot.ChainID) (release func()) {
	if s.opts.Hold == nil || chain == "" {
		return func() {}
	}
	return s.opts.Hold(chain)
}

// here tells whether the layers of a chain are in the store.
func (s *Solver) here(ctx context.Context, chain snapshot.ChainID) (bool, error) {
	if chain == "" {
		return true, nil
	}
	_, err := s.opts.Trees.Stat(ctx, chain)
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// removeTrees removes what failed steps left.
func (s *Solver) removeTrees(keys []string) {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	for _, key := range keys {
		if err := s.opts.Trees.Remove(ctx, key); err != nil {
			s.opts.Log.Error("remove the tree of a failed build step", "tree", key, "err", err)
		}
	}
}

// Job is one build request: what is solved in it is held until it is closed. Its methods may be called concurrently.
type Job struct {
	solver  *Solver
	opts    JobOptions
	grants  grants
	rep     *reporter
	top     *scope
	running crew // nodes

	// The job is a request, and its context the life of that: nodes begin under it whoever asks for them.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards what follows
	imports []*imported
	told    map[digest.Digest]bool
	used    map[digest.Digest]func()
	held    map[snapshot.ChainID]func()
	trees   []*leftovers
	ending  []<-chan struct{} // flights that were cancelled because this job left them
	closed  bool
	once    sync.Once
}

// Job begins a build request. It ends with ctx, or by Close, which must be called in any case.
func (s *Solver) Job(ctx context.Context, opts JobOptions) *Job {
	j := &Job{
		solver: s, opts: opts, running: crew{log: s.opts.Log}, grants: parseGrants(opts.Entitlements), rep: newReporter(opts.Status, s.opts.Log),
		told: map[digest.Digest]bool{}, used: map[digest.Digest]func(){}, held: map[snapshot.ChainID]func(){},
	}
	for _, imp := range opts.Imports {
		j.imports = append(j.imports, &imported{Import: imp})
	}
	j.ctx, j.cancel = context.WithCancelCause(ctx)
	j.top = &scope{job: j, nodes: map[nodeID]*node{}}
	return j
}

// AddImport has one more import asked, after the others, by steps that begin from now on.
func (j *Job) AddImport(imp Import) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.imports = append(j.imports, &imported{Import: imp})
}

// Solve takes a definition. It is lazy: the graph is verified and told to Status, and nothing is run before the result is asked for. An empty definition is the empty tree.
func (j *Job) Solve(ctx context.Context, def *pb.Definition) (*Result, error) {
	if def == nil || len(def.Def) == 0 {
		return &Result{job: j}, nil
	}
	return j.top.solve(ctx, def)
}

// Progress tells of work that belongs to no vertex of a graph ("exporting to image"). done must be called with its end.
func (j *Job) Progress(dgst digest.Digest, name string) (p build.Progress, done func(error)) {
	v := newVoice(j.rep, &build.Vertex{Digest: dgst, Name: name, Meta: &pb.OpMetadata{}})
	v.begin(time.Now())
	return v, func(err error) {
		switch {
		case err == nil:
			v.end("", false, "")
		case errors.Is(err, context.Canceled):
			v.drop()
		default:
			v.end(err.Error(), false, "")
		}
	}
}

// Warn adds a warning to the job's status.
func (j *Job) Warn(w build.Warning) { j.rep.warning(w) }

// Flush tells Status what it was not told yet.
func (j *Job) Flush() { j.rep.flush() }

// Close ends the job: what runs for it alone is cancelled, waited for and taken away with what failed steps left; what it used is let go. Status is told the rest.
func (j *Job) Close() { j.once.Do(j.close) }

func (j *Job) close() {
	j.cancel(errClosed)
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	if err := j.running.wait(ctx); err != nil {
		j.solver.opts.Log.Error("steps of a build go on after its end", "err", err)
	}
	j.mu.Lock()
	j.closed = true
	ending, trees, used, held := j.ending, j.trees, j.used, j.held
	j.ending, j.trees, j.used, j.held = nil, nil, nil, nil
	j.mu.Unlock()
	for _, done := range ending {
		select {
		case <-done:
		case <-ctx.Done():
			j.solver.opts.Log.Error("a build step goes on after it was cancelled")
		}
	}
	for _, left := range trees {
		left.unref()
	}
	for _, release := range used {
		release()
	}
	for _, release := range held {
		release()
	}
	j.rep.close()
}

// join gives a context that ends with ctx and with the job.
func (j *Job) join(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(j.ctx, func() { cancel(context.Cause(j.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// use marks a key as used until the job is closed.
func (j *Job) use(key digest.Digest) {
	if !j.keeps(&j.used, key) {
		j.keep(&j.used, key, j.solver.opts.Cache.Use(context.WithoutCancel(j.ctx), key))
	}
}

// hold keeps a chain from being removed until the job is closed; false when it is not here.
func (j *Job) hold(ctx context.Context, chain snapshot.ChainID) (bool, error) {
	if j.keeps(&j.held, chain) {
		return true, nil
	}
	release := j.solver.hold(chain)
	ok, err := j.solver.here(ctx, chain)
	if ok && err == nil {
		j.keep(&j.held, chain, release)
	} else {
		release()
	}
	return ok, err
}

func (j *Job) keeps(kept *map[digest.Digest]func(), name digest.Digest) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return (*kept)[name] != nil
}

// keep keeps one release for each name until the job is closed; who comes second lets go at once.
func (j *Job) keep(kept *map[digest.Digest]func(), name digest.Digest, release func()) {
	j.mu.Lock()
	if (*kept)[name] == nil && !j.closed {
		(*kept)[name] = release
		release = func() {}
	}
	j.mu.Unlock()
	release()
}

// keepTrees keeps what a failed step left until the job is closed.
func (j *Job) keepTrees(left *leftovers) {
	j.mu.Lock()
	closed := j.closed
	if !closed {
		j.trees = append(j.trees, left)
	}
	j.mu.Unlock()
	if closed {
		left.unref()
	}
}

// leave remembers what the end of the job has to wait for.
func (j *Job) leave(done <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ending = append(j.ending, done)
}

// announce tells each vertex once, before anything of it starts.
func (j *Job) announce(nodes []*node) {
	if j.rep == nil {
		return
	}
	var news []build.VertexStatus
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range nodes {
		if !j.told[n.vertex.Digest] {
			j.told[n.vertex.Digest] = true
			news = append(news, n.voice.status())
		}
	}
	j.rep.vertexes(news...)
}

// session finds what the job's asker offers.
func (j *Job) session(ctx context.Context, id string) (*build.Session, error) {
	if j.opts.Session == nil {
		return nil, errs.New(errs.NotFound, "no session: the build offers nothing to its steps")
	}
	return j.opts.Session(ctx, id)
}

// crew counts what runs beside.
type crew struct {
	log *slog.Logger

	mu   sync.Mutex // guards what follows
	n    int
	idle chan struct{} // closed when n becomes 0; nil while nobody waits for it
}

func (c *crew) spawn(fn func()) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	go func() {
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.n--; c.n == 0 && c.idle != nil {
				close(c.idle)
				c.idle = nil
			}
		}()
		fn()
	}()
}

// wait waits until nothing runs.
func (c *crew) wait(ctx context.Context) error {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	n := c.n
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %d steps to end: %w", n, context.Cause(ctx))
	}
}
