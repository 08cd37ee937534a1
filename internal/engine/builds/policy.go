package builds

import (
	"context"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/sourcepolicy"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"corten.dev/corten/internal/errs"
)

// policy says which sources a build may use, and which stand for others.
type policy struct{ engine *sourcepolicy.Engine }

func newPolicy(p *spb.Policy) *policy {
	if p == nil {
		return nil
	}
	return &policy{sourcepolicy.NewEngine([]*spb.Policy{p})}
}

func (p *policy) source(ctx context.Context, op *pb.SourceOp) (*pb.SourceOp, error) {
	op = op.CloneVT()
	if _, err := p.engine.Evaluate(ctx, op); err != nil {
		return nil, errs.As(errs.Forbidden, err)
	}
	return op, nil
}

func (p *policy) op(ctx context.Context, op *pb.Op) (*pb.Op, error) {
	src := op.GetSource()
	if src == nil {
		return op, nil
	}
	op = op.CloneVT()
	changed, err := p.source(ctx, src)
	if err != nil {
		return nil, err
	}
	op.Op = &pb.Op_Source{Source: changed}
	return op, nil
}
