package builds

import (
	"context"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
)

// GatewayFunc is a frontend: it asks the gateway for results and returns one.
type GatewayFunc func(ctx context.Context, gw gateway.Client) (*gateway.Result, error)
