package containers

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/monitor"
)

// live is a container in memory: its record and the handles that only a running engine has.
type live struct {
	id string
	// rec is the record as it is now. It is never changed in place: change replaces it, so that readers need no lock and never wait.
	rec atomic.Pointer[container.Record]
	// disk orders the writes of this one record. It is held over a write of a small file, by design: a later state must not be overwritten by an earlier one.
	disk sync.Mutex
	gone bool   // the record file was removed and must not come back; guarded by disk, as is rev
	rev  uint64 // of what was written last

	mu       sync.Mutex       // guards what follows
	from     container.Status // what Starting or Removing came from
	mon      monitor.Monitor
	proc     Process
	mounts   *os.File // the run's mount namespace, or nil: see keepMounts
	waiters  map[*waiter]struct{}
	pending  []*attachment      // clients that attached before the start
	cleaned  chan struct{}      // closes when what the last run left was cleared away; nil when there is nothing
	clear    func()             // does so once, put off until the disk has room for how that run ended (see owed); else nil
	stopBack context.CancelFunc // ends the wait of Restarting
	keep     int                // how many end this run who have more to do with the container: its exit is not to be acted upon
	failures int                // runs in a row that ended too soon
	execs    []string           // ids of its exec sessions
	editing  bool               // its settings are being changed
	sick     bool               // the engine ends this run because it is unhealthy
	oomTold  bool               // the event of an out-of-memory kill in this run went out
	shipping []*ship.Follower   // who hands its log on
}

type waiter struct {
	cond WaitCondition
	c    chan Ended
}

// plainNetworks are the networks of containers that asked for one and for nothing about it, by its name: nearly all, and such a map takes more than a kilobyte. They are
// never changed, as no map of a record is.
type plainNetworks struct {
	mu  sync.Mutex // guards all
	all map[string]map[string]container.EndpointSettings
}

// share gives the common map that is equal to asked, if there can be one.
func (p *plainNetworks) share(asked map[string]container.EndpointSettings) map[string]container.EndpointSettings {
	if len(asked) != 1 {
		return asked
	}
	for name, ep := range asked {
		if !reflect.ValueOf(ep).IsZero() {
			return asked
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.all[name] == nil {
			if p.all == nil || len(p.all) > 100 {
				p.all = map[string]map[string]container.EndpointSettings{}
			}
			p.all[name] = asked
		}
		return p.all[name]
	}
	return asked
}

func newLive(rec container.Record) *live {
	ctr := &live{id: rec.ID}
	ctr.rec.Store(&rec)
	return ctr
}

// record is the container's record now; it must not be changed.
func (ctr *live) record() *container.Record { return ctr.rec.Load() }

// change replaces the record by a changed copy. fn must replace, not edit, maps and slices.
func (ctr *live) change(fn func(rec *container.Record)) *container.Record {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	return ctr.changeLocked(fn)
}

func (ctr *live) changeLocked(fn func(rec *container.Record)) *container.Record {
	rec := *ctr.rec.Load()
	fn(&rec)
	ctr.rec.Store(&rec)
	return &rec
}

// claim moves the container to a status that the table of states allows, and remembers where it came from.
func (ctr *live) claim(to container.Status) error {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	return ctr.claimLocked(to)
}

// claimRun claims it for a start that is not the restart policy's. Whether the user wants it down is what he says from here on.
func (ctr *live) claimRun() error {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if err := ctr.claimLocked(container.Starting); err != nil {
		return err
	}
	ctr.changeLocked(func(rec *container.Record) { rec.StoppedByUser = false })
	return nil
}

func (ctr *live) claimLocked(to container.Status) error {
	from := ctr.record().State.Status
	if err := container.Move(from, to); err != nil {
		return err
	}
	ctr.from = from
	ctr.changeLocked(func(rec *container.Record) { rec.State.Status = to })
	return nil
}

// shown is the record as doors see it: the two in-between states appear as what they came from. It must not be changed.
func (ctr *live) shown() *container.Record {
	rec := ctr.record()
	if rec.State.Status != container.Starting {
		return rec
	}
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	rec = ctr.record()
	if rec.State.Status == container.Starting {
		back := *rec
		back.State.Status = ctr.from
		rec = &back
	}
	return rec
}

// handles returns what a live container is reached by; errs.Conflict when it does not run.
func (ctr *live) handles() (monitor.Monitor, Process, error) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if !ctr.record().State.Status.Live() || ctr.mon == nil || ctr.proc == nil {
		return nil, nil, errs.New(errs.Conflict, "container %s is not running", ctr.id)
	}
	return ctr.mon, ctr.proc, nil
}

// awaitLocked adds a waiter.
func (ctr *live) awaitLocked(w *waiter) {
	if ctr.waiters == nil { // most containers never have one
		ctr.waiters = map[*waiter]struct{}{}
	}
	ctr.waiters[w] = struct{}{}
}

// tell answers the waiters of some conditions.
func (ctr *live) tell(end Ended, conds ...WaitCondition) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for w := range ctr.waiters {
		if slices.Contains(conds, w.cond) {
			w.c <- end // buffered, one answer each
			delete(ctr.waiters, w)
		}
	}
}

// table finds containers.
type table struct {
	mu     sync.RWMutex // guards what follows
	byID   map[string]*live
	byName map[string]*live
	order  []*live // those of byID, the oldest first
}

// reserve takes a name and adds the container; taking both at once keeps names unique.
func (t *table) reserve(name string, ctr *live) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.byName[name]; have != nil {
		return nameTaken(name, have.id)
	}
	t.byName[name] = ctr
	return nil
}

func nameTaken(name, id string) error {
	return errs.New(errs.Conflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, id)
}

// add makes a reserved container visible.
func (t *table) add(ctr *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[ctr.id] = ctr
	at, _ := t.place(ctr)
	t.order = slices.Insert(t.order, at, ctr)
}

// place is where a container is in the order, or belongs. mu is held.
func (t *table) place(ctr *live) (int, bool) {
	return slices.BinarySearchFunc(t.order, ctr, func(a, b *live) int {
		return cmp.Or(a.record().Created.Compare(b.record().Created), strings.Compare(a.id, b.id))
	})
}

// drop forgets a container and frees its name.
func (t *table) drop(ctr *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byID, ctr.id)
	if at, found := t.place(ctr); found {
		t.order = slices.Delete(t.order, at, at+1)
	}
	if name := ctr.record().Name; t.byName[name] == ctr {
		delete(t.byName, name)
	}
}

// free gives a name back that belongs to ctr.
func (t *table) free(name string, ctr *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName[name] == ctr {
		delete(t.byName, name)
	}
}

// all lists the containers, the oldest first.
func (t *table) all() []*live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Clone(t.order)
}

// find looks a container up by id, name, or unique prefix of an id.
func (t *table) find(ref string) (*live, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	name := strings.TrimPrefix(ref, "/")
	if ref == "" || name == "" {
		return nil, errs.New(errs.Invalid, "invalid container name or ID: value is empty")
	}
	if ctr := t.byID[ref]; ctr != nil {
		return ctr, nil
	}
	if ctr := t.byName[name]; ctr != nil && t.byID[ctr.id] != nil {
		return ctr, nil
	}
	var found *live
	for id, ctr := range t.byID {
		if strings.HasPrefix(id, ref) {
			if found != nil {
				return nil, errs.New(errs.Invalid, "multiple IDs found with provided prefix: %s", ref)
			}
			found = ctr
		}
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "No such container: %s", ref)
	}
	return found, nil
}

// find is table.find with a better word for the user's reference.
func (s *Service) find(ref string) (*live, error) { return s.table.find(ref) }

// running finds a container that must have a process; for one that is just being started, that is waited for.
func (s *Service) running(ctx context.Context, ref string) (*live, monitor.Monitor, Process, error) {
	ctr, err := s.find(ref)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := ctr.started(ctx); err != nil {
		return nil, nil, nil, err
	}
	mon, proc, err := ctr.handles()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w", err)
	}
	return ctr, mon, proc, nil
}
