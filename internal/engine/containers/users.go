package containers

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
)

// ImageUsers names the containers that stand on an image.
func (s *Service) ImageUsers(id digest.Digest) (stopped, running []string) {
	for _, ctr := range s.table.all() {
		rec := ctr.record()
		if rec.Image != id && !slices.ContainsFunc(rec.Mounts, func(mnt container.Mount) bool { return mnt.Type == "image" && mnt.Source == string(id) }) {
			continue
		}
		if st := rec.State.Status; st.Live() || st == container.Restarting || st == container.Starting {
			running = append(running, rec.ID)
		} else {
			stopped = append(stopped, rec.ID)
		}
	}
	return stopped, running
}

// VolumeMounts counts the containers that mount each volume.
func (s *Service) VolumeMounts() map[string]int {
	users := map[string]int{}
	for _, ctr := range s.table.all() {
		for _, mnt := range ctr.record().Mounts {
			if mnt.Type == "volume" {
				users[mnt.Name]++
			}
		}
	}
	return users
}

// Record gives the stored record of a container, for services that work with several nouns. Its process id is zero when it does not run.
func (s *Service) Record(ref string) (container.Record, error) {
	ctr, err := s.find(ref)
	if err != nil {
		return container.Record{}, err
	}
	return *ctr.record(), nil
}

// Settled is [Service.Record] once a start that is under way came to its end; errs.Conflict for a container that is about to go.
func (s *Service) Settled(ctx context.Context, ref string) (container.Record, error) {
	ctr, err := s.find(ref)
	if err != nil {
		return container.Record{}, err
	}
	if err := ctr.started(ctx); err != nil {
		return container.Record{}, err
	}
	rec := *ctr.record()
	if rec.State.Status == container.Removing {
		return rec, errs.New(errs.Conflict, "container %s is marked for removal and cannot be connected or disconnected to the network", rec.ID)
	}
	return rec, nil
}

// Names maps the ids of all containers to their names.
func (s *Service) Names() map[string]string {
	all := s.table.all()
	names := make(map[string]string, len(all))
	for _, ctr := range all {
		names[ctr.id] = ctr.record().Name
	}
	return names
}
