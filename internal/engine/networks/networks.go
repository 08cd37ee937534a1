// Package networks is the engine's service for the noun network: the network room, plus who is on a network by container name, plus filters and events.
//
// It owns nothing on disk. It does not know HTTP. It promises that connecting and disconnecting change the container's record and its live network together.
package networks

import (
	"context"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/network"
)

// View is a network with the running containers on it.
type View struct {
	network.Network
	Containers map[string]Member     // by container id
	Usage      []network.SubnetUsage // by Inspect only
	Egress     *network.EgressCount  // what its egress list let through and dropped; nil where it has none. By Inspect only
}

// Member is a container on a network.
type Member struct {
	Name string
	network.Endpoint
}

// EgressCount and Traffic are the room's counts of what egress lists let through and dropped.
type (
	EgressCount = network.EgressCount
	Traffic     = network.Traffic
)

// Change is what Update changes.
type Change struct {
	Options      map[string]string
	Undo, DryRun bool
}

// API is everything that doors may ask of this service: the verbs of the noun.
type API interface {
	Create(ctx context.Context, nw network.Network) (network.Network, error)
	List(ctx context.Context, filters filter.Args) ([]View, error) // id, name, driver, label, scope, type, dangling
	Inspect(ctx context.Context, ref string) (View, error)
	Remove(ctx context.Context, ref string) error
	// Update changes a network's egress list and rates, or, with undo, goes back to those before the last change. An empty option is taken away. It tells in words what differs.
	Update(ctx context.Context, ref string, change Change) ([]string, error)
	Prune(ctx context.Context, filters filter.Args) (deleted []string, err error)
	Connect(ctx context.Context, ref, containerRef string, ep container.EndpointSettings) error
	Disconnect(ctx context.Context, ref, containerRef string, force bool) error
}
