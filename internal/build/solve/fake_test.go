package solve_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// world is everything around a solver, in memory. Steps are exec ops whose arguments name a function of the test.
type world struct {
	t     testing.TB
	cache *cache
	trees *trees
	s     *solve.Solver

	mu   sync.Mutex
	acts map[string]act
	runs map[string]int
}

// act is what a step of the test does.
type act struct {
	traits build.Traits
	// key makes the key; nil: of the name and the inputs' chains.
	key func(ctx context.Context, env build.Env, in []build.Output) (digest.Digest, error)
	// run gives the content; nil: the name and the inputs' chains.
	run  func(ctx context.Context, env build.Env, in []build.Output) (build.Made, error)
	outs int // 0 is one
}

func newWorld(t testing.TB, opts ...func(*solve.Options)) *world {
	w := &world{t: t, cache: &cache{recs: map[digest.Digest]build.Record{}, used: map[digest.Digest]int{}}, trees: &trees{there: map[digest.Digest]bool{}, held: map[digest.Digest]int{}}, acts: map[string]act{}, runs: map[string]int{}}
	o := solve.Options{Cache: w.cache, Trees: w.trees, Hold: w.trees.hold, Parallelism: 4, Make: solve.Makers{Exec: w.make, Source: w.make}}
	for _, fn := range opts {
		fn(&o)
	}
	w.s = solve.New(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := w.s.Close(ctx); err != nil {
			t.Error("the solver does not come to an end: ", err)
		}
		w.cache.idle(t)
		w.trees.idle(t)
	})
	return w
}

func (w *world) on(name string, a act) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acts[name] = a
}

func (w *world) ran(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runs[name]
}

func (w *world) total() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.runs {
		n += k
	}
	return n
}

func (w *world) make(v *build.Vertex) (build.Op, error) {
	name := v.Op.GetSource().GetIdentifier()
	if exec := v.Op.GetExec(); exec != nil {
		name = strings.Join(exec.Meta.Args, " ")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.acts[name]
	if v.Op.GetSource() != nil {
		a.traits.Source = true
	}
	return &fakeOp{w: w, name: name, act: a}, nil
}

type fakeOp struct {
	w    *world
	name string
	act  act
}

func (o *fakeOp) Traits() build.Traits { return o.act.traits }

func (o *fakeOp) Key(ctx context.Context, env build.Env, in []build.Output) (digest.Digest, error) {
	if o.act.key != nil {
		return o.act.key(ctx, env, in)
	}
	return digest.FromString(o.name + chainsOf(in)), nil
}

func (o *fakeOp) Run(ctx context.Context, env build.Env, in []build.Output) (build.Made, error) {
	o.w.mu.Lock()
	o.w.runs[o.name]++
	o.w.mu.Unlock()
	if !o.act.traits.Lazy {
		for _, i := range in {
			if !o.w.trees.has(i.Chain) {
				return build.Made{}, fmt.Errorf("the layers of an input of %s are not here", o.name)
			}
		}
	}
	if o.act.run != nil {
		return o.act.run(ctx, env, in)
	}
	var made build.Made
	for i := range max(o.act.outs, 1) {
		made.Outputs = append(made.Outputs, o.w.trees.put(fmt.Sprint(o.name, i, chainsOf(in))))
	}
	return made, nil
}

func chainsOf(in []build.Output) string {
	var text string
	for _, i := range in {
		text += " " + string(i.Chain)
	}
	return text
}

// cache is build.Cache in memory.
type cache struct {
	mu      sync.Mutex
	recs    map[digest.Digest]build.Record
	used    map[digest.Digest]int
	lookups int
	fail    error
}

func (c *cache) Lookup(_ context.Context, key digest.Digest) (build.Record, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookups++
	if c.used[key] == 0 {
		return build.Record{}, false, fmt.Errorf("%s is looked up and not held", key)
	}
	rec, ok := c.recs[key]
	return rec, ok, c.fail
}

func (c *cache) Save(_ context.Context, rec build.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used[rec.Key] == 0 {
		return fmt.Errorf("%s is kept and not held", rec.Key)
	}
	c.recs[rec.Key] = rec
	return nil
}

func (c *cache) Use(_ context.Context, keys ...digest.Digest) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		c.used[key]++
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, key := range keys {
			if c.used[key]--; c.used[key] == 0 {
				delete(c.used, key)
			}
		}
	}
}

func (c *cache) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.recs)
}

func (c *cache) idle(t testing.TB) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.used) > 0 {
		t.Errorf("%d keys are held at the end", len(c.used))
	}
}

// trees is a store of layers in memory: a chain is the digest of its content.
type trees struct {
	mu      sync.Mutex
	there   map[digest.Digest]bool
	held    map[digest.Digest]int
	removed []string
	dir     string // what View shows
}

func (t *trees) put(content string) build.Output {
	t.mu.Lock()
	defer t.mu.Unlock()
	chain := digest.FromString(content)
	t.there[chain] = true
	return build.Output{Chain: chain}
}

func (t *trees) has(chain digest.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return chain == "" || t.there[chain]
}

// drop collects all layers, or those of some chains.
func (t *trees) drop(chains ...digest.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(chains) == 0 {
		chains = slices.Collect(maps.Keys(t.there))
	}
	for _, chain := range chains {
		delete(t.there, chain)
	}
}

func (t *trees) hold(chain snapshot.ChainID) func() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held[chain]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.held[chain]--; t.held[chain] == 0 {
			delete(t.held, chain)
		}
	}
}

func (t *trees) idle(tb testing.TB) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.held) > 0 {
		tb.Errorf("%d chains are held at the end", len(t.held))
	}
}

func (t *trees) Stat(_ context.Context, chain snapshot.ChainID) (snapshot.Layer, error) {
	if !t.has(chain) {
		return snapshot.Layer{}, errs.New(errs.NotFound, "layer %s is not here", chain)
	}
	return snapshot.Layer{Chain: chain}, nil
}

func (t *trees) View(context.Context, snapshot.ChainID) (*snapshot.Mounted, error) {
	root, err := os.Open(t.dir)
	if err != nil {
		return nil, err
	}
	return &snapshot.Mounted{Root: root, Close: root.Close}, nil
}

func (t *trees) Remove(_ context.Context, key string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removed = append(t.removed, key)
	return nil
}

// graph builds definitions.
type graph struct {
	def  pb.Definition
	last *pb.Input
}

func newGraph() *graph {
	return &graph{def: pb.Definition{Metadata: map[string]*pb.OpMetadata{}}}
}

func (g *graph) op(op *pb.Op) *pb.Input {
	data, err := op.MarshalVT()
	if err != nil {
		panic(err)
	}
	g.def.Def = append(g.def.Def, data)
	g.last = &pb.Input{Digest: string(digest.FromBytes(data))}
	return g.last
}

// step adds an exec op that has its inputs as mounts.
func (g *graph) step(name string, in ...*pb.Input) *pb.Input {
	exec := &pb.ExecOp{Meta: &pb.Meta{Args: strings.Fields(name)}}
	for i := range in {
		exec.Mounts = append(exec.Mounts, &pb.Mount{Input: int64(i), Dest: "/" + strings.Repeat("m", i)})
	}
	if len(in) == 0 {
		exec.Mounts = []*pb.Mount{{Input: -1, Dest: "/"}}
	}
	return g.op(&pb.Op{Inputs: in, Op: &pb.Op_Exec{Exec: exec}})
}

func (g *graph) source(id string) *pb.Input {
	return g.op(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: id}}})
}

func (g *graph) meta(in *pb.Input) *pb.OpMetadata {
	m := g.def.Metadata[in.Digest]
	if m == nil {
		m = &pb.OpMetadata{Description: map[string]string{}}
		g.def.Metadata[in.Digest] = m
	}
	return m
}

// end gives the definition of the last op, or of those given.
func (g *graph) end(of ...*pb.Input) *pb.Definition {
	in := g.last
	if len(of) > 0 {
		in = of[0]
	}
	g.op(&pb.Op{Inputs: []*pb.Input{in}})
	return &g.def
}

// chain is n steps, one on the other, on a source.
func chain(n int) *pb.Definition {
	g := newGraph()
	in := g.source("docker-image://base")
	for i := range n {
		in = g.step("step "+strconv.Itoa(i), in)
	}
	return g.end()
}

// job is a job that is closed with the test.
func (w *world) job(opts ...solve.JobOptions) *solve.Job {
	var o solve.JobOptions
	if len(opts) > 0 {
		o = opts[0]
	}
	j := w.s.Job(context.Background(), o)
	w.t.Cleanup(j.Close)
	return j
}

// build solves a definition in a job of its own.
func (w *world) build(def *pb.Definition, opts ...solve.JobOptions) (build.Output, error) {
	w.t.Helper()
	j := w.job(opts...)
	defer j.Close()
	res, err := j.Solve(context.Background(), def)
	if err != nil {
		return build.Output{}, err
	}
	return res.Bring(context.Background())
}

func (w *world) mustBuild(def *pb.Definition, opts ...solve.JobOptions) build.Output {
	w.t.Helper()
	out, err := w.build(def, opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// gate lets steps wait for the test.
type gate struct {
	entered chan struct{}
	open    chan struct{}
	inside  atomic.Int32
	most    atomic.Int32
}

func newGate() *gate {
	return &gate{entered: make(chan struct{}, 1000), open: make(chan struct{})}
}

func (g *gate) pass(ctx context.Context) error {
	n := g.inside.Add(1)
	defer g.inside.Add(-1)
	for {
		most := g.most.Load()
		if n <= most || g.most.CompareAndSwap(most, n) {
			break
		}
	}
	g.entered <- struct{}{}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fails is what a step does that fails.
func fails(err error) func(context.Context, build.Env, []build.Output) (build.Made, error) {
	return func(context.Context, build.Env, []build.Output) (build.Made, error) { return build.Made{}, err }
}

// waits is an act that waits at a gate, and then makes what others make.
func (w *world) waits(g *gate, name string) act {
	return act{run: func(ctx context.Context, env build.Env, in []build.Output) (build.Made, error) {
		if err := g.pass(ctx); err != nil {
			return build.Made{}, err
		}
		return build.Made{Outputs: []build.Output{w.trees.put(name + chainsOf(in))}}, nil
	}}
}
