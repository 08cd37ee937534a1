package containers

import (
	"context"
	"maps"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/task"
)

func editAnnotations(rec *container.Record, req EditRequest) error {
	if len(req.Annotations) == 0 {
		return nil
	}
	all := maps.Clone(rec.Host.Annotations)
	if all == nil {
		all = map[string]string{}
	}
	for name, value := range req.Annotations {
		if value == "" {
			delete(all, name)
		} else {
			all[name] = value
		}
	}
	rec.Host.Annotations = all
	_, err := container.ReadAnnotations(all)
	return err
}

// limitNetworks changes where a running container may connect to, and how fast.
func (s *Service) limitNetworks(ctx context.Context, ctr *live, have, want container.Settings, undo *task.Undo) error {
	limits := func(set container.Settings) (network.Limits, error) {
		asked, err := container.ReadAnnotations(set.Host.Annotations)
		return network.Limits{Egress: asked.Egress, Rates: asked.Rates}, err
	}
	had, err := limits(have)
	if err != nil {
		return err
	}
	to, err := limits(want)
	if err != nil || had == to || strings.HasPrefix(have.Host.NetworkMode, "container:") { // whose network it is, says so
		return err
	}
	pid := ctr.record().State.PID
	if err := s.Networks.SetLimits(ctx, ctr.id, pid, to); err != nil {
		return err
	}
	undo.Push(func(ctx context.Context) error { return s.Networks.SetLimits(ctx, ctr.id, pid, had) })
	return nil
}
