package containers

import (
	"context"
	"slices"
	"strconv"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/events"
)

// RunningWith names the containers that run with a volume, or are about to.
func (s *Service) RunningWith(volume string) (ids []string) {
	for _, ctr := range s.table.all() {
		rec := ctr.record()
		if st := rec.State.Status; (st.Live() || st == container.Starting) && mounts(rec, volume, false) {
			ids = append(ids, ctr.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// mounts tells whether a container mounts a volume; with write, so that it may write to it.
func mounts(rec *container.Record, volume string, write bool) bool {
	return slices.ContainsFunc(rec.Mounts, func(mnt container.Mount) bool {
		return mnt.Type == "volume" && mnt.Name == volume && (mnt.RW || !write)
	})
}

// HoldWriters freezes the running containers that may write to a volume, until resume is called. One that is paused already, or ends meanwhile, is left alone.
func (s *Service) HoldWriters(ctx context.Context, volume string) (resume func(), err error) {
	ctx = context.WithoutCancel(ctx)
	var held []func()
	resume = func() {
		for _, fn := range held {
			fn()
		}
	}
	for _, ctr := range s.table.all() {
		if !mounts(ctr.record(), volume, true) || ctr.record().State.Status != container.Running {
			continue
		}
		_, proc, err := ctr.handles()
		if err == nil {
			err = s.freeze(ctx, ctr, proc)
		}
		if err != nil {
			if ctr.record().State.Status != container.Running { // it ended, or somebody else paused it
				continue
			}
			resume()
			return nil, err
		}
		held = append(held, func() {
			if err := s.unpause(ctx, ctr, proc); err != nil && ctr.record().State.Status.Live() {
				s.Log.Error("let a container go on whose volume was copied", "container", ctr.record().Name, "volume", volume, "error", err)
			}
		})
	}
	return resume, nil
}

// removeVolume removes a volume for a container that made it, or had it to itself, and publishes that.
func (s *Service) removeVolume(ctx context.Context, name, driver string, force bool) error {
	if err := s.Volumes.Remove(ctx, name, force); err != nil {
		return err
	}
	s.Events.Publish(events.Event{Type: "volume", Action: "destroy", ID: name, Attributes: map[string]string{"driver": driver}})
	return nil
}

// emitMounts publishes that a container that starts has its volumes.
func (s *Service) emitMounts(ctr *live, mounts []container.Mount) {
	for _, mnt := range mounts {
		if mnt.Type == "volume" {
			s.emitVolume(ctr, "mount", mnt)
		}
	}
}

// emitVolume publishes that a container mounted a volume, or gave it back.
func (s *Service) emitVolume(ctr *live, action string, mnt container.Mount) {
	attrs := map[string]string{"container": ctr.id, "driver": mnt.Driver}
	if action == "mount" {
		attrs["destination"], attrs["read/write"], attrs["propagation"] = mnt.Target, strconv.FormatBool(mnt.RW), mnt.Propagation
	}
	s.Events.Publish(events.Event{Type: "volume", Action: action, ID: mnt.Name, Attributes: attrs})
}
