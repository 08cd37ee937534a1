package buildkitapi

import (
	"context"
	"sync"
	"time"

	"github.com/moby/buildkit/client/buildid"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"

	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/errs"
)

// driven are the builds that clients drive by the gateway's protocol, by the id of their build.
type driven struct {
	mu  sync.Mutex
	all map[string]*drivenBuild
}

// drivenBuild is one of them; its bridge is there when ready is closed.
type drivenBuild struct {
	ready  chan struct{}
	bridge *frontend.Bridge
}

func (d *driven) begin(ref string) (*drivenBuild, func(), error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ref == "" {
		return nil, nil, errs.New(errs.Invalid, "a build without a frontend needs an id")
	}
	if d.all[ref] != nil {
		return nil, nil, errs.New(errs.Conflict, "build %s exists", ref)
	}
	if d.all == nil {
		d.all = map[string]*drivenBuild{}
	}
	b := &drivenBuild{ready: make(chan struct{})}
	d.all[ref] = b
	return b, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.all, ref)
	}, nil
}

// serve answers the client until it returns a result, or the build ends.
func (b *drivenBuild) serve(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
	bridge := frontend.NewBridge(gw)
	b.bridge = bridge
	close(b.ready)
	defer func() { _ = bridge.Close(context.WithoutCancel(ctx)) }() // what it left behind ends with the build in any case
	select {
	case <-bridge.Returned():
		return bridge.Result()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// of finds the bridge of a call. A client calls as soon as it has asked for the build.
func (d *driven) of(ctx context.Context) (*frontend.Bridge, error) {
	id := buildid.FromIncomingContext(ctx)
	deadline := time.NewTimer(refWait)
	defer deadline.Stop()
	for {
		d.mu.Lock()
		b := d.all[id]
		d.mu.Unlock()
		var ready <-chan struct{}
		again := time.After(2 * time.Millisecond)
		if b != nil {
			ready, again = b.ready, nil
		}
		select {
		case <-ready:
			return b.bridge, nil
		case <-again:
		case <-deadline.C:
			return nil, frontend.WireError(ctx, errs.New(errs.NotFound, "no such build %q", id))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// bridges is LLBBridge for all driven builds: each call goes to the bridge of its build.
type bridges struct {
	gwpb.UnimplementedLLBBridgeServer
	*Door
}

func ask[Q, A any](ctx context.Context, b bridges, q Q, method func(*frontend.Bridge, context.Context, Q) (A, error)) (A, error) {
	bridge, err := b.driven.of(ctx)
	if err != nil {
		var none A
		return none, err
	}
	return method(bridge, ctx, q)
}

// The calls of LLBBridge (BuildKit, frontend/gateway/pb/gateway.proto).

// ResolveImageConfig passes the call on.
func (b bridges) ResolveImageConfig(ctx context.Context, q *gwpb.ResolveImageConfigRequest) (*gwpb.ResolveImageConfigResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).ResolveImageConfig)
}

// ResolveSourceMeta passes the call on.
func (b bridges) ResolveSourceMeta(ctx context.Context, q *gwpb.ResolveSourceMetaRequest) (*gwpb.ResolveSourceMetaResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).ResolveSourceMeta)
}

// Solve passes the call on.
func (b bridges) Solve(ctx context.Context, q *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).Solve)
}

// ReadFile passes the call on.
func (b bridges) ReadFile(ctx context.Context, q *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).ReadFile)
}

// ReadDir passes the call on.
func (b bridges) ReadDir(ctx context.Context, q *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).ReadDir)
}

// StatFile passes the call on.
func (b bridges) StatFile(ctx context.Context, q *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).StatFile)
}

// Evaluate passes the call on.
func (b bridges) Evaluate(ctx context.Context, q *gwpb.EvaluateRequest) (*gwpb.EvaluateResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).Evaluate)
}

// Ping passes the call on.
func (b bridges) Ping(ctx context.Context, q *gwpb.PingRequest) (*gwpb.PongResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).Ping)
}

// Return passes the call on.
func (b bridges) Return(ctx context.Context, q *gwpb.ReturnRequest) (*gwpb.ReturnResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).Return)
}

// Inputs passes the call on.
func (b bridges) Inputs(ctx context.Context, q *gwpb.InputsRequest) (*gwpb.InputsResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).Inputs)
}

// NewContainer passes the call on.
func (b bridges) NewContainer(ctx context.Context, q *gwpb.NewContainerRequest) (*gwpb.NewContainerResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).NewContainer)
}

// ReleaseContainer passes the call on.
func (b bridges) ReleaseContainer(ctx context.Context, q *gwpb.ReleaseContainerRequest) (*gwpb.ReleaseContainerResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).ReleaseContainer)
}

// ReadFileContainer passes the call on.
func (b bridges) ReadFileContainer(ctx context.Context, q *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).ReadFileContainer)
}

// ReadDirContainer passes the call on.
func (b bridges) ReadDirContainer(ctx context.Context, q *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).ReadDirContainer)
}

// StatFileContainer passes the call on.
func (b bridges) StatFileContainer(ctx context.Context, q *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).StatFileContainer)
}

// Warn passes the call on.
func (b bridges) Warn(ctx context.Context, q *gwpb.WarnRequest) (*gwpb.WarnResponse, error) {
	return ask(ctx, b, q, (*frontend.Bridge).Warn)
}

// ExecProcess passes the stream on.
func (b bridges) ExecProcess(stream grpc.BidiStreamingServer[gwpb.ExecMessage, gwpb.ExecMessage]) error {
	bridge, err := b.driven.of(stream.Context())
	if err != nil {
		return err
	}
	return bridge.ExecProcess(stream)
}
