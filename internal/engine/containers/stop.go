package containers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
)

// Restart stops and starts; the container keeps its place in between, also with --rm.
func (s *Service) Restart(ctx context.Context, ref string, opts StopOptions) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	ran := ctr.record().State.Status.Live()
	if err := s.stopInPlace(ctx, ctr, opts, false); err != nil {
		return err
	}
	if ran {
		s.emit(ctr, "stop", nil)
	}
	if err := s.startFound(ctx, ctr); err != nil && !errors.Is(err, errs.NotModified) {
		return err
	}
	s.emit(ctr, "restart", nil)
	return nil
}

// stopInPlace is stop for somebody who has more to do with the container: its end is not acted upon, neither by the restart policy nor by --rm. One that does not run is stopped already.
func (s *Service) stopInPlace(ctx context.Context, ctr *live, opts StopOptions, byUser bool) error {
	keep := func(more int) {
		ctr.mu.Lock()
		defer ctr.mu.Unlock()
		ctr.keep += more
	}
	keep(1)
	defer keep(-1)
	return ignore(s.stop(ctx, ctr, opts, byUser), errs.NotModified)
}

// Stop asks a container to end, and kills it when it does not in time.
func (s *Service) Stop(ctx context.Context, ref string, opts StopOptions) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := s.stop(context.WithoutCancel(ctx), ctr, opts, true); err != nil {
		return err
	}
	s.emit(ctr, "stop", nil)
	return nil
}

// stop does the work of Stop and Restart; byUser keeps the container down for its policy. Nobody waits for its end any more once ctx ends.
func (s *Service) stop(ctx context.Context, ctr *live, opts StopOptions, byUser bool) error {
	rec := ctr.record()
	sig, err := stopSignal(rec, opts.Signal)
	if err != nil {
		return err
	}
	wait := s.StopTimeout
	if rec.Config.StopTimeout != nil {
		wait = *rec.Config.StopTimeout
	}
	if opts.Timeout != nil {
		wait = *opts.Timeout
	}
	if byUser {
		if err := s.markStopped(ctr); err != nil {
			return err
		}
	}
	if err := ctr.started(ctx); err != nil {
		return err
	}
	if done, err := s.endBackoff(ctr); done || err != nil {
		return err
	}
	mon, proc, err := ctr.handles()
	if err != nil {
		return errs.New(errs.NotModified, "container %s is not running", rec.Name)
	}
	ended, cancel := s.exitOf(ctr)
	defer cancel()
	// A program stopped by a signal that it may not see (it is frozen) must be thawed to die.
	if err := s.signal(ctx, ctr, proc, sig); err != nil && !errors.Is(err, errs.NotFound) {
		s.Log.Warn("stop signal", "container", rec.Name, "error", err)
	}
	if ctr.record().State.Status == container.Paused {
		if err := proc.Resume(ctx); err != nil {
			return fmt.Errorf("stop %s: thaw: %w", rec.Name, err)
		}
	}
	var timeout <-chan time.Time
	if patience, bounded := patienceOf(wait); bounded {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-ended:
		return nil
	case <-timeout:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.signal(ctx, ctr, proc, syscall.SIGKILL); err != nil && !errors.Is(err, errs.NotFound) {
		s.Log.Warn("kill", "container", rec.Name, "error", err)
	}
	select {
	case <-ended:
		return nil
	case <-time.After(10 * time.Second):
		return errs.New(errs.Unavailable, "cannot stop container %s: process %d does not end, not even by SIGKILL: it waits for something in the kernel", rec.Name, mon.PID())
	}
}

// patienceOf is the time that a container gets to end by itself. Below zero it is without end, as is what a duration cannot hold: that would be less than nothing.
func patienceOf(seconds int) (d time.Duration, bounded bool) {
	if seconds < 0 || int64(seconds) > int64(math.MaxInt64/time.Second) {
		return 0, false
	}
	return time.Duration(seconds) * time.Second, true
}

// started waits while a container is just being started.
func (ctr *live) started(ctx context.Context) error {
	return until(ctx, func() bool { return ctr.record().State.Status != container.Starting })
}

func stopSignal(rec *container.Record, asked string) (syscall.Signal, error) {
	if asked == "" {
		asked = rec.Config.StopSignal
	}
	if asked == "" {
		return syscall.SIGTERM, nil
	}
	return parseSignal(asked)
}

// markStopped notes that the user wants the container down; it is durable where it decides what happens at the next boot.
func (s *Service) markStopped(ctr *live) error {
	rec := ctr.record()
	if rec.StoppedByUser || !rec.State.Status.Live() && rec.State.Status != container.Restarting && rec.State.Status != container.Starting {
		return nil
	}
	rec = ctr.change(func(rec *container.Record) { rec.StoppedByUser = true })
	if up, _ := rec.Host.Restart.Keeps(); up {
		return s.save(ctr, true)
	}
	return nil
}

// endBackoff stops a container that waits for its next run.
func (s *Service) endBackoff(ctr *live) (done bool, err error) {
	ctr.mu.Lock()
	if ctr.record().State.Status != container.Restarting {
		ctr.mu.Unlock()
		return false, nil
	}
	stop := ctr.stopBack
	ctr.stopBack = nil
	ctr.changeLocked(func(rec *container.Record) { rec.State.Status = container.Exited })
	ctr.mu.Unlock()
	if stop != nil {
		stop()
	}
	st := ctr.record().State
	ctr.tell(Ended{Code: st.ExitCode, Err: st.Error}, NotRunning, NextExit)
	return true, s.save(ctr, false)
}

// exitOf waits for the next exit to be dealt with.
func (s *Service) exitOf(ctr *live) (<-chan Ended, func()) {
	w := &waiter{cond: NextExit, c: make(chan Ended, 1)}
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if st := ctr.record().State; !st.Status.Live() {
		w.c <- Ended{Code: st.ExitCode}
	} else {
		ctr.awaitLocked(w)
	}
	return w.c, func() { ctr.mu.Lock(); delete(ctr.waiters, w); ctr.mu.Unlock() }
}

func (s *Service) signal(ctx context.Context, ctr *live, proc Process, sig syscall.Signal) error {
	// A container in the host's pid namespace has no kernel that kills all with the first.
	all := sig == syscall.SIGKILL && (ctr.record().Host.PidMode == "host" || strings.HasPrefix(ctr.record().Host.PidMode, "container:"))
	if err := proc.Signal(ctx, sig, all); err != nil {
		return err
	}
	s.emit(ctr, "kill", map[string]string{"signal": strconv.Itoa(int(sig))})
	return nil
}

// Kill sends a signal to the first process; SIGKILL (the default) is waited for. A paused container goes on, so that it hears it.
func (s *Service) Kill(ctx context.Context, ref, name string) error {
	if err := s.kill(ctx, ref, name); err != nil {
		return fmt.Errorf("cannot kill container: %s: %w", ref, err)
	}
	return nil
}

func (s *Service) kill(ctx context.Context, ref, name string) error {
	sig := syscall.SIGKILL
	if name != "" {
		var err error
		if sig, err = parseSignal(name); err != nil {
			return err
		}
	}
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := ctr.started(ctx); err != nil {
		return err
	}
	if done, err := s.killRestarting(ctr, sig); done {
		return err
	}
	_, proc, err := ctr.handles()
	if err != nil {
		return errs.New(errs.Conflict, "container %s is not running", ctr.id)
	}
	stops := sig == syscall.SIGKILL
	if stop, serr := stopSignal(ctr.record(), ""); serr == nil {
		stops = stops || sig == stop
	}
	if stops {
		if err := s.markStopped(ctr); err != nil {
			return err
		}
	}
	ended, cancel := s.exitOf(ctr)
	defer cancel()
	if err := s.signal(ctx, ctr, proc, sig); err != nil {
		if errors.Is(err, errs.NotFound) {
			return errs.New(errs.Conflict, "container %s is not running", ctr.id)
		}
		return err
	}
	if sig != syscall.SIGKILL {
		return s.letHear(ctx, ctr, proc, sig)
	}
	if ctr.record().State.Status == container.Paused {
		if err := proc.Resume(ctx); err != nil {
			s.Log.Warn("thaw a killed container", "container", ctr.id, "error", err)
		}
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		return errs.New(errs.Unavailable, "container %s does not end, not even by SIGKILL: it waits for something in the kernel", ref)
	}
	return nil
}

// letHear lets a paused container go on, as Docker does, so that it hears a signal: any, unless its configuration names the one that stops it, then that one.
func (s *Service) letHear(ctx context.Context, ctr *live, proc Process, sig syscall.Signal) error {
	rec := ctr.record()
	if rec.State.Status != container.Paused {
		return nil
	}
	if stop, err := stopSignal(rec, ""); err != nil || rec.Config.StopSignal != "" && sig != stop {
		return err
	}
	if err := s.unpause(ctx, ctr, proc); err != nil && !errors.Is(err, errs.Conflict) { // somebody else did
		return err
	}
	return nil
}

func (s *Service) killRestarting(ctr *live, sig syscall.Signal) (bool, error) {
	if sig != syscall.SIGKILL || ctr.record().State.Status != container.Restarting {
		return false, nil
	}
	if err := s.markStopped(ctr); err != nil {
		return true, err
	}
	return s.endBackoff(ctr)
}
