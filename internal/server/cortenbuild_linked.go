package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// maxLinks bounds how deep builds may stand on each other: a plan of bake has a few.
const maxLinks = 32

// linked is the frontend of a build that uses results of others as contexts: those are solved first, and their graphs are inputs of the last. Nothing of them is run unless it is used.
func linked(asked *buildwire.Request) builds.GatewayFunc {
	return func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		return solveLinked(ctx, gw, asked, 0)
	}
}

func solveLinked(ctx context.Context, gw gateway.Client, asked *buildwire.Request, depth int) (*gateway.Result, error) {
	if depth > maxLinks {
		return nil, errs.New(errs.Invalid, "builds stand on each other more than %d deep", maxLinks)
	}
	req := gateway.SolveRequest{Frontend: asked.Frontend, FrontendOpt: map[string]string{}, FrontendInputs: map[string]*pb.Definition{}}
	maps.Copy(req.FrontendOpt, asked.Attrs)
	for _, name := range slices.Sorted(maps.Keys(asked.Links)) {
		link := asked.Links[name]
		if link == nil || link.Frontend == "" {
			return nil, errs.New(errs.Invalid, "context %s: the build names no frontend", name)
		}
		res, err := solveLinked(ctx, gw, link, depth+1)
		if err != nil {
			return nil, err
		}
		if err := addInput(ctx, &req, name, res); err != nil {
			return nil, fmt.Errorf("context %s: %w", name, err)
		}
	}
	return gw.Solve(ctx, req)
}

// addInput makes a result an input of the request, for each of its platforms, as the Dockerfile frontend looks for them.
func addInput(ctx context.Context, req *gateway.SolveRequest, name string, res *gateway.Result) error {
	one := func(key string, ref gateway.Reference, config []byte) error {
		st := llb.Scratch()
		if ref != nil {
			var err error
			if st, err = ref.ToState(); err != nil {
				return err
			}
		}
		def, err := st.Marshal(ctx)
		if err != nil {
			return err
		}
		req.FrontendInputs[key] = def.ToPB()
		req.FrontendOpt["context:"+key] = "input:" + key
		if len(config) == 0 {
			return nil
		}
		md, err := json.Marshal(map[string][]byte{exptypes.ExporterImageConfigKey: config})
		if err != nil {
			return err
		}
		req.FrontendOpt["input-metadata:"+key] = string(md)
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(res.Refs)) {
		if err := one(name+"::"+id, res.Refs[id], res.Metadata[exptypes.ExporterImageConfigKey+"/"+id]); err != nil {
			return err
		}
	}
	if len(res.Refs) > 0 {
		return nil
	}
	return one(name, res.Ref, res.Metadata[exptypes.ExporterImageConfigKey])
}
