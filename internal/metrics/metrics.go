// Package metrics is the door for those who count: what the engine, its containers, networks and volumes use, as OpenMetrics or Prometheus text at /metrics.
//
// It owns the text and the names of the figures, and keeps nothing. Names are cadvisor's where it has the figure (container_…), dockerd's for the engine (engine_daemon_…), and begin
// with corten_ where neither has it. It promises that an answer reads each container once, through the reader that also serves `stats`, and never waits for one.
package metrics

import (
	"context"
	"log/slog"
	"net/http"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/engine/networks"
	"corten.dev/corten/internal/engine/system"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/volume"
)

// Containers knows all containers and what those that run use.
type Containers interface {
	List(ctx context.Context, opts containers.ListOptions) ([]containers.View, error)
	Readings(ctx context.Context) []*containers.Stats
}

// Networks lists networks with who is on them.
type Networks interface {
	List(ctx context.Context, filters filter.Args) ([]networks.View, error)
	// EgressCounts tells what the egress lists of containers and networks, by id, let through and dropped.
	EgressCounts(ctx context.Context) (ctrs, nets map[string]networks.EgressCount, err error)
}

// Volumes lists volumes and how many containers use each.
type Volumes interface {
	Known(ctx context.Context) ([]volume.Volume, error)
	Users(name string) int
}

// System tells about the engine, and what volumes hold as they were counted last.
type System interface {
	Info(ctx context.Context) (system.Info, error)
	VolumeSizes(ctx context.Context, names []string) []int64
}

// Options join the door with the services; all are needed.
type Options struct {
	Containers Containers
	Networks   Networks
	Volumes    Volumes
	System     System
	Events     func() uint64 // so many happened
	Version    string
	Commit     string
	Logger     *slog.Logger
}

// Handler answers GET /metrics. With ?sizes=1 it tells what volumes hold, which has them counted now and then.
func Handler(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		format := Negotiate(r.Header.Get("Accept"))
		text, err := o.page(r.Context(), format, r.URL.Query().Get("sizes") == "1")
		if err != nil {
			o.Logger.Error("metrics", "error", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", format.ContentType())
		w.Header().Set("Vary", "Accept")
		_, _ = w.Write(text) // a client that is gone needs none
	})
	return mux
}

// page writes everything.
func (o *Options) page(ctx context.Context, format Format, sizes bool) ([]byte, error) {
	p := &page{format: format, b: make([]byte, 0, 64<<10)}
	if err := o.engine(ctx, p); err != nil {
		return nil, err
	}
	views, err := o.Containers.List(ctx, containers.ListOptions{All: true, Brief: true})
	if err != nil {
		return nil, err
	}
	states(p, views)
	usage(p, views, o.Containers.Readings(ctx))
	if err := o.egress(ctx, p, views); err != nil {
		return nil, err
	}
	if err := o.networks(ctx, p); err != nil {
		return nil, err
	}
	if err := o.volumes(ctx, p, sizes); err != nil {
		return nil, err
	}
	return p.end(), nil
}
