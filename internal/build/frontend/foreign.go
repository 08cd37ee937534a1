package frontend

import (
	"context"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/errs"
)

// foreign runs a frontend that comes as an image.
func (g *Gateway) foreign(ctx context.Context, source string, attrs map[string]string, inputs map[string]*pb.Definition) (*gateway.Result, error) {
	return nil, errs.New(errs.NotImplemented, "frontend image %s: only the built-in docker/dockerfile runs here", source)
}
