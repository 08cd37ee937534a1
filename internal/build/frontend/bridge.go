package frontend

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"sync"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// Bridge answers the gateway's protocol (BuildKit's LLBBridge) for one frontend in another process: the program of a frontend image, or a client that drives a build itself.
//
//	frontend                          bridge
//	Ping ───────────────────────────▶ capabilities, platforms
//	Inputs, ResolveSourceMeta … ────▶ asked of the gateway
//	Solve ──────────────────────────▶ ids of results; ReadFile, StatFile, ReadDir, Evaluate name them
//	NewContainer, ExecProcess ⇄ ────▶ processes, by id
//	Return(result by ids | error) ──▶ Returned is closed
type Bridge struct {
	gwpb.UnimplementedLLBBridgeServer
	gw       gateway.Client
	returned chan struct{}

	mu         sync.Mutex // guards all below
	refs       map[string]gateway.Reference
	containers map[string]gateway.Container
	result     *gateway.Result
	err        error
	over       bool // Return was called, or Close
}

// NewBridge makes a bridge to a gateway.
func NewBridge(gw gateway.Client) *Bridge {
	return &Bridge{gw: gw, returned: make(chan struct{}), refs: map[string]gateway.Reference{}, containers: map[string]gateway.Container{}}
}

// Contained are options of a server of bridges, or of anything else in this process: a bug in the answer to a call is an error of that call.
func Contained(log *slog.Logger) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
			defer task.Contain(log, info.FullMethod, &err)
			return handle(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
			defer task.Contain(log, info.FullMethod, &err)
			return handle(srv, stream)
		}),
	}
}

// Returned is closed when the frontend has returned.
func (b *Bridge) Returned() <-chan struct{} { return b.returned }

// Result is what the frontend returned; an error if it did not.
func (b *Bridge) Result() (*gateway.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && b.result == nil {
		return nil, errs.New(errs.Invalid, "the frontend ended without a result")
	}
	return b.result, b.err
}

// Close releases what the frontend left behind.
func (b *Bridge) Close(ctx context.Context) error {
	b.mu.Lock()
	b.over = true
	ctrs := b.containers
	b.containers = map[string]gateway.Container{}
	b.mu.Unlock()
	var all []error
	for _, ctr := range ctrs {
		all = append(all, ctr.Release(ctx))
	}
	return errors.Join(all...)
}

// WireError is an error as the protocol has it: its kind as a code, its details (sources, missing capabilities) beside.
func WireError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	for _, k := range []struct {
		kind error
		code codes.Code
	}{
		{errs.NotFound, codes.NotFound}, {errs.Invalid, codes.InvalidArgument}, {errs.Conflict, codes.AlreadyExists}, {errs.NotImplemented, codes.Unimplemented},
		{errs.Unauthorized, codes.Unauthenticated}, {errs.Forbidden, codes.PermissionDenied}, {errs.Unavailable, codes.Unavailable},
	} {
		if errors.Is(err, k.kind) {
			return grpcerrors.ToGRPC(ctx, grpcerrors.WrapCode(err, k.code))
		}
	}
	return grpcerrors.ToGRPC(ctx, err)
}

// Ping implements the protocol.
func (b *Bridge) Ping(context.Context, *gwpb.PingRequest) (*gwpb.PongResponse, error) {
	pong := &gwpb.PongResponse{FrontendAPICaps: Caps(), LLBCaps: LLBCaps()}
	for _, w := range b.gw.BuildOpts().Workers {
		pong.Workers = append(pong.Workers, workerRecord(w))
	}
	return pong, nil
}

// ResolveImageConfig implements the protocol.
func (b *Bridge) ResolveImageConfig(ctx context.Context, req *gwpb.ResolveImageConfigRequest) (*gwpb.ResolveImageConfigResponse, error) {
	opt := sourceresolver.Opt{LogName: req.LogName, SourcePolicies: req.SourcePolicies}
	platform := platformOf(req.Platform)
	if sourceresolver.ResolverType(req.ResolverType) == sourceresolver.ResolverTypeOCILayout {
		opt.OCILayoutOpt = &sourceresolver.ResolveOCILayoutOpt{
			Platform: platform, Store: sourceresolver.ResolveImageConfigOptStore{SessionID: req.SessionID, StoreID: req.StoreID},
		}
	} else {
		opt.ImageOpt = &sourceresolver.ResolveImageOpt{Platform: platform, ResolveMode: req.ResolveMode}
	}
	ref, dgst, config, err := b.gw.ResolveImageConfig(ctx, req.Ref, opt)
	if err != nil {
		return nil, WireError(ctx, err)
	}
	return &gwpb.ResolveImageConfigResponse{Ref: ref, Digest: string(dgst), Config: config}, nil
}

// ResolveSourceMeta implements the protocol.
func (b *Bridge) ResolveSourceMeta(ctx context.Context, req *gwpb.ResolveSourceMetaRequest) (*gwpb.ResolveSourceMetaResponse, error) {
	if req.Source == nil {
		return nil, status.Error(codes.InvalidArgument, "source is missing")
	}
	res, err := b.gw.ResolveSourceMetadata(ctx, req.Source, metaOptions(req))
	if err != nil {
		return nil, WireError(ctx, err)
	}
	return metaResponse(res), nil
}

// Solve implements the protocol.
func (b *Bridge) Solve(ctx context.Context, req *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	imports := make([]gateway.CacheOptionsEntry, 0, len(req.CacheImports))
	for _, c := range req.CacheImports {
		imports = append(imports, gateway.CacheOptionsEntry{Type: c.GetType(), Attrs: c.GetAttrs()})
	}
	res, err := b.gw.Solve(ctx, gateway.SolveRequest{
		Evaluate: req.Evaluate, Definition: req.Definition, Frontend: req.Frontend, FrontendOpt: req.FrontendOpt, FrontendInputs: req.FrontendInputs,
		CacheImports: imports, SourcePolicies: req.SourcePolicies,
	})
	if err != nil {
		return nil, WireError(ctx, err)
	}
	if len(res.Refs) > 0 && !req.AllowResultReturn {
		return nil, status.Error(codes.InvalidArgument, "the result has several parts, and the frontend takes one only")
	}
	out, err := b.toWire(res, req.AllowResultArrayRef)
	if err != nil {
		return nil, WireError(ctx, err)
	}
	resp := &gwpb.SolveResponse{Result: out}
	if !req.AllowResultReturn { // a frontend from before results were returned as such
		resp.Ref = b.name(res.Ref)
		resp.Result = nil
	}
	if req.Final {
		meta := map[string][]byte{}
		if err := json.Unmarshal(req.ExporterAttr, &meta); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "attributes of the result: %v", err)
		}
		maps.Copy(meta, res.Metadata)
		final := gateway.NewResult()
		final.Ref, final.Metadata = res.Ref, meta
		b.finish(final, nil)
	}
	return resp, nil
}

// name gives a result an id; the empty one is scratch.
func (b *Bridge) name(ref gateway.Reference) string {
	if ref == nil {
		return ""
	}
	id := rand.Text()
	b.mu.Lock()
	b.refs[id] = ref
	b.mu.Unlock()
	return id
}

func (b *Bridge) wireRef(ref gateway.Reference) *gwpb.Ref {
	out := &gwpb.Ref{Id: b.name(ref)}
	if r, ok := ref.(*Ref); ok {
		out.Def = r.Definition()
	}
	return out
}

func (b *Bridge) toWire(res *gateway.Result, arrays bool) (*gwpb.Result, error) {
	out := &gwpb.Result{Metadata: res.Metadata}
	switch {
	case res.Refs != nil && arrays:
		refs := make(map[string]*gwpb.Ref, len(res.Refs))
		for k, ref := range res.Refs {
			refs[k] = b.wireRef(ref)
		}
		out.Result = &gwpb.Result_Refs{Refs: &gwpb.RefMap{Refs: refs}}
	case res.Refs != nil:
		refs := make(map[string]string, len(res.Refs))
		for k, ref := range res.Refs {
			refs[k] = b.name(ref)
		}
		out.Result = &gwpb.Result_RefsDeprecated{RefsDeprecated: &gwpb.RefMapDeprecated{Refs: refs}}
	case arrays:
		out.Result = &gwpb.Result_Ref{Ref: b.wireRef(res.Ref)}
	default:
		out.Result = &gwpb.Result_RefDeprecated{RefDeprecated: b.name(res.Ref)}
	}
	for k, list := range res.Attestations {
		if out.Attestations == nil {
			out.Attestations = map[string]*gwpb.Attestations{}
		}
		all := &gwpb.Attestations{}
		for _, att := range list {
			a, err := gateway.AttestationToPB(&att)
			if err != nil {
				return nil, err
			}
			if att.Ref != nil {
				a.Ref = b.wireRef(att.Ref)
			}
			all.Attestation = append(all.Attestation, a)
		}
		out.Attestations[k] = all
	}
	return out, nil
}

// find gives the result that an id names.
func (b *Bridge) find(id string) (gateway.Reference, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ref, ok := b.refs[id]; ok {
		return ref, nil
	}
	if id == "" {
		return nil, status.Error(codes.NotFound, "the empty tree has no files")
	}
	return nil, status.Errorf(codes.NotFound, "no such result: %s", id)
}

// ReadFile implements the protocol.
func (b *Bridge) ReadFile(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	ref, err := b.find(req.Ref)
	if err != nil {
		return nil, err
	}
	data, err := ref.ReadFile(ctx, readRequest(req))
	return &gwpb.ReadFileResponse{Data: data}, WireError(ctx, err)
}

// ReadDir implements the protocol.
func (b *Bridge) ReadDir(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	ref, err := b.find(req.Ref)
	if err != nil {
		return nil, err
	}
	list, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: req.DirPath, IncludePattern: req.IncludePattern})
	return &gwpb.ReadDirResponse{Entries: list}, WireError(ctx, err)
}

// StatFile implements the protocol.
func (b *Bridge) StatFile(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	ref, err := b.find(req.Ref)
	if err != nil {
		return nil, err
	}
	st, err := ref.StatFile(ctx, gateway.StatRequest{Path: req.Path})
	return &gwpb.StatFileResponse{Stat: st}, WireError(ctx, err)
}

// Evaluate implements the protocol.
func (b *Bridge) Evaluate(ctx context.Context, req *gwpb.EvaluateRequest) (*gwpb.EvaluateResponse, error) {
	ref, err := b.find(req.Ref)
	if err != nil {
		return nil, err
	}
	return &gwpb.EvaluateResponse{}, WireError(ctx, ref.Evaluate(ctx))
}

// Inputs implements the protocol.
func (b *Bridge) Inputs(ctx context.Context, _ *gwpb.InputsRequest) (*gwpb.InputsResponse, error) {
	if c, ok := b.gw.(*client); ok {
		return &gwpb.InputsResponse{Definitions: c.inputs}, nil
	}
	states, err := b.gw.Inputs(ctx)
	if err != nil {
		return nil, WireError(ctx, err)
	}
	defs := make(map[string]*pb.Definition, len(states))
	for name, st := range states {
		def, err := st.Marshal(ctx)
		if err != nil {
			return nil, WireError(ctx, err)
		}
		defs[name] = def.ToPB()
	}
	return &gwpb.InputsResponse{Definitions: defs}, nil
}

// Warn implements the protocol.
func (b *Bridge) Warn(ctx context.Context, req *gwpb.WarnRequest) (*gwpb.WarnResponse, error) {
	err := b.gw.Warn(ctx, digest.Digest(req.Digest), string(req.Short), gateway.WarnOpts{
		Level: int(req.Level), SourceInfo: req.Info, Range: req.Ranges, Detail: req.Detail, URL: req.Url,
	})
	return &gwpb.WarnResponse{}, WireError(ctx, err)
}

// Return implements the protocol.
func (b *Bridge) Return(_ context.Context, req *gwpb.ReturnRequest) (*gwpb.ReturnResponse, error) {
	if req.Error != nil {
		b.finish(nil, grpcerrors.FromGRPC(status.ErrorProto(req.Error)))
		return &gwpb.ReturnResponse{}, nil
	}
	res, err := b.fromWire(req.Result)
	if err != nil {
		return nil, err
	}
	b.finish(res, nil)
	return &gwpb.ReturnResponse{}, nil
}

func (b *Bridge) finish(res *gateway.Result, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result, b.err = res, err
	select {
	case <-b.returned:
	default:
		close(b.returned)
	}
}

func (b *Bridge) fromWire(in *gwpb.Result) (*gateway.Result, error) {
	res := gateway.NewResult()
	res.Metadata = in.GetMetadata()
	one := func(id string) (gateway.Reference, error) {
		if id == "" {
			return nil, nil
		}
		return b.find(id)
	}
	var err error
	switch r := in.GetResult().(type) {
	case *gwpb.Result_RefDeprecated:
		res.Ref, err = one(r.RefDeprecated)
	case *gwpb.Result_Ref:
		res.Ref, err = one(r.Ref.GetId())
	case *gwpb.Result_RefsDeprecated:
		res.Refs = map[string]gateway.Reference{}
		for k, id := range r.RefsDeprecated.GetRefs() {
			if res.Refs[k], err = one(id); err != nil {
				return nil, err
			}
		}
	case *gwpb.Result_Refs:
		res.Refs = map[string]gateway.Reference{}
		for k, ref := range r.Refs.GetRefs() {
			if res.Refs[k], err = one(ref.GetId()); err != nil {
				return nil, err
			}
		}
	}
	if err != nil {
		return nil, err
	}
	for k, list := range in.GetAttestations() {
		for _, a := range list.GetAttestation() {
			att, err := gateway.AttestationFromPB[gateway.Reference](a)
			if err != nil {
				return nil, status.Error(codes.InvalidArgument, err.Error())
			}
			if att.Ref, err = one(a.Ref.GetId()); err != nil {
				return nil, err
			}
			res.AddAttestation(k, *att)
		}
	}
	return res, nil
}
