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
)

// Product is how this engine calls itself to frontends.
const Product = "corten"

// client is the gateway as one frontend sees it.
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
func (c *client) Solve(ctx context.Context, req gateway.SolveRequest) (*gateway.Result, error) {
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
func (c *client) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return sourceresolver.NewImageMetaResolver(c).ResolveImageConfig(ctx, ref, opt)
}

// ResolveSourceMetadata implements [gateway.Client]. It is shown in progress under the name that the frontend gave it.
func (c *client) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
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
	res, err := c.gw.Sources.Resolve(ctx, op, opt, p)
	done(err)
	return res, err
}

// Inputs implements [gateway.Client].
func (c *client) Inputs(context.Context) (map[string]llb.State, error) {
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
func (c *client) Warn(_ context.Context, vertex digest.Digest, msg string, opts gateway.WarnOpts) error {
	c.gw.Job.Warn(build.Warning{
		Vertex: vertex, Level: opts.Level, Short: []byte(msg), Detail: opts.Detail, URL: opts.URL, SourceInfo: opts.SourceInfo, Range: opts.Range,
	})
	return nil
}
