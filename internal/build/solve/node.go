package solve

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// keyFormat opens what a record's key is made of. It changes when a kept result of before could be another one now.
const keyFormat = "corten.build.1"

// maxTurns bounds how often a vertex makes its key anew because an input became another meanwhile. An input that was brought stays what it is, so two are usual.
const maxTurns = 10

// node is a vertex in a job.
type node struct {
	scope   *scope
	job     *Job
	id      nodeID
	vertex  *build.Vertex
	kind    string
	op      build.Op // nil for what is only order
	traits  build.Traits
	noCache bool
	inputs  []edge
	sources []*errdefs.Source
	voice   *voice

	found   future[*result]
	retried atomic.Bool // another's flight failed, which says little about this job

	mu     sync.Mutex // guards what follows
	width  int        // how many outputs somebody wants
	now    *result    // the newest; there once found is
	layers map[int]*future[build.Output]
}

// edge is an output of a node.
type edge struct {
	node  *node
	index int
}

// result is what a vertex has: never changed, but replaced.
type result struct {
	key                digest.Digest
	inputs             []digest.Digest
	outputs            []build.Output
	cached             bool
	loose              bool          // no record has the outputs: they do not belong under the key
	imported           *build.Record // the record to keep when its layers are here
	alias              []edge        // of whom the outputs are, for what is only order
	nested             *Result       // the build in this build
	taken              time.Duration
	started, completed time.Time
}

// name is what the result is told by.
func (r *result) name() digest.Digest {
	if len(r.outputs) > 0 && r.outputs[0].Image != "" {
		return r.outputs[0].Image
	}
	return r.key
}

// attempt says how a result is looked for.
type attempt struct {
	again     bool // the layers of the one at hand are gone
	noImports bool // what was imported cannot be had
}

// want notes that somebody uses an output.
func (n *node) want(index int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.width = max(n.width, index+1)
}

func (n *node) wide() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.width
}

// latest is the newest result; nil before there is one.
func (n *node) latest() *result {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

func (n *node) replace(res *result) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now, n.layers = res, nil
}

// result waits until the vertex has a result.
func (n *node) result(ctx context.Context) (*result, error) {
	if res := n.latest(); res != nil {
		return res, nil
	}
	return n.found.wait(ctx, n.job.ctx, &n.job.running, func(ctx context.Context) (*result, error) {
		res, err := n.make(ctx, attempt{})
		if err != nil {
			return nil, err
		}
		n.replace(res)
		return res, nil
	})
}

// output is one output of a result.
func (n *node) output(res *result, index int) (build.Output, error) {
	if index >= len(res.outputs) {
		return build.Output{}, n.failed(errs.New(errs.Invalid, "invalid output index %d of %s, which has %d", index, n.vertex.Name, len(res.outputs)))
	}
	return res.outputs[index], nil
}

// make looks for a result until one is found for inputs that did not change meanwhile, and tells how it ended.
func (n *node) make(ctx context.Context, how attempt) (*result, error) {
	res, err := n.turns(ctx, how)
	if err != nil {
		n.voice.drop()
		return nil, err
	}
	if wide := n.wide(); len(res.outputs) < wide {
		_, err := n.output(res, wide-1)
		return nil, err
	}
	res.started, res.completed = n.voice.end("", res.cached, res.name())
	return res, nil
}

func (n *node) turns(ctx context.Context, how attempt) (*result, error) {
	err := n.together(ctx, len(n.inputs), func(ctx context.Context, i int) error {
		res, err := n.inputs[i].node.result(ctx)
		if err == nil {
			_, err = n.inputs[i].node.output(res, n.inputs[i].index)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	switch n.kind {
	case "build":
		return n.nest(ctx)
	case "passthrough":
		return n.pass()
	}
	for range maxTurns {
		if res, err := n.turn(ctx, how); res != nil || err != nil {
			return res, err
		}
	}
	return nil, n.failed(errs.New(errs.Conflict, "%s: its inputs are others each time they are made", n.vertex.Name))
}

// turn looks for a result once; nil when an input has become another.
func (n *node) turn(ctx context.Context, how attempt) (*result, error) {
	in, keys := n.inputsNow()
	if n.traits.Source {
		n.voice.begin(time.Now())
	}
	key, err := n.opKey(ctx, slices.Clone(in)) // a Key may note in its own what it had brought
	if err != nil {
		return nil, n.ended(ctx, err)
	}
	if n.changed(in) {
		return nil, nil
	}
	if n.traits.Source {
		return n.lookUp(ctx, key, in)
	}
	res := &result{key: digest.FromString(keyFormat + "\n" + n.kind + "\n" + key.String()), inputs: keys}
	n.job.use(res.key)
	if !n.noCache {
		if ok, err := n.recorded(ctx, res, how); ok || err != nil {
			return res, err
		}
	}
	return n.fly(ctx, res, in)
}

// lookUp runs a source: its result is an identity, of which no record is kept.
func (n *node) lookUp(ctx context.Context, key digest.Digest, in []build.Output) (*result, error) {
	made, err := n.runOp(ctx, n.env(n.voice), in)
	if err != nil {
		return nil, n.ended(ctx, err)
	}
	n.job.use(key) // what was fetched or made for it may be kept under it
	return &result{key: key, outputs: made.Outputs, cached: made.Cached}, nil
}

// opKey is the op's Key. A bug in it is a failure of its vertex, like one in its Run.
func (n *node) opKey(ctx context.Context, in []build.Output) (key digest.Digest, err error) {
	defer task.Contain(n.job.solver.opts.Log, n.vertex.Name, &err)
	return n.op.Key(ctx, n.env(n.voice), in)
}

func (n *node) runOp(ctx context.Context, env build.Env, in []build.Output) (made build.Made, err error) {
	defer task.Contain(n.job.solver.opts.Log, n.vertex.Name, &err)
	return n.op.Run(ctx, env, in)
}

// inputsNow gives the outputs that the node stands on, and the keys of who made them.
func (n *node) inputsNow() (in []build.Output, keys []digest.Digest) {
	in, keys = make([]build.Output, len(n.inputs)), make([]digest.Digest, len(n.inputs))
	for i, e := range n.inputs {
		res := e.node.latest()
		in[i], keys[i] = res.outputs[e.index], res.key
	}
	return in, keys
}

// changed tells whether an input has other layers now.
func (n *node) changed(in []build.Output) bool {
	for i, e := range n.inputs {
		if e.node.latest().outputs[e.index].Chain != in[i].Chain {
			return true
		}
	}
	return false
}

func (n *node) env(p build.Progress) build.Env {
	return build.Env{
		Vertex: n.vertex, Session: n.job.session, Progress: p, NoCache: n.noCache,
		Bring: func(ctx context.Context, input int) (build.Output, error) {
			if input < 0 || input >= len(n.inputs) {
				return build.Output{}, errs.New(errs.Invalid, "invalid input index %d", input)
			}
			return n.inputs[input].node.local(ctx, n.inputs[input].index)
		},
	}
}

// ended is the error of work that was done for this job: its failure, or the cause of its end.
func (n *node) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return n.failed(err)
}

// failed tells that the vertex failed, and gives the error what doors want to know: the step, its digest, and the lines it comes from. The error of another vertex stays as it is.
func (n *node) failed(err error) error {
	var other *errdefs.VertexError
	if errors.As(err, &other) {
		return err
	}
	n.voice.end(err.Error(), false, "")
	var step *build.StepError
	if !errors.As(err, &step) {
		err = &build.StepError{Vertex: n.vertex, ExitCode: -1, Err: err}
	}
	for _, src := range n.sources {
		err = errdefs.WithSource(err, src)
	}
	return errdefs.WrapVertex(err, n.vertex.Digest)
}

// together calls fn for each of count side by side. The first error ends the others, and is given at once.
func (n *node) together(ctx context.Context, count int, fn func(ctx context.Context, i int) error) error {
	if count == 0 {
		return nil
	}
	if count == 1 {
		return fn(ctx, 0)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ends := make(chan error, count)
	one := func(i int) (err error) {
		defer task.Contain(n.job.solver.opts.Log, n.vertex.Name, &err)
		return fn(ctx, i)
	}
	for i := range count {
		go func() { ends <- one(i) }()
	}
	for range count {
		if err := <-ends; err != nil {
			return err
		}
	}
	return nil
}
