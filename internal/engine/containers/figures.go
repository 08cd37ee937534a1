package containers

import (
	"context"
	"sync"
	"time"

	"corten.dev/corten/internal/linux/counters"
	linuxhost "corten.dev/corten/internal/linux/host"
	"corten.dev/corten/internal/task"
)

// figures reads what containers use, for all who look at any of them: one goroutine, at one pace, and only while somebody looks.
//
//	watch ─▶ wake ─▶ the loop reads what is new ──▶ ┌ each second: all that somebody looks at ─▶ the queue ─▶ a teller calls one after the other
//	leave, exit ─▶ wake ─▶ the loop closes files ─▶ └ nobody is left: the loop ends
//
// The files stay open meanwhile, as far as the engine's limit of open files allows; the loop alone has them. One teller serves all who look, since to wake hundreds of
// goroutines costs more than what they do; where one who looks does not take what it is told, another teller goes on with the rest.
type figures struct {
	keep *counters.Budget
	wake chan struct{} // holds one

	mu      sync.Mutex // guards what follows
	all     map[*live]*watched
	awake   bool
	queue   []*looker
	tellers int
}

// watched is a container that somebody looks at, or did until just now.
type watched struct {
	lookers map[*looker]struct{}
	last    *Stats
	stale   bool  // its limits changed: everything is to be read
	meter   meter // the loop's alone
}

// looker is one who looks. Of several readings that it has no time for it gets the last.
type looker struct {
	ctr  *live
	fn   func(prior, now *Stats) error
	done chan error // gets one

	// Guarded by figures.mu.
	prior, next          *Stats
	told                 time.Time // when next was read
	queued, busy, closed bool
}

func newFigures() *figures {
	files, _, err := linuxhost.OpenFiles()
	if err != nil {
		files = 1024
	}
	return &figures{keep: counters.NewBudget(int(min(files/2, 1<<17))), wake: make(chan struct{}, 1), all: map[*live]*watched{}}
}

// watch calls fn with each reading until ctx ends, the service does, or fn fails.
func (f *figures) watch(ctx context.Context, s *Service, ctr *live, fn func(prior, now *Stats) error) error {
	look := &looker{ctr: ctr, fn: fn, done: make(chan error, 1), prior: &Stats{}}
	f.mu.Lock()
	w := f.all[ctr]
	if w == nil {
		w = &watched{lookers: map[*looker]struct{}{}, meter: meter{ctr: ctr, keep: f.keep}}
		f.all[ctr] = w
	}
	w.lookers[look] = struct{}{}
	if !f.awake {
		f.awake = true
		s.background(func(ctx context.Context) { f.loop(ctx, s) })
	}
	f.nudge()
	f.mu.Unlock()
	var err error
	select {
	case err = <-look.done:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	f.mu.Lock()
	look.closed = true
	busy := look.busy
	if w := f.all[ctr]; w != nil {
		delete(w.lookers, look)
		f.nudge()
	}
	f.mu.Unlock()
	if busy { // what fn writes to is ours only until we return
		err = <-look.done
	}
	return err
}

// nudge has the loop look at who looks.
func (f *figures) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// ended lets the files of a container go whose run is over: they hold its network.
func (f *figures) ended(ctr *live) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all[ctr] != nil {
		f.nudge()
	}
}

// changed has the limits of a container read anew.
func (f *figures) changed(ctr *live) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.all[ctr]; w != nil {
		w.stale = true
	}
}

func (f *figures) last(ctr *live) *Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.all[ctr]; w != nil && !w.stale {
		return w.last
	}
	return nil
}

func (f *figures) loop(ctx context.Context, s *Service) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		all := true
		select {
		case <-ctx.Done():
		case <-f.wake:
			all = false
		case <-tick.C:
		}
		round, stuck := f.round(ctx.Err() != nil)
		if round == nil {
			return
		}
		host := systemCPU()
		for _, w := range round {
			f.read(s, w, host, all)
		}
		f.tell(s, stuck)
	}
}

// round lists what somebody looks at and lets the rest go; nil when there is nothing left, which ends the loop. stuck tells that not all have taken what they were told before.
func (f *figures) round(over bool) (round []*watched, stuck bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ctr, w := range f.all {
		if len(w.lookers) == 0 || over {
			w.meter.close()
			delete(f.all, ctr)
			continue
		}
		round = append(round, w)
	}
	f.awake = round != nil
	return round, len(f.queue) > 0
}

// read reads one container's figures for those who wait for them: everyone, or only who has none yet.
func (f *figures) read(s *Service, w *watched, host uint64, all bool) {
	now := time.Now()
	waits := func(look *looker) bool {
		return !look.closed && (look.told.IsZero() || all && now.Sub(look.told) >= tooSoon)
	}
	f.mu.Lock()
	wanted := false
	for look := range w.lookers {
		wanted = wanted || waits(look)
	}
	stale := w.stale
	w.stale = false
	f.mu.Unlock()
	if !wanted {
		w.meter.settle()
		return
	}
	if stale {
		w.meter.close()
	}
	var st *Stats
	var err error
	func() {
		defer task.Contain(s.Log, "figures of a container", &err)
		st = w.meter.read(host)
	}()
	if err != nil {
		st = &Stats{fault: err}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w.last = st
	for look := range w.lookers {
		if waits(look) {
			look.next, look.told = st, now
			if !look.queued && !look.busy {
				look.queued = true
				f.queue = append(f.queue, look)
			}
		}
	}
}

// tell has the queue worked off.
func (f *figures) tell(s *Service, stuck bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) > 0 && (f.tellers == 0 || stuck) {
		f.tellers++
		go f.teller(s)
	}
}

// teller calls one after the other until the queue is empty.
func (f *figures) teller(s *Service) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) > 0 {
		look := f.queue[0]
		f.queue = f.queue[1:]
		look.queued = false
		if look.closed {
			continue
		}
		if s.table.lost(look.ctr) { // removed: there is nothing more to tell
			look.closed = true
			look.done <- nil
			continue
		}
		now := look.next
		look.next, look.busy = nil, true
		f.mu.Unlock()
		err := look.call(s, now)
		f.mu.Lock()
		look.prior, look.busy = now, false
		switch {
		case err != nil || look.closed:
			look.closed = true
			look.done <- err // one who is closed is not called again
		case look.next != nil:
			look.queued = true
			f.queue = append(f.queue, look)
		}
	}
	f.queue = nil
	f.tellers--
}

func (l *looker) call(s *Service, now *Stats) (err error) {
	defer task.Contain(s.Log, "tell figures", &err)
	if now.fault != nil {
		return now.fault
	}
	return l.fn(l.prior, now)
}
