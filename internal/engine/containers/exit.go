package containers

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"syscall"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/task"
)

// watch has the end of a run acted upon, unless the service closes before.
func (s *Service) watch(ctr *live, mon monitor.Monitor) {
	monitor.WhenExited(mon, func() {
		if s.begin() {
			defer s.work.Done()
			defer task.Contain(s.Log, "end of container "+ctr.id, nil)
			s.ended(s.ctx, ctr, mon)
		}
	})
}

// ended is the exit path:
//
//	state exited (or restarting) ─▶ event die ─▶ those who wait for an exit ─▶ network, volumes given back ─▶ [--rm: record and name gone ─▶ those who wait for that]
//	                                                                             └─▶ in the background: cgroups, monitor, tree
func (s *Service) ended(ctx context.Context, ctr *live, mon monitor.Monitor) {
	ctx = context.WithoutCancel(ctx)
	exit := mon.Exit()
	ctr.mu.Lock()
	if ctr.mon != mon { // already dealt with
		ctr.mu.Unlock()
		return
	}
	proc, mounts := ctr.proc, ctr.mounts
	rec := ctr.record()
	sandbox := rec.Sandbox
	again := s.restarts(ctr, rec, exit)
	text := ""
	if exit.Lost {
		text = "the container's monitor process was killed: its exit code is not known"
	}
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	ctr.mon, ctr.proc, ctr.mounts = nil, nil, nil
	told := ctr.oomTold
	s.figures.ended(ctr)
	ctr.oomTold, ctr.sick = false, false
	cleaned := make(chan struct{})
	ctr.cleaned = cleaned
	remove := goesByItself(rec) && ctr.keep == 0
	rec = ctr.changeLocked(func(rec *container.Record) {
		st := &rec.State
		st.Status, st.PID, st.ExitCode, st.OOMKilled, st.FinishedAt, st.Error = container.Exited, 0, exit.Code, exit.OOMKilled, exit.At.UTC(), text
		st.Health = st.Health.Over()
		switch {
		case again:
			st.Status = container.Restarting
		case remove:
			st.Status = container.Removing // nobody else may begin to remove it
		}
		rec.Sandbox = nil
	})
	ctr.mu.Unlock()

	if exit.OOMKilled && !told {
		s.emit(ctr, "oom", nil)
	}
	s.emit(ctr, "die", map[string]string{"exitCode": strconv.Itoa(exit.Code), "execDuration": strconv.Itoa(int(exit.At.Sub(rec.State.StartedAt).Seconds()))})
	end := Ended{Code: exit.Code, Err: text}
	if exit.Lost && proc != nil {
		if err := proc.Signal(ctx, syscall.SIGKILL, true); err != nil {
			s.Log.Warn("kill what a lost monitor left behind", "container", rec.Name, "error", err)
		}
	}
	clear := sync.OnceFunc(func() { s.clear(ctx, rec, mon, proc) })
	putOff := !remove && s.keepEnd(ctr, again, clear)
	ctr.tell(end, NotRunning, NextExit)
	s.giveBack(ctx, ctr)
	s.emitNetworks(ctx, rec, "disconnect", sandbox)
	s.dropSessions(ctr)
	if remove {
		s.drainLogs(ctx, ctr)
		if err := s.vanish(ctx, ctr); err != nil {
			s.Log.Error("remove a container after its end", "container", rec.Name, "error", err)
		}
	}
	s.background(func(context.Context) {
		defer close(cleaned)
		mounts.Close() // nil, too
		if !putOff {
			clear()
		}
		if remove {
			s.clearFolder(ctr)
		}
	})
	if again {
		s.restartLater(ctr)
	}
}

// keepEnd stores how a container ended. It tells whether that found no room, and clear is put off until it does; a restart does not wait for that.
func (s *Service) keepEnd(ctr *live, again bool, clear func()) (putOff bool) {
	err := s.save(ctr, false)
	if err == nil {
		return false
	}
	s.Log.Error("keep the end of a container", "container", ctr.record().Name, "error", err)
	if putOff = !again && noRoom(err); putOff {
		ctr.putOff(clear)
	}
	s.owe(ctr, err)
	return putOff
}

// OOM is told by a monitor when the kernel killed for memory in a container, also when the first process survived.
func (s *Service) OOM(id string) {
	ctr, err := s.table.find(id)
	if err != nil {
		return // removed meanwhile
	}
	ctr.mu.Lock()
	ctr.oomTold = true
	ctr.mu.Unlock()
	s.emit(ctr, "oom", nil)
}

// giveBack returns what others may want at once: addresses, ports, volumes.
func (s *Service) giveBack(ctx context.Context, ctr *live) {
	rec := ctr.record()
	if err := s.Networks.Leave(ctx, ctr.id); err != nil {
		s.Log.Warn("leave the network", "container", rec.Name, "error", err)
	}
	for _, mnt := range rec.Mounts {
		if mnt.Type != "volume" {
			continue
		}
		if err := s.Volumes.Unmount(ctx, mnt.Name, ctr.id); err != nil {
			s.Log.Warn("unmount a volume", "container", rec.Name, "volume", mnt.Name, "error", err)
		}
		s.emitVolume(ctr, "unmount", mnt)
	}
}

// clear removes what nobody waits for, except the next start.
func (s *Service) clear(ctx context.Context, rec *container.Record, mon monitor.Monitor, proc Process) {
	if proc != nil {
		if err := proc.Delete(ctx); err != nil {
			s.Log.Warn("delete what the runtime has of a container", "container", rec.Name, "error", err)
		}
	}
	if err := mon.Close(); err != nil {
		s.Log.Warn("end a monitor", "container", rec.Name, "error", err)
	}
	if rec.Host.IpcMode == "shareable" {
		if err := s.unmountShm(rec.ID); err != nil {
			s.Log.Warn("shared memory", "container", rec.Name, "error", err)
		}
	}
}

// waitCleaned waits until what the last run left was cleared away. What was put off is not any longer.
func (ctr *live) waitCleaned() {
	ctr.mu.Lock()
	cleaned := ctr.cleaned
	ctr.mu.Unlock()
	if cleaned != nil {
		<-cleaned
	}
	ctr.clearNow()
}

// restarts applies the restart policy to an exit. ctr.mu is held.
func (s *Service) restarts(ctr *live, rec *container.Record, exit monitor.Exit) bool {
	if ctr.keep > 0 || rec.StoppedByUser {
		return false
	}
	if !ctr.sick && exit.At.Sub(rec.State.StartedAt) >= s.asked(rec).RestartWindow { // an unhealthy run was no steady one, however long it lasted
		ctr.failures = 0
	}
	policy := rec.Host.Restart
	left := policy.MaxRetries == 0 || rec.RestartCount < policy.MaxRetries
	if up, _ := policy.Keeps(); up {
		return left
	}
	return policy.Name == "on-failure" && exit.Code != 0 && left
}

// asked is what the annotations of a container ask for; Create has checked them.
func (s *Service) asked(rec *container.Record) container.Asked {
	asked, err := container.ReadAnnotations(rec.Host.Annotations)
	if err != nil {
		s.Log.Error("read a container's annotations", "container", rec.Name, "error", err)
	}
	return asked
}

// restartLater starts a container again after its back-off, unless someone stops, starts or removes it meanwhile.
func (s *Service) restartLater(ctr *live) {
	ctx, cancel := context.WithCancel(s.ctx)
	ctr.mu.Lock()
	wait := s.asked(ctr.record()).Backoff(ctr.failures)
	ctr.failures++
	ctr.stopBack = cancel
	if ctr.record().State.Status != container.Restarting { // it was stopped before we came here
		ctr.mu.Unlock()
		cancel()
		return
	}
	ctr.mu.Unlock()
	s.background(func(context.Context) {
		defer cancel()
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if s.awaitBases(ctx, ctr) != nil {
			return
		}
		ctr.mu.Lock()
		if ctx.Err() != nil || ctr.record().State.Status != container.Restarting {
			ctr.mu.Unlock()
			return
		}
		ctr.from = container.Restarting
		ctr.stopBack = nil
		ctr.changeLocked(func(rec *container.Record) {
			rec.State.Status = container.Starting
			rec.RestartCount++
		})
		ctr.mu.Unlock()
		if err := s.start(s.ctx, ctr); err != nil {
			s.Log.Warn("restart after an exit", "container", ctr.record().Name, "error", err)
		}
	})
}

// vanish makes a container not exist any more: its anonymous volumes, its record, its name. Bulky things are left to the background.
func (s *Service) vanish(ctx context.Context, ctr *live) error {
	rec := ctr.record()
	var all []error
	for _, mnt := range rec.Mounts {
		if mnt.Type == "volume" {
			all = append(all, s.Volumes.Release(ctx, mnt.Name, ctr.id))
			if mnt.Anonymous {
				all = append(all, ignore(s.removeVolume(ctx, mnt.Name, mnt.Driver, false), errs.NotFound, errs.Conflict))
			}
		}
	}
	all = append(all, s.forget(ctr))
	s.dropFound(ctr, rec.State.Error)
	return errors.Join(all...)
}

// dropFound has nobody find a container any more whose record is gone, and tells those who wait for something of it; text is what they get beside the exit code.
func (s *Service) dropFound(ctr *live, text string) {
	rec := ctr.record()
	s.table.drop(ctr)
	s.maker.Security.ReleaseLabels(rec.ProcessLabel)
	ctr.turnAway()
	s.emit(ctr, "destroy", nil)
	ctr.tell(Ended{Code: rec.State.ExitCode, Err: text}, NotRunning, NextExit, Removed)
}

func ignore(err error, kinds ...error) error {
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return nil
		}
	}
	return err
}

// clearFolder removes the tree and the folder of a container that does not exist any more. What a crash leaves of them, New finds.
func (s *Service) clearFolder(ctr *live) {
	if err := s.removeTrees(context.WithoutCancel(s.ctx), ctr.record()); err != nil {
		s.Log.Warn("remove a file tree", "container", ctr.id, "error", err)
	}
	if err := s.removeDir(ctr.id); err != nil {
		s.Log.Warn("remove a container's folder", "container", ctr.id, "error", err)
	}
	s.sweepImages()
}

// sweepImages lets go of layers of deleted images that only a tree held.
func (s *Service) sweepImages() {
	if imgs, ok := s.Images.(interface{ Sweep() }); ok {
		imgs.Sweep()
	}
}

// Wait answers when a condition holds. The channel gets one answer, or none when ctx ends first.
func (s *Service) Wait(ctx context.Context, ref string, cond WaitCondition) (<-chan Ended, error) {
	if cond == "" {
		cond = NotRunning
	}
	if cond != NotRunning && cond != NextExit && cond != Removed {
		return nil, errs.New(errs.Invalid, "invalid condition: %q", string(cond))
	}
	ctr, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	w := &waiter{cond: cond, c: make(chan Ended, 1)}
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	st := ctr.record().State
	idle := !st.Status.Live() && st.Status != container.Starting && st.Status != container.Restarting
	if cond == NotRunning && idle || cond == Removed && s.table.lost(ctr) {
		w.c <- Ended{Code: st.ExitCode}
		return w.c, nil
	}
	ctr.awaitLocked(w)
	context.AfterFunc(ctx, func() {
		ctr.mu.Lock()
		delete(ctr.waiters, w)
		ctr.mu.Unlock()
	})
	return w.c, nil
}

// lost tells whether the container is not in the table any more.
func (t *table) lost(ctr *live) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[ctr.id] != ctr
}
