package frontend

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	fstypes "github.com/tonistiigi/fsutil/types"

	"corten.dev/corten/internal/task"
)

// Ref is a result that may not be made yet. Like those of [client], its methods contain their bugs.
type Ref struct {
	gw     *Gateway
	def    *pb.Definition
	result Result
}

var _ gateway.Reference = (*Ref)(nil)

// Definition is the graph that the result is of; nil for the empty tree.
func (r *Ref) Definition() *pb.Definition {
	if r == nil {
		return nil
	}
	return r.def
}

// Result is what the job made of the definition.
func (r *Ref) Result() Result { return r.result }

// open shows the files of the result.
func (r *Ref) open(ctx context.Context) (*tree, error) {
	out, err := r.result.Bring(ctx)
	if err != nil {
		return nil, err
	}
	return openTree(ctx, r.gw.Trees, out)
}

// ToState implements [gateway.Reference].
func (r *Ref) ToState() (_ llb.State, err error) {
	defer task.Contain(r.gw.Log, "read a result", &err)
	op, err := llb.NewDefinitionOp(r.def)
	if err != nil {
		return llb.State{}, fmt.Errorf("read definition of result: %w", err)
	}
	return llb.NewState(op), nil
}

// Evaluate implements [gateway.Reference].
func (r *Ref) Evaluate(ctx context.Context) (err error) {
	defer task.Contain(r.gw.Log, "evaluate a result", &err)
	_, err = r.result.Evaluate(ctx)
	return err
}

// ReadFile implements [gateway.Reference].
func (r *Ref) ReadFile(ctx context.Context, req gateway.ReadRequest) (_ []byte, err error) {
	defer task.Contain(r.gw.Log, "read a result", &err)
	t, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.readFile(req)
}

// StatFile implements [gateway.Reference].
func (r *Ref) StatFile(ctx context.Context, req gateway.StatRequest) (_ *fstypes.Stat, err error) {
	defer task.Contain(r.gw.Log, "read a result", &err)
	t, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.stat(req.Path)
}

// ReadDir implements [gateway.Reference].
func (r *Ref) ReadDir(ctx context.Context, req gateway.ReadDirRequest) (_ []*fstypes.Stat, err error) {
	defer task.Contain(r.gw.Log, "read a result", &err)
	t, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.readDir(req)
}
