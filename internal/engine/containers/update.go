package containers

import (
	"context"
	"fmt"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// Update changes limits, live and kept, and the restart policy:
//
//	check what is asked ─▶ lay it over what there is ─▶ the kernel (what runs) ─▶ the record
//
// Only what was asked for is written, so that updates of different limits side by side do not undo each other. A limit that the kernel refuses takes those of the same call back.
func (s *Service) Update(ctx context.Context, ref string, req UpdateRequest) (warnings []string, err error) {
	ctr, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	bad := func(err error) ([]string, error) {
		return nil, fmt.Errorf("Cannot update container %s: %w", ctr.id, err) //lint:ignore ST1005 Docker's words
	}
	if err := ctr.settled(ctx); err != nil {
		return bad(err)
	}
	ctx = context.WithoutCancel(ctx) // from here on it is done as a whole, or taken back
	before := ctr.record()
	asked := container.Resources{}
	if req.Resources != nil {
		asked = *req.Resources
		if warnings, err = checkResources(&asked, s.thisMachine(), true); err != nil {
			return nil, err
		}
	}
	if err := checkRestart(before, req.Restart); err != nil {
		return bad(err)
	}
	merged, err := s.mergeLimits(before.Host.Resources, asked)
	if err != nil {
		return bad(err)
	}
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	if req.Resources != nil {
		if err := updateLive(ctx, ctr, asked, merged, &undo); err != nil {
			return bad(err)
		}
	}
	was := before.Settings()
	ctr.change(func(rec *container.Record) {
		rec.Previous = &was
		rec.Host.Resources = layOver(rec.Host.Resources, asked)
		if req.Restart != nil && req.Restart.Name != "" {
			rec.Host.Restart = *req.Restart
		}
	})
	undo.Push(func(context.Context) error {
		ctr.change(func(rec *container.Record) {
			rec.Host.Resources, rec.Host.Restart, rec.Previous = before.Host.Resources, before.Host.Restart, before.Previous
		})
		return nil
	})
	if err := s.save(ctr, true); err != nil {
		return bad(err)
	}
	s.figures.changed(ctr)
	s.dropTrees(ctx, ctr, before.Previous)
	s.emit(ctr, "update", nil)
	return warnings, nil
}

// settled waits while a start is under way, which has read the limits already; errs.Conflict for what is about to go.
func (ctr *live) settled(ctx context.Context) error {
	if err := ctr.started(ctx); err != nil {
		return err
	}
	switch ctr.record().State.Status {
	case container.Removing, container.Dead:
		return errs.New(errs.Conflict, "Container is marked for removal and cannot be \"update\"")
	}
	return nil
}

func checkRestart(rec *container.Record, policy *container.RestartPolicy) error {
	if policy == nil {
		return nil
	}
	if rec.Host.AutoRemove && policy.Name != "" && policy.Name != "no" {
		return errs.New(errs.Invalid, "Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	return validateRestart(*policy, false)
}

// mergeLimits is what a container would have, checked as a whole.
func (s *Service) mergeLimits(have, asked container.Resources) (container.Resources, error) {
	if err := conflicts(have, asked); err != nil {
		return have, err
	}
	merged := layOver(have, asked)
	_, err := checkResources(&merged, s.thisMachine(), false)
	return merged, err
}

// updateLive sets the limits of a container that runs.
func updateLive(ctx context.Context, ctr *live, asked, merged container.Resources, undo *task.Undo) error {
	_, proc, err := ctr.handles()
	if err != nil {
		return nil //nolint:nilerr // it does not run: the next start sets them
	}
	if asked.Memory != 0 || asked.MemorySwap != 0 { // one is counted from the other
		asked.Memory, asked.MemorySwap = merged.Memory, merged.MemorySwap
	}
	res, err := hostspec.Resources(&asked)
	if err != nil {
		return err
	}
	back, err := hostspec.Resources(&ctr.record().Host.Resources)
	if err != nil {
		return err
	}
	hostspec.Lift(back, res)
	undo.Push(func(ctx context.Context) error { return proc.Update(ctx, back) })
	return proc.Update(ctx, res)
}

// conflicts refuses what cannot stand beside what a container has.
func conflicts(old, upd container.Resources) error {
	for _, c := range []struct {
		asked, set bool
		what, by   string
	}{
		{upd.NanoCPUs > 0, old.CPUPeriod > 0, "Nano CPUs", "CPU Period"},
		{upd.NanoCPUs > 0, old.CPUQuota > 0, "Nano CPUs", "CPU Quota"},
		{upd.CPUQuota > 0, old.NanoCPUs > 0, "CPU Quota", "NanoCPUs"},
		{upd.CPUPeriod > 0, old.NanoCPUs > 0, "CPU Period", "NanoCPUs"},
	} {
		if c.asked && c.set {
			return errs.New(errs.Invalid, "Conflicting options: %s cannot be updated as %s has already been set", c.what, c.by)
		}
	}
	if upd.Memory > 0 && upd.MemorySwap == 0 && old.MemorySwap > 0 && upd.Memory > old.MemorySwap {
		return errs.New(errs.Invalid, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	return nil
}

// layOver lays the values that were given over those that are.
func layOver(old, upd container.Resources) container.Resources {
	if upd.Memory > 0 && upd.MemorySwap == 0 && old.Memory == 0 && old.MemorySwap == 0 { // the first limit, as at create
		upd.MemorySwap = 2 * upd.Memory
	}
	if upd.PidsLimit != nil && *upd.PidsLimit < 0 {
		upd.PidsLimit = new(int64) // shown as 0, which means none as well
	}
	for _, n := range []struct{ old, upd *int64 }{
		{&old.CPUShares, &upd.CPUShares}, {&old.NanoCPUs, &upd.NanoCPUs}, {&old.CPUPeriod, &upd.CPUPeriod}, {&old.CPUQuota, &upd.CPUQuota},
		{&old.CPURealtimePeriod, &upd.CPURealtimePeriod}, {&old.CPURealtimeRuntime, &upd.CPURealtimeRuntime},
		{&old.Memory, &upd.Memory}, {&old.MemorySwap, &upd.MemorySwap}, {&old.KernelMemory, &upd.KernelMemory}, {&old.MemoryReservation, &upd.MemoryReservation},
	} {
		lay(n.old, *n.upd)
	}
	lay(&old.BlkioWeight, upd.BlkioWeight)
	lay(&old.CpusetCpus, upd.CpusetCpus)
	lay(&old.CpusetMems, upd.CpusetMems)
	lay(&old.PidsLimit, upd.PidsLimit)
	lay(&old.MemorySwappiness, upd.MemorySwappiness)
	lay(&old.OomKillDisable, upd.OomKillDisable)
	if len(upd.BlkioWeightDevice) > 0 {
		old.BlkioWeightDevice = upd.BlkioWeightDevice
	}
	for _, l := range []struct{ old, upd *[]container.ThrottleDevice }{
		{&old.BlkioDeviceReadBps, &upd.BlkioDeviceReadBps}, {&old.BlkioDeviceWriteBps, &upd.BlkioDeviceWriteBps},
		{&old.BlkioDeviceReadIOps, &upd.BlkioDeviceReadIOps}, {&old.BlkioDeviceWriteIOps, &upd.BlkioDeviceWriteIOps},
	} {
		if len(*l.upd) > 0 {
			*l.old = *l.upd
		}
	}
	return old
}

// lay replaces a value if another was given.
func lay[T comparable](old *T, upd T) {
	var zero T
	if upd != zero {
		*old = upd
	}
}
