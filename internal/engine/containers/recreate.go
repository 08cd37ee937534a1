package containers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// recreate gives a container other settings by starting its process again. The record tells at every moment what the next engine has to do:
//
//	as it is ─▶ Next=new (durable) ─▶ stop ─▶ new settings, Previous=old, Trial (durable) ─▶ start [─▶ prove] ─▶ no Trial (durable)
//	                │ engine dies                             │ fails, or engine dies and it does not run
//	                ▼                                         ▼
//	           as it is, started                         as it was (durable), started
//
// prove is nil where a process that was started is proof enough. One that does not run is not started.
func (s *Service) recreate(ctx context.Context, ctr *live, want container.Settings, prove func(ctx context.Context) error) (err error) {
	rec := ctr.record()
	runs := rec.State.Status.Live() || rec.State.Status == container.Restarting
	have, before := rec.Settings(), rec.Previous
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	if want, err = s.claimNew(ctx, ctr, want, &undo); err != nil {
		return err
	}
	undo.Push(func(context.Context) error {
		ctr.change(func(rec *container.Record) { rec.Set(have); rec.Previous, rec.Next, rec.Trial = before, nil, false })
		return s.save(ctr, true)
	})
	if runs {
		ctr.change(func(rec *container.Record) { rec.Next = &want })
		if err := s.save(ctr, true); err != nil {
			return err
		}
		if err := s.stopInPlace(ctx, ctr, StopOptions{}, false); err != nil {
			return s.goBack(ctx, ctr, &undo, err)
		}
	}
	if err := s.relogStopped(ctx, ctr, have, want); err != nil {
		if runs {
			return s.goBack(ctx, ctr, &undo, err)
		}
		return err
	}
	ctr.change(func(rec *container.Record) { rec.Set(want); rec.Previous, rec.Next, rec.Trial = &have, nil, runs })
	if err = s.save(ctr, true); err == nil && runs {
		err = ignore(s.startFound(ctx, ctr), errs.NotModified)
	}
	if err == nil && runs && prove != nil {
		err = prove(ctx)
	}
	switch {
	case err != nil && runs && s.ctx.Err() != nil: // the engine is ending: the next one sees it through
		undo = task.Undo{}
		return err
	case err != nil && runs:
		return s.goBack(ctx, ctr, &undo, err)
	}
	if err != nil {
		return err
	}
	if runs {
		if err := s.endTrial(ctx, ctr); err != nil {
			s.Log.Error("keep that new settings have proved themselves", "container", rec.Name, "error", err)
		}
	}
	s.settleTrial(ctx, ctr, have, before)
	return nil
}

// goesByItself tells whether a container is removed once it has ended (--rm): not while its settings are changed, or it would be gone with what they could go back to.
func goesByItself(rec *container.Record) bool {
	return rec.Host.AutoRemove && rec.Next == nil && !rec.Trial
}

// endTrial keeps that new settings stay. A container that goes by itself, and has ended meanwhile, goes now.
func (s *Service) endTrial(ctx context.Context, ctr *live) error {
	rec := ctr.change(func(rec *container.Record) { rec.Trial = false })
	if err := s.save(ctr, true); err != nil {
		return err
	}
	if goesByItself(rec) && rec.State.Status == container.Exited {
		return s.removeFound(ctx, ctr, RemoveOptions{Volumes: true})
	}
	return nil
}

// goBack is the way back when new settings failed: cause is told, with what became of the container.
func (s *Service) goBack(ctx context.Context, ctr *live, undo *task.Undo, cause error) error {
	if ctr.record().State.Status.Live() {
		if err := s.stopInPlace(ctx, ctr, StopOptions{}, false); err != nil {
			s.Log.Error("stop a container whose new settings failed", "container", ctr.record().Name, "error", err)
		}
	}
	if err := undo.Run(ctx); err != nil {
		return fmt.Errorf("%w; and what was before could not be put back: %w", cause, err)
	}
	if err := s.startFound(ctx, ctr); err != nil && !errors.Is(err, errs.NotModified) {
		return fmt.Errorf("%w; what was before was put back, but does not start either: %w", cause, err)
	}
	return fmt.Errorf("%w; what was before runs again", cause)
}

// claimNew acquires the volumes and images that the container did not have.
func (s *Service) claimNew(ctx context.Context, ctr *live, want container.Settings, undo *task.Undo) (container.Settings, error) {
	rec := ctr.record()
	had := slices.Clone(rec.Mounts)
	if rec.Previous != nil { // the tree of an image that it had is there yet
		had = append(had, slices.DeleteFunc(slices.Clone(rec.Previous.Mounts), func(mnt container.Mount) bool { return mnt.Type != "image" })...)
	}
	mounts := slices.Clone(want.Mounts)
	for i := range mounts {
		mnt := &mounts[i]
		known := slices.ContainsFunc(had, func(old container.Mount) bool {
			return old.Type == mnt.Type && old.Name == mnt.Name && mnt.Name != "" && (mnt.Type == "volume" || old.Target == mnt.Target && old.Source == mnt.Source)
		})
		if known {
			continue
		}
		if err := s.claimMount(ctx, rec, mnt, undo); err != nil {
			return want, err
		}
	}
	want.Mounts = mounts
	return want, nil
}

// settleTrial lets go of what only the settings before needed, once the new ones stay: volumes, and the tree of the change before that.
func (s *Service) settleTrial(ctx context.Context, ctr *live, had container.Settings, dropped *container.Settings) {
	now := ctr.record().Mounts
	for _, mnt := range had.Mounts {
		used := slices.ContainsFunc(now, func(n container.Mount) bool { return n.Type == "volume" && n.Name == mnt.Name })
		if mnt.Type != "volume" || used {
			continue
		}
		if err := s.Volumes.Release(ctx, mnt.Name, ctr.id); err != nil {
			s.Log.Warn("release a volume that is not mounted any more", "container", ctr.record().Name, "volume", mnt.Name, "error", err)
		}
	}
	s.dropTrees(ctx, ctr, dropped)
}

// dropTrees removes the trees of settings that cannot be gone back to any more.
func (s *Service) dropTrees(ctx context.Context, ctr *live, dropped *container.Settings) {
	if dropped == nil {
		return
	}
	old := container.Record{ID: ctr.id}
	old.Set(*dropped)
	left := treesOf(ctr.record())
	for _, key := range treesOf(&old) {
		if slices.Contains(left, key) {
			continue
		}
		if err := s.Trees.Remove(ctx, key); err != nil {
			s.Log.Warn("remove a file tree of former settings", "container", ctr.record().Name, "error", err)
		}
	}
}

// finishTrials goes on with changes that an engine did not see through: a container that runs proves itself, any other goes back to what it was.
func (s *Service) finishTrials() {
	for _, ctr := range s.table.all() {
		if rec := ctr.record(); !rec.Trial && rec.Next == nil {
			continue
		}
		done, err := ctr.beginEdit()
		if err != nil {
			continue
		}
		s.background(func(ctx context.Context) {
			defer done()
			if err := s.finishTrial(context.WithoutCancel(ctx), ctr); err != nil {
				s.Log.Error("finish the change of a container", "container", ctr.record().Name, "error", err)
			}
		})
	}
}

func (s *Service) finishTrial(ctx context.Context, ctr *live) error {
	rec := ctr.record()
	if rec.Next != nil { // it was about to be stopped, or was stopped, and nothing else had changed
		ctr.change(func(rec *container.Record) { rec.Next = nil })
		if err := s.save(ctr, true); err != nil || rec.State.Status.Live() {
			return err
		}
		return ignore(s.startFound(ctx, ctr), errs.NotModified)
	}
	cause := errs.New(errs.Unavailable, "it did not run when the engine came back")
	if rec.State.Status.Live() {
		cause = s.proves(ctx, ctr, defaultGrace)
		if s.ctx.Err() != nil {
			return nil // the next engine finishes it
		}
	}
	if cause == nil || rec.Previous == nil {
		return s.endTrial(ctx, ctr)
	}
	had, want := *rec.Previous, rec.Settings()
	var undo task.Undo
	undo.Push(func(ctx context.Context) error {
		ctr.change(func(rec *container.Record) { rec.Set(had); rec.Previous, rec.Trial = nil, false })
		err := s.save(ctr, true)
		s.settleTrial(ctx, ctr, want, &want)
		return err
	})
	return s.goBack(ctx, ctr, &undo, fmt.Errorf("new settings failed: %w", cause))
}

// defaultGrace is how long a container without a health check must run to have proved itself.
const defaultGrace = 10 * time.Second

// proves waits until a container that was just started is healthy; one without a health check must run for the grace.
func (s *Service) proves(ctx context.Context, ctr *live, grace time.Duration) error {
	check, checked := container.CheckOf(ctr.record().Config.Healthcheck)
	limit := grace
	if checked { // the longest that it may take to say either
		limit = grace + check.StartPeriod + time.Duration(check.Retries+1)*(max(check.Interval, check.StartInterval)+check.Timeout)
	}
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	started := ctr.record().State.StartedAt
	for {
		rec := ctr.record()
		switch st := rec.State; {
		case rec.StoppedByUser:
			return nil // somebody decided otherwise meanwhile
		case !st.Status.Live() || !st.StartedAt.Equal(started):
			return errs.New(errs.Unavailable, "it ended with exit code %d", st.ExitCode)
		case checked && st.Health != nil && st.Health.Status == container.Healthy:
			return nil
		case checked && st.Health != nil && st.Health.Status == container.Unhealthy:
			return errs.New(errs.Unavailable, "it is unhealthy: %s", lastProbe(st.Health))
		}
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-tick.C:
		case <-deadline.C:
			if checked {
				return errs.New(errs.Unavailable, "it was not healthy after %v", limit)
			}
			return nil
		}
	}
}

// lastProbe is what the last check said, in one line; a command that fails often says nothing.
func lastProbe(h *container.Health) string {
	if len(h.Log) == 0 {
		return "no answer"
	}
	last := h.Log[len(h.Log)-1]
	if said, _, _ := strings.Cut(strings.TrimSpace(last.Output), "\n"); said != "" {
		return said
	}
	return fmt.Sprintf("its check ended with exit code %d", last.ExitCode)
}
