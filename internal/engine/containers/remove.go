package containers

import (
	"context"
	"fmt"
	"strconv"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
)

// Remove removes a container that does not run, or any with Force.
func (s *Service) Remove(ctx context.Context, ref string, opts RemoveOptions) error {
	if opts.Link {
		return s.unlink(ctx, ref)
	}
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	return s.removeFound(context.WithoutCancel(ctx), ctr, opts)
}

func (s *Service) removeFound(ctx context.Context, ctr *live, opts RemoveOptions) error {
	if err := s.mayRemove(ctx, ctr, opts.Force); err != nil {
		return err
	}
	if err := ctr.claim(container.Removing); err != nil {
		if ctr.record().State.Status == container.Removing {
			return errs.New(errs.Conflict, "removal of container %s is already in progress", ctr.record().Name)
		}
		return fmt.Errorf("cannot remove container %q: %w", "/"+ctr.record().Name, err)
	}
	ctr.waitCleaned()
	s.drainLogs(ctx, ctr)
	rec := ctr.record()
	if err := s.releaseVolumes(ctx, rec, opts.Volumes); err != nil {
		return s.failRemoval(ctr, err)
	}
	if err := s.forget(ctr); err != nil {
		return s.failRemoval(ctr, err)
	}
	s.dropFound(ctr, "")
	err := s.removeTrees(ctx, rec)
	if rerr := s.removeDir(ctr.id); err == nil {
		err = rerr
	}
	if err != nil {
		// It does not exist any more; the rest is tried again when the engine starts.
		s.Log.Warn("remove what a container left", "container", rec.Name, "error", err)
	}
	s.sweepImages()
	return nil
}

// failRemoval leaves a container that cannot be removed now, visibly, so that rm can be tried again.
func (s *Service) failRemoval(ctr *live, cause error) error {
	rec := ctr.change(func(rec *container.Record) {
		rec.State.Status, rec.State.Error = container.Dead, cause.Error()
	})
	ctr.tell(Ended{Code: rec.State.ExitCode, Err: cause.Error()}, NotRunning, Removed) // nobody waits for what may never be
	return fmt.Errorf("remove container %s: %w", rec.Name, cause)
}

func (s *Service) releaseVolumes(ctx context.Context, rec *container.Record, remove bool) error {
	for _, mnt := range rec.Mounts {
		if mnt.Type != "volume" {
			continue
		}
		if err := s.Volumes.Release(ctx, mnt.Name, rec.ID); err != nil {
			return err
		}
		if !remove || !mnt.Anonymous {
			continue
		}
		// Another container may have it by --volumes-from: then it stays.
		if err := ignore(s.removeVolume(ctx, mnt.Name, mnt.Driver, false), errs.NotFound, errs.Conflict); err != nil {
			return err
		}
	}
	return nil
}

// mayRemove brings a container into a state that can be removed, or says why it is not.
func (s *Service) mayRemove(ctx context.Context, ctr *live, force bool) error {
	for {
		rec := ctr.record()
		status := rec.State.Status
		busy := status.Live() || status == container.Restarting || status == container.Starting
		switch {
		case !busy:
			return nil
		case !force && status == container.Paused:
			return errs.New(errs.Conflict, "cannot remove container %q: container is paused and must be unpaused first", "/"+rec.Name)
		case !force:
			shown := string(status)
			if status == container.Starting {
				shown = "running"
			}
			return errs.New(errs.Conflict, "cannot remove container %q: container is %s: stop the container before removing or force remove", "/"+rec.Name, shown)
		case status == container.Starting:
			if err := ctr.started(ctx); err != nil {
				return err
			}
			continue
		}
		zero := 0 // in place: else the end of one with --rm removed it, and there were nothing left to do here
		if err := s.stopInPlace(ctx, ctr, StopOptions{Signal: "KILL", Timeout: &zero}, true); err != nil {
			return fmt.Errorf("could not kill container %s: %w", rec.Name, err)
		}
	}
}

// Prune removes all containers that do not run and match.
func (s *Service) Prune(ctx context.Context, filters filter.Args) (Pruned, error) {
	var pruned Pruned
	if err := filters.Accept("label", "label!", "until"); err != nil {
		return pruned, err
	}
	until, err := Until(filters)
	if err != nil {
		return pruned, err
	}
	for _, ctr := range s.table.all() {
		rec := ctr.record()
		st := rec.State.Status
		if st != container.Exited && st != container.Created && st != container.Dead || !filters.Labels("label", rec.Config.Labels) || anyLabel(filters, rec.Config.Labels) {
			continue
		}
		if !until.IsZero() && rec.Created.After(until) {
			continue
		}
		size, err := s.Trees.Usage(ctx, ctr.record().TreeKey())
		if err != nil {
			s.Log.Warn("size of a container's tree", "container", rec.Name, "error", err)
		}
		if err := s.removeFound(ctx, ctr, RemoveOptions{}); err != nil {
			if ctx.Err() != nil {
				return pruned, ctx.Err()
			}
			s.Log.Warn("prune", "container", rec.Name, "error", err)
			continue
		}
		pruned.Deleted, pruned.Space = append(pruned.Deleted, ctr.id), pruned.Space+size
	}
	s.Events.Publish(events.Event{Type: "container", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(pruned.Space, 10)}})
	return pruned, nil
}

// anyLabel tells whether one of the labels of label!=… is there.
func anyLabel(filters filter.Args, labels map[string]string) bool {
	for _, want := range filters["label!"] {
		if (filter.Args{"label": {want}}).Labels("label", labels) {
			return true
		}
	}
	return false
}
