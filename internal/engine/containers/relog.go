package containers

import (
	"context"
	"maps"
	"path/filepath"
	"reflect"
	"slices"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/logs/ship"
)

// editLog lays what was asked for over the log configuration.
func (s *Service) editLog(rec *container.Record, req EditRequest) error {
	if req.LogDriver == nil && len(req.LogOptions) == 0 {
		return nil
	}
	log := rec.Host.Log
	opts := maps.Clone(log.Config)
	if req.LogDriver != nil {
		log, opts = container.LogConfig{Type: *req.LogDriver}, nil
	}
	if opts == nil {
		opts = map[string]string{}
	}
	for name, value := range req.LogOptions {
		_, set := opts[name]
		switch {
		case value != "":
			opts[name] = value
		case !set:
			return errs.New(errs.Invalid, "log option %s is not set", name)
		default:
			delete(opts, name)
		}
	}
	log.Config = opts
	if req.LogDriver != nil {
		s.defaultLog(&log)
	}
	rec.Host.Log = log
	_, err := s.logConfig(log)
	return err
}

// differences are those that settings have, and what of them a running container cannot take.
func (s *Service) differences(have, want container.Settings) []container.Change {
	diff := container.Diff(have, want)
	if !reflect.DeepEqual(have.Host.Log, want.Host.Log) && !s.ownLogStays(have.Host.Log, want.Host.Log) {
		diff = append(diff, container.Change{What: "how its own log is kept"})
	}
	return diff
}

// ownLogStays tells whether the monitor of a running container goes on writing as it does: it is told once, at the start. Drivers are the engine's.
func (s *Service) ownLogStays(have, want container.LogConfig) bool {
	h, err := s.logConfig(have)
	if err != nil { // its driver is a plugin that is gone
		return false
	}
	w, err := s.logConfig(want)
	return err == nil && h.None == w.None && h.Own == w.Own && h.NonBlocking == w.NonBlocking && h.Buffer == w.Buffer && h.Unreadable == w.Unreadable
}

// relog is a change of log drivers under way.
type relog struct {
	s    *Service
	ctr  *live
	next []*ship.Follower // those from now on
	made []*ship.Follower // of these, those that are new
	gone []*ship.Follower // of drivers that are named no more
	old  []*ship.Follower // of drivers whose options change: the new one goes on where they are
}

// planRelog finds out who hands the log on after a change. A driver that was not there gets what the container says from now on.
//
//	as it is ─▶ planned, destinations reached ─▶ record (durable) ─▶ done: old ones stop, new ones run
//	                     │ fails
//	                     └─▶ back: new ones are closed; the old ones never stopped
func (s *Service) planRelog(ctr *live, have, want container.Settings) (*relog, error) {
	r := &relog{s: s, ctr: ctr}
	if reflect.DeepEqual(have.Host.Log, want.Host.Log) {
		return r, nil
	}
	had := map[string]ship.Target{}
	if cfg, err := s.logConfig(have.Host.Log); err == nil {
		for _, t := range cfg.Targets {
			had[t.Driver.Name()] = t
		}
	}
	cfg, err := s.logConfig(want.Host.Log)
	if err != nil {
		return r, err
	}
	ctr.mu.Lock()
	running := ctr.shipping
	ctr.mu.Unlock()
	after := *ctr.record()
	after.Set(want)
	for _, t := range cfg.Targets {
		name := t.Driver.Name()
		i := slices.IndexFunc(running, func(f *ship.Follower) bool { return f.Status().Driver == name })
		before, was := had[name]
		if i >= 0 && was && reflect.DeepEqual(before.Options, t.Options) && before.Bound == t.Bound && reflect.DeepEqual(before.Join, t.Join) {
			r.next = append(r.next, running[i])
			continue
		}
		if !was {
			end, err := logs.End(s.logDir(ctr.id))
			if err == nil {
				err = ship.Begin(s.shipState(ctr.id, name), end)
			}
			if err != nil {
				return r, err
			}
		}
		f := s.newFollower(ctr, &after, t, cfg.Unreadable)
		r.next, r.made = append(r.next, f), append(r.made, f)
	}
	for _, f := range running {
		switch name := f.Status().Driver; {
		case slices.Contains(r.next, f):
		case slices.ContainsFunc(r.made, func(m *ship.Follower) bool { return m.Status().Driver == name }):
			r.old = append(r.old, f)
		default:
			r.gone = append(r.gone, f)
		}
	}
	return r, nil
}

// relogLive prepares a change of the drivers of a running container. A destination that cannot be reached refuses it, as it would a start.
func (s *Service) relogLive(ctx context.Context, ctr *live, have, want container.Settings) (*relog, error) {
	r, err := s.planRelog(ctr, have, want)
	for _, f := range r.made {
		if err == nil {
			err = f.Reach(ctx)
		}
		if name := f.Status().Driver; slices.ContainsFunc(r.old, func(o *ship.Follower) bool { return o.Status().Driver == name }) {
			f.Unreach() // the old one writes there until it is stopped
		}
	}
	if err != nil {
		_ = r.back(ctx) // it cannot fail
		return r, errs.As(errs.Unavailable, err)
	}
	return r, nil
}

// relogStopped is a change of the drivers of a container that does not run: those that go have until then what it said.
func (s *Service) relogStopped(ctx context.Context, ctr *live, have, want container.Settings) error {
	r, err := s.planRelog(ctr, have, want)
	if err != nil {
		return err
	}
	r.stop(ctx)
	return nil
}

// back takes the change back before it was made.
func (r *relog) back(context.Context) error {
	for _, f := range r.made {
		f.Close()
	}
	return nil
}

// done makes the change: drivers that go get what was said so far, if they take it.
func (r *relog) done(ctx context.Context) {
	if len(r.made)+len(r.gone) == 0 {
		return
	}
	r.stop(ctx)
	mon, _, err := r.ctr.handles()
	if err != nil { // it has ended meanwhile: the next start hands on what there is
		return
	}
	for _, f := range r.made {
		f.Run(mon.Exited())
	}
}

// stop ends the followers that are not needed any more.
func (r *relog) stop(ctx context.Context) {
	if len(r.made)+len(r.gone) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	over := make(chan struct{})
	close(over)
	for _, f := range r.gone {
		if f.Running() {
			f.Run(over)
			f.Drain(ctx, drainGrace)
		}
		f.Close()
	}
	for _, f := range r.old {
		f.Stop(ctx, drainGrace)
	}
	r.ctr.mu.Lock()
	r.ctr.shipping = r.next
	r.ctr.mu.Unlock()
}

// shipState is where the follower of a driver keeps its place.
func (s *Service) shipState(id, driver string) string {
	return filepath.Join(s.dir(id), "ship", driver)
}

// newFollower makes who hands a container's log to one driver.
func (s *Service) newFollower(ctr *live, rec *container.Record, t ship.Target, unreadable bool) *ship.Follower {
	info := s.logInfo(rec, t.Options)
	info.Bound = t.Bound
	opts := ship.Options{Dir: s.logDir(rec.ID), State: s.shipState(rec.ID, t.Driver.Name()), Driver: t.Driver, Info: *info, Join: t.Join, Watches: s.watches, Log: s.Log}
	if unreadable {
		opts.Moved = func() { s.trimLog(ctr) }
	}
	return ship.New(opts)
}
