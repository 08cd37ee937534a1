package frontend

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	fstypes "github.com/tonistiigi/fsutil/types"

	"corten.dev/corten/internal/build"
)

// Ref is a result that may not be made yet: a definition, and its output once somebody asked for it.
type Ref struct {
	gw       *Gateway
	def      *pb.Definition
	policies []*spb.Policy
	out      atomic.Pointer[build.Output]
	here     atomic.Bool // the layers of out are on this host
}

var _ gateway.Reference = (*Ref)(nil)

func (g *Gateway) ref(req gateway.SolveRequest) (*Ref, error) {
	policies := append(append([]*spb.Policy(nil), g.Policies...), req.SourcePolicies...)
	if err := g.Job.Check(req.Definition, policies); err != nil {
		return nil, err
	}
	return &Ref{gw: g, def: req.Definition, policies: policies}, nil
}

// Definition is the graph that the result is of.
func (r *Ref) Definition() *pb.Definition { return r.def }

// Policies are those that hold for it.
func (r *Ref) Policies() []*spb.Policy { return r.policies }

// Output makes the result.
func (r *Ref) Output(ctx context.Context) (build.Output, error) {
	if out := r.out.Load(); out != nil {
		return *out, nil
	}
	return r.solve(ctx, false)
}

// solve asks the job, which does equal work once: it may be asked twice at a time.
func (r *Ref) solve(ctx context.Context, here bool) (build.Output, error) {
	out, err := r.gw.Job.Solve(ctx, r.def, r.policies, here)
	if err != nil {
		return build.Output{}, err
	}
	r.out.Store(&out)
	if here {
		r.here.Store(true)
	}
	return out, nil
}

// open shows the files of the result.
func (r *Ref) open(ctx context.Context) (*tree, error) {
	out := r.out.Load()
	if out == nil || !r.here.Load() {
		o, err := r.solve(ctx, true)
		if err != nil {
			return nil, err
		}
		out = &o
	}
	return openTree(ctx, r.gw.Trees, *out)
}

// ToState implements [gateway.Reference].
func (r *Ref) ToState() (llb.State, error) {
	op, err := llb.NewDefinitionOp(r.def)
	if err != nil {
		return llb.State{}, fmt.Errorf("read definition of result: %w", err)
	}
	return llb.NewState(op), nil
}

// Evaluate implements [gateway.Reference].
func (r *Ref) Evaluate(ctx context.Context) error {
	_, err := r.Output(ctx)
	return err
}

// ReadFile implements [gateway.Reference].
func (r *Ref) ReadFile(ctx context.Context, req gateway.ReadRequest) ([]byte, error) {
	t, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.readFile(req)
}

// StatFile implements [gateway.Reference].
func (r *Ref) StatFile(ctx context.Context, req gateway.StatRequest) (*fstypes.Stat, error) {
	t, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.stat(req.Path)
}

// ReadDir implements [gateway.Reference].
func (r *Ref) ReadDir(ctx context.Context, req gateway.ReadDirRequest) ([]*fstypes.Stat, error) {
	t, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.readDir(req)
}
