package buildkitapi

import (
	"context"
	"errors"
	"strconv"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session/grpchijack"
	"google.golang.org/grpc"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// service is the control API (BuildKit, api/services/control/control.proto).
type service struct {
	control.UnimplementedControlServer
	*Door
}

// refWait is how long a client may ask for the status of a build that it is just asking for.
const refWait = 5 * time.Second

// Solve implements the control API.
func (s service) Solve(ctx context.Context, req *control.SolveRequest) (*control.SolveResponse, error) {
	asked, err := s.request(ctx, req)
	if err != nil {
		return nil, frontend.WireError(ctx, err)
	}
	if asked.Frontend == "" && len(asked.Definition.GetDef()) == 0 {
		bridge, release, err := s.driven.begin(req.Ref)
		if err != nil {
			return nil, frontend.WireError(ctx, err)
		}
		defer release()
		asked.Gateway = func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) { return bridge.serve(ctx, gw) }
	}
	resp, err := s.Builds.Build(ctx, asked)
	if err != nil {
		return nil, frontend.WireError(ctx, err)
	}
	return &control.SolveResponse{ExporterResponse: resp.Exporter}, nil
}

// request translates; fields that older clients send are lifted to today's.
func (s service) request(ctx context.Context, req *control.SolveRequest) (builds.Request, error) {
	if req.ProxyNetwork {
		return builds.Request{}, errs.New(errs.NotImplemented, "a proxy for the network of steps is not supported")
	}
	if req.EnableSessionExporter {
		return builds.Request{}, errs.New(errs.NotImplemented, "exporters that the session chooses are not supported: name them in the request")
	}
	out := builds.Request{
		Ref: req.Ref, Frontend: req.Frontend, FrontendAttrs: req.FrontendAttrs, FrontendInputs: req.FrontendInputs, Definition: req.Definition,
		Entitlements: req.Entitlements, SourcePolicy: req.SourcePolicy, Sessions: s.BuildSession, Internal: req.Internal,
	}
	if req.Session != "" {
		sess, err := s.BuildSession(ctx, req.Session)
		if err != nil {
			return out, err
		}
		out.Session = sess
	}
	exporters := req.Exporters
	if len(exporters) == 0 && req.ExporterDeprecated != "" {
		exporters = []*control.Exporter{{Type: req.ExporterDeprecated, Attrs: req.ExporterAttrsDeprecated}}
	}
	for i, e := range exporters {
		out.Exports = append(out.Exports, builds.Export{Type: e.GetType(), Attrs: e.GetAttrs(), ID: strconv.Itoa(i)})
	}
	cache := req.Cache
	for _, ref := range cache.GetImportRefsDeprecated() {
		out.CacheImports = append(out.CacheImports, builds.CacheOption{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	for _, c := range cache.GetImports() {
		out.CacheImports = append(out.CacheImports, builds.CacheOption{Type: c.GetType(), Attrs: c.GetAttrs()})
	}
	if ref := cache.GetExportRefDeprecated(); ref != "" {
		attrs := map[string]string{"ref": ref}
		for k, v := range cache.GetExportAttrsDeprecated() {
			attrs[k] = v
		}
		out.CacheExports = append(out.CacheExports, builds.CacheOption{Type: "registry", Attrs: attrs})
	}
	for _, c := range cache.GetExports() {
		out.CacheExports = append(out.CacheExports, builds.CacheOption{Type: c.GetType(), Attrs: c.GetAttrs()})
	}
	return out, nil
}

// Status implements the control API: all that happened in a build and what goes on happening, until it ends.
func (s service) Status(req *control.StatusRequest, stream grpc.ServerStreamingServer[control.StatusResponse]) error {
	ctx := stream.Context()
	deadline := time.Now().Add(refWait)
	for {
		err := s.Builds.Status(ctx, req.Ref, func(st build.Status) error { return eachMessage(st, stream.Send) })
		if !errors.Is(err, errs.NotFound) || time.Now().After(deadline) {
			return frontend.WireError(ctx, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Session implements the control API: a session inside of this connection.
func (s service) Session(stream grpc.BidiStreamingServer[control.BytesMessage, control.BytesMessage]) error {
	conn, closed, opts := grpchijack.Hijack(stream)
	defer conn.Close()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		<-closed
		cancel()
	}()
	return s.sessions.HandleConn(ctx, conn, opts)
}

// ListWorkers implements the control API. The label of a snapshotter is how buildx knows that images of several platforms, archives and caches can be made here.
func (s service) ListWorkers(context.Context, *control.ListWorkersRequest) (*control.ListWorkersResponse, error) {
	return &control.ListWorkersResponse{Record: []*apitypes.WorkerRecord{{
		ID:              "corten",
		Labels:          map[string]string{"org.mobyproject.buildkit.worker.executor": "corten", "org.mobyproject.buildkit.worker.snapshotter": "overlayfs"},
		Platforms:       wirePlatforms(s.Builds.PlatformNames()),
		BuildkitVersion: s.version(),
	}}}, nil
}

// Info implements the control API.
func (s service) Info(context.Context, *control.InfoRequest) (*control.InfoResponse, error) {
	return &control.InfoResponse{BuildkitVersion: s.version()}, nil
}

func (s service) version() *apitypes.BuildkitVersion {
	return &apitypes.BuildkitVersion{Package: "corten.dev/corten", Version: frontend.Version, Revision: "corten-" + s.Version}
}

// DiskUsage implements the control API.
func (s service) DiskUsage(ctx context.Context, req *control.DiskUsageRequest) (*control.DiskUsageResponse, error) {
	args, err := wireFilters(req.Filter)
	if err != nil {
		return nil, frontend.WireError(ctx, err)
	}
	records, err := s.Builds.DiskUsage(ctx, args)
	if err != nil {
		return nil, frontend.WireError(ctx, err)
	}
	resp := &control.DiskUsageResponse{}
	for _, rec := range records {
		if age := time.Duration(req.AgeLimit); age > 0 && time.Since(lastUse(rec)) < age {
			continue
		}
		resp.Record = append(resp.Record, wireRecord(rec))
	}
	return resp, nil
}

// Prune implements the control API.
func (s service) Prune(req *control.PruneRequest, stream grpc.ServerStreamingServer[control.UsageRecord]) error {
	ctx := stream.Context()
	args, err := wireFilters(req.Filter)
	if err != nil {
		return frontend.WireError(ctx, err)
	}
	var failed error
	_, err = s.Builds.Prune(ctx, builds.PruneOptions{
		All: req.All, Filters: args, KeepDuration: time.Duration(req.KeepDuration), Reserved: req.ReservedSpace, MaxUsed: req.MaxUsedSpace, MinFree: req.MinFreeSpace,
	}, func(rec builds.UsageRecord) {
		if failed == nil {
			failed = stream.Send(wireRecord(rec))
		}
	})
	return frontend.WireError(ctx, errors.Join(err, failed))
}

// ListenBuildHistory implements the control API.
func (s service) ListenBuildHistory(req *control.BuildHistoryRequest, stream grpc.ServerStreamingServer[control.BuildHistoryEvent]) error {
	if len(req.Filter) > 0 {
		return frontend.WireError(stream.Context(), errs.New(errs.NotImplemented, "filters of build history are not supported"))
	}
	var sent int32
	done := errors.New("as many as were wanted")
	err := s.Builds.History(stream.Context(), !req.EarlyExit, func(b builds.Build) error {
		if req.Ref != "" && b.Ref != req.Ref || req.ActiveOnly && !b.Completed.IsZero() {
			return nil
		}
		event := historyEvent(b)
		if req.EarlyExit { // who asks once asks for what there is to be read
			if err := s.nameLogs(stream.Context(), b, event.Record); err != nil {
				return err
			}
		}
		if err := stream.Send(event); err != nil {
			return err
		}
		if sent++; req.EarlyExit && req.Limit > 0 && sent >= req.Limit {
			return done
		}
		return nil
	})
	if errors.Is(err, done) {
		return nil
	}
	return frontend.WireError(stream.Context(), err)
}

// UpdateBuildHistory implements the control API as far as there is something to change: finalizing a record is no work here, as traces are not kept.
func (s service) UpdateBuildHistory(ctx context.Context, req *control.UpdateBuildHistoryRequest) (*control.UpdateBuildHistoryResponse, error) {
	if req.Pinned {
		return nil, frontend.WireError(ctx, errs.New(errs.NotImplemented, "records of build history cannot be pinned: the last ones are kept"))
	}
	if req.Delete {
		if err := s.Builds.Forget(ctx, req.Ref); err != nil {
			return nil, frontend.WireError(ctx, err)
		}
	}
	return &control.UpdateBuildHistoryResponse{}, nil
}
