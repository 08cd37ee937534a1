package frontend

import (
	"context"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// Product is how this engine calls itself to frontends.
const Product = "corten"

// client is the gateway as one frontend sees it. Frontends ask it from goroutines of their own, where nobody would catch a panic: each method contains its bugs.
type client struct {
	gw     *Gateway
	attrs  map[string]string // the frontend's own; frontends write into it
	inputs map[string]*pb.Definition
}

var _ gateway.Client = (*client)(nil)

// BuildOpts implements [gateway.Client].
func (c *client) BuildOpts() gateway.BuildOpts {
	return gateway.BuildOpts{
		Opts: c.attrs, SessionID: c.gw.Session, Product: Product,
		Workers: []gateway.WorkerInfo{{ID: Product, Platforms: c.gw.Platforms}},
		LLBCaps: pb.Caps.CapSet(LLBCaps()), Caps: gwpb.Caps.CapSet(Caps()),
	}
}

// Solve implements [gateway.Client]: of a definition, the result is made when it is asked for, unless req.Evaluate.
func (c *client) Solve(ctx context.Context, req gateway.SolveRequest) (_ *gateway.Result, err error) {
	defer task.Contain(c.gw.Log, "solve", &err)
	if len(req.CacheImports) > 0 {
		if err := c.gw.Job.Import(ctx, req.CacheImports); err != nil {
			return nil, err
		}
	}
	defined := req.Definition != nil && len(req.Definition.Def) > 0
	switch {
	case defined && req.Frontend != "":
		return nil, errs.New(errs.Invalid, "a request with both a definition and a frontend")
	case req.Frontend != "":
		return c.gw.nested(ctx, c.attrs, req)
	}
	res := gateway.NewResult()
	if !defined {
		return res, nil // scratch
	}
	if len(req.SourcePolicies) > 0 {
		return nil, errs.New(errs.NotImplemented, "a source policy of a frontend's own: policies come with the request for the build")
	}
	made, err := c.gw.Job.Solve(ctx, req.Definition)
	if err != nil {
		return nil, err
	}
	ref := &Ref{gw: c.gw, def: req.Definition, result: made}
	if req.Evaluate {
		if err := ref.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	res.SetRef(ref)
	return res, nil
}

// ResolveImageConfig implements [gateway.Client].
func (c *client) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (_ string, _ digest.Digest, _ []byte, err error) {
	defer task.Contain(c.gw.Log, "resolve "+ref, &err)
	return sourceresolver.NewImageMetaResolver(c).ResolveImageConfig(ctx, ref, opt)
}

// ResolveSourceMetadata implements [gateway.Client]. It is shown in progress under the name that the frontend gave it.
func (c *client) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (_ *sourceresolver.MetaResponse, err error) {
	defer task.Contain(c.gw.Log, "resolve "+op.GetIdentifier(), &err)
	if len(opt.SourcePolicies) > 0 {
		return nil, errs.New(errs.NotImplemented, "a source policy of a frontend's own: policies come with the request for the build")
	}
	if c.gw.Policy != nil {
		changed, err := c.gw.Policy(ctx, op)
		if err != nil {
			return nil, err
		}
		op = changed
	}
	name := opt.LogName
	if name == "" {
		name = "resolve " + op.GetIdentifier()
	}
	p, done := c.gw.Job.Progress(digest.FromString(name), name)
	defer func() { done(err) }()
	defer task.Contain(c.gw.Log, name, &err)
	return c.gw.Sources.Resolve(ctx, op, opt, p)
}

// Inputs implements [gateway.Client].
func (c *client) Inputs(context.Context) (_ map[string]llb.State, err error) {
	defer task.Contain(c.gw.Log, "read the inputs", &err)
	states := make(map[string]llb.State, len(c.inputs))
	for name, def := range c.inputs {
		if def == nil || len(def.Def) == 0 {
			states[name] = llb.Scratch()
			continue
		}
		op, err := llb.NewDefinitionOp(def)
		if err != nil {
			return nil, errs.New(errs.Invalid, "frontend input %s: %w", name, err)
		}
		states[name] = llb.NewState(op)
	}
	return states, nil
}

// Warn implements [gateway.Client].
func (c *client) Warn(_ context.Context, vertex digest.Digest, msg string, opts gateway.WarnOpts) (err error) {
	defer task.Contain(c.gw.Log, "warn", &err)
	c.gw.Job.Warn(build.Warning{
		Vertex: vertex, Level: opts.Level, Short: []byte(msg), Detail: opts.Detail, URL: opts.URL, SourceInfo: opts.SourceInfo, Range: opts.Range,
	})
	return nil
}
