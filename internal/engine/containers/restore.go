package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/volume"
)

// restore finds every container again as it really is. A record says what was; the monitor, or what it wrote before it ended, says what is:
//
//	record says    monitor lives              exit on disk            neither
//	running        running: taken over        exited, with that code  exited 137, its processes are killed (255 after a reboot)
//	anything else  half started: ended        –                       as the record says
//
// After that: containers with --rm that ended are removed, trees, folders, monitors and runtime states that belong to nobody are removed, and containers whose policy
// says so are started in the background.
func (s *Service) restore(ctx context.Context) error {
	kept := map[string]bool{} // broken ones: set aside, not thrown away
	recs, err := readRecords(s.Root, func(id string, err error) {
		kept[id] = true
		s.Log.Error("the record of a container is broken; its folder was set aside", "container", id, "error", err)
	}, func(id string) {
		s.Log.Info("a container was half made or half removed; the rest is removed", "container", id)
	})
	if err != nil {
		return err
	}
	entries, err := filepath.Glob(filepath.Join(s.Root, "*.broken"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		kept[strings.TrimSuffix(filepath.Base(e), ".broken")] = true
	}
	var found []*live
	for _, kept := range recs {
		rec := kept.Record
		rec.Networks = s.plain.share(rec.Networks)
		ctr := newLive(rec)
		ctr.rev = kept.Rev
		if err := s.table.reserve(rec.Name, ctr); err != nil {
			// A crash in the middle of two renames; nothing is lost but the name.
			name := rec.Name + "_" + rec.ID[:12]
			s.Log.Warn("two containers had one name", "name", rec.Name, "renamed", name)
			ctr.change(func(rec *container.Record) { rec.Name = name })
			if err := s.table.reserve(name, ctr); err != nil {
				return err
			}
		}
		s.table.add(ctr)
		s.maker.Security.ReserveLabels(rec.ProcessLabel)
		found = append(found, ctr)
	}
	if err := s.restoreAll(ctx, found); err != nil {
		return err
	}
	s.sweep(ctx, kept)
	// Everybody who still runs has claimed what is theirs.
	if rest, ok := s.Networks.(interface{ Settle(context.Context) error }); ok {
		if err := rest.Settle(ctx); err != nil {
			s.Log.Error("settle the networks", "error", err)
		}
	}
	if rest, ok := s.Volumes.(volume.Settler); ok {
		if err := rest.Settle(ctx); err != nil {
			s.Log.Error("settle the volumes", "error", err)
		}
	}
	s.finishTrials()
	s.boot()
	return nil
}

// restoreAll restores containers, eight at a time. An engine that cannot look at all of them, for want of descriptors or memory, must not begin to serve: what it does not see it would take for dead.
func (s *Service) restoreAll(ctx context.Context, found []*live) error {
	var group sync.WaitGroup
	slots := make(chan struct{}, 8)
	failed := make(chan error, len(found))
	for _, ctr := range found { // once all are known: some are linked to others
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			failed <- s.restoreOne(ctx, ctr)
		})
	}
	group.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

// short tells whether the engine lacks something that has nothing to do with what it asked for.
func short(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// silence is how long a monitor or the runtime may take before the log tells who the engine's start waits for.
const silence = 5 * time.Second

func (s *Service) restoreOne(ctx context.Context, ctr *live) error {
	rec := ctr.record()
	for _, mnt := range rec.Mounts {
		if mnt.Type != "volume" {
			continue
		}
		if err := s.Volumes.Acquire(ctx, mnt.Name, ctr.id); err != nil {
			s.Log.Error("a container's volume is missing", "container", rec.Name, "volume", mnt.Name, "error", err)
		}
	}
	slow := time.AfterFunc(silence, func() {
		s.Log.Warn("the monitor of a container does not answer; the engine's start waits for it: it may have been stopped (kill -CONT lets it go on), or the disk of its log hangs",
			"container", rec.Name, "first process", rec.State.PID)
	})
	defer slow.Stop()
	mon, err := s.Monitors.Open(ctx, ctr.id)
	if short(err) {
		return fmt.Errorf("take over container %s, which goes on: %w", rec.Name, err)
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		s.Log.Error("reach a container's monitor", "container", rec.Name, "error", err)
	}
	proc, perr := s.Runtime.Load(ctx, ctr.id)
	if short(perr) {
		return fmt.Errorf("take over container %s, which goes on: %w", rec.Name, perr)
	}
	if perr != nil {
		proc = nil
		if !errors.Is(perr, errs.NotFound) {
			s.Log.Error("find what the runtime has of a container", "container", rec.Name, "error", perr)
		}
	}
	was := rec.State.Status
	wasLive := was.Live() || was == container.Starting
	switch {
	case mon != nil && wasLive && proc != nil && proc.PID() != 0: // 0: killed in the middle of a start
		s.takeOver(ctx, ctr, mon, proc)
	case wasLive || mon != nil || proc != nil:
		s.endRun(ctx, ctr, mon, proc)
	default:
		s.atRest(ctr, false)
	}
	return nil
}

// takeOver goes on with a running container. One that ended meanwhile is dealt with by the watch.
func (s *Service) takeOver(ctx context.Context, ctr *live, mon monitor.Monitor, proc Process) {
	rec := ctr.record()
	ctr.mu.Lock()
	ctr.mon, ctr.proc = mon, proc
	ctr.changeLocked(func(rec *container.Record) {
		rec.State.PID = mon.PID()
		if rec.State.Status == container.Starting {
			rec.State.Status = container.Running
		}
	})
	ctr.mu.Unlock()
	if rec.State.Status != container.Paused { // an engine that dies while it commits a container leaves it frozen
		if err := proc.Resume(ctx); err != nil {
			s.Log.Error("let a container go on that the last engine had frozen", "container", rec.Name, "error", err)
		}
	}
	ended := false
	select {
	case <-mon.Exited():
		ended = true
	default:
	}
	if !ended && rec.Sandbox != nil && !strings.HasPrefix(rec.Host.NetworkMode, "container:") {
		req, err := s.joinRequest(rec)
		if err == nil {
			err = s.Networks.Restore(ctx, req, *rec.Sandbox, mon.PID())
		}
		if err != nil {
			s.Log.Error("take over the network of a running container", "container", rec.Name, "error", err)
			ctr.change(func(rec *container.Record) { rec.State.Error = err.Error() }) // for who looks at it, until it ends
		}
	}
	for _, mnt := range rec.Mounts {
		if mnt.Type != "volume" || ended {
			continue
		}
		if _, err := s.Volumes.Mount(ctx, mnt.Name, ctr.id); err != nil {
			s.Log.Error("take over a volume of a running container", "container", rec.Name, "volume", mnt.Name, "error", err)
		}
	}
	for id, p := range mon.Sessions() {
		s.takeOverSession(ctr, id, p)
	}
	s.goOnWithLogs(ctr, mon.Exited())
	if ended { // now, not in the background: the caller wants to see it as it is
		s.ended(ctx, ctr, mon)
		return
	}
	if ctr.record().State.Health == nil { // of an engine that did not check
		ctr.change(func(rec *container.Record) { rec.State.Health = firstHealth(&rec.Config) })
	}
	s.watch(ctr, mon)
	s.watchHealth(ctr, mon, proc)
	s.limitRun(ctr, mon)
}

func (s *Service) takeOverSession(ctr *live, id string, p monitor.Process) {
	if strings.HasPrefix(id, probeSession) {
		if fd := p.PIDFD(); fd != nil {
			if err := pidfd.Kill(fd); err != nil {
				s.Log.Warn("end a health check of the last engine", "container", ctr.record().Name, "error", err)
			}
		}
	}
	ses := &session{id: id, ctr: ctr, started: true, running: true, pid: p.PID(), proc: p}
	s.execs.add(ses)
	ctr.mu.Lock()
	ctr.execs = append(ctr.execs, id)
	ctr.mu.Unlock()
	s.background(func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-p.Exited():
			s.sessionEnded(ses, p.Exit().Code)
		}
	})
}

// endRun clears away a run that is over or was never finished, and finds out how it ended.
func (s *Service) endRun(ctx context.Context, ctr *live, mon monitor.Monitor, proc Process) {
	rec := ctr.record()
	half := !rec.State.Status.Live() // the engine died between the clone and the record
	if mon != nil {
		if err := endMonitor(mon); err != nil {
			s.Log.Error("end a monitor", "container", rec.Name, "error", err)
		}
	}
	if proc != nil {
		if err := proc.Signal(ctx, syscall.SIGKILL, true); err != nil && !errors.Is(err, errs.NotFound) {
			s.Log.Warn("kill what a lost monitor left behind", "container", rec.Name, "error", err)
		}
		if err := proc.Delete(ctx); err != nil {
			s.Log.Error("delete what the runtime has of a container", "container", rec.Name, "error", err)
		}
	}
	if rec.Host.IpcMode == "shareable" {
		if err := s.unmountShm(ctr.id); err != nil {
			s.Log.Warn("shared memory", "container", rec.Name, "error", err)
		}
	}
	s.giveBack(ctx, ctr)
	again := false
	if !half {
		exit, text := s.howItEnded(rec)
		ctr.mu.Lock()
		again = s.restarts(ctr, rec, exit)
		ctr.changeLocked(func(rec *container.Record) {
			st := &rec.State
			st.Status, st.PID, st.ExitCode, st.OOMKilled, st.FinishedAt, st.Error = container.Exited, 0, exit.Code, exit.OOMKilled, exit.At.UTC(), text
			st.Health = st.Health.Over()
			rec.Sandbox = nil
		})
		ctr.mu.Unlock()
		s.emit(ctr, "die", map[string]string{"exitCode": strconv.Itoa(exit.Code)})
	}
	if again {
		ctr.mu.Lock()
		ctr.changeLocked(func(rec *container.Record) { rec.State.Status = container.Restarting })
		ctr.mu.Unlock()
	}
	s.atRest(ctr, half)
}

// howItEnded reads what the monitor wrote of this run.
func (s *Service) howItEnded(rec *container.Record) (monitor.Exit, string) {
	exit, err := s.ReadExit(s.exitFile(rec.ID))
	if err == nil && exit.At.After(rec.State.StartedAt.Add(-time.Second)) {
		return exit, ""
	}
	if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, fs.ErrNotExist) {
		s.Log.Warn("read how a container ended", "container", rec.Name, "error", err)
	}
	if rec.State.Boot != s.BootID {
		return monitor.Exit{Code: 255, At: time.Now()}, "the host went down while the container ran"
	}
	return monitor.Exit{Code: 137, At: time.Now(), Lost: true}, "the container's monitor process was killed: its exit code is not known"
}

// atRest ends in-between states, and removes what should be gone: with --rm also what was only half started, as after any other start that fails.
func (s *Service) atRest(ctr *live, half bool) {
	rec := ctr.record()
	switch rec.State.Status {
	case container.Starting:
		ctr.change(func(rec *container.Record) {
			rec.State.Status = container.Created
			if !rec.State.StartedAt.IsZero() {
				rec.State.Status = container.Exited
			}
		})
	case container.Removing:
		ctr.change(func(rec *container.Record) { rec.State.Status = container.Dead })
	}
	rec = ctr.record()
	over := make(chan struct{})
	close(over)
	s.goOnWithLogs(ctr, over)
	if goesByItself(rec) && (half || rec.State.Status == container.Exited || rec.State.Status == container.Dead) {
		if err := s.removeFound(s.ctx, ctr, RemoveOptions{Volumes: true}); err != nil {
			s.Log.Error("remove a container that ended while the engine was away", "container", rec.Name, "error", err)
		}
		return
	}
	s.saveState(ctr)
}

// sweep removes what belongs to no container: half made or half removed ones leave it, and the engine may die at any moment.
func (s *Service) sweep(ctx context.Context, kept map[string]bool) {
	known := func(id string) bool {
		s.table.mu.RLock()
		defer s.table.mu.RUnlock()
		return s.table.byID[id] != nil || kept[id]
	}
	warn := func(what, id string, err error) {
		if err != nil {
			s.Log.Error("remove "+what+" that belongs to no container", "id", id, "error", err)
		}
	}
	ids, err := s.Monitors.List()
	warn("monitors", "", err)
	for _, id := range ids {
		if known(id) {
			continue
		}
		mon, err := s.Monitors.Open(ctx, id)
		if err == nil {
			err = endMonitor(mon)
		}
		warn("a monitor", id, ignore(err, errs.NotFound))
		warn("a network", id, s.Networks.Leave(ctx, id))
	}
	ids, err = s.Runtime.List(ctx)
	warn("processes", "", err)
	for _, id := range ids {
		if known(id) {
			continue
		}
		proc, err := s.Runtime.Load(ctx, id)
		if err == nil {
			err = proc.Delete(ctx)
		}
		warn("a process", id, ignore(err, errs.NotFound))
		warn("a network", id, s.Networks.Leave(ctx, id))
	}
	var trees []string
	warn("file trees", "", s.Trees.Walk(ctx, func(key string, labels map[string]string) error {
		if owner := labels[labelOwner]; owner != "" && (!known(owner) || s.lostTree(owner, key)) {
			trees = append(trees, key)
		}
		return nil
	}))
	for _, key := range trees {
		warn("a file tree", key, s.Trees.Remove(ctx, key))
	}
	warn("mounts", "", s.sweepMounts())
	entries, err := os.ReadDir(s.Root)
	warn("folders", "", err)
	for _, e := range entries {
		if id := e.Name(); e.IsDir() && !known(id) && filepath.Ext(id) != ".broken" {
			warn("a folder", id, s.removeDir(id))
		}
	}
}

// lostTree tells whether a tree of a container that is there is one that its record does not name: of an upgrade that did not get far.
func (s *Service) lostTree(owner, key string) bool {
	s.table.mu.RLock()
	ctr := s.table.byID[owner]
	s.table.mu.RUnlock()
	return ctr != nil && !slices.Contains(treesOf(ctr.record()), key)
}

// boot starts the containers that should run, a few at a time, without keeping anybody waiting.
func (s *Service) boot() {
	slots := make(chan struct{}, s.MaxStarts)
	under := map[string]chan struct{}{} // closed when the container was tried
	var all []*live
	for _, ctr := range s.table.all() {
		rec := ctr.record()
		due := rec.State.Status == container.Restarting
		if rec.State.Status == container.Exited {
			up, always := rec.Host.Restart.Keeps()
			due = up && (always || !rec.StoppedByUser)
		}
		if due && !rec.Trial && rec.Next == nil { // finishTrials sees to those
			under[ctr.id] = make(chan struct{})
			all = append(all, ctr)
		}
	}
	for _, ctr := range all {
		rec := ctr.record()
		s.background(func(ctx context.Context) {
			defer close(under[ctr.id])
			for _, base := range s.bases(rec) { // those first
				if first, ok := under[base.id]; ok {
					select {
					case <-first:
					case <-ctx.Done():
						return
					}
				}
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-slots }()
			if err := ctr.claimRun(); err != nil {
				return // someone was faster
			}
			if err := s.start(ctx, ctr); err != nil {
				s.Log.Warn("start at boot", "container", rec.Name, "error", err)
			}
		})
	}
}
