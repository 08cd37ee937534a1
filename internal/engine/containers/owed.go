package containers

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"
)

// owed are the containers whose state found no room on the disk. They are tried again until there is room. How the last run of one ended is nowhere else on the disk by then, but its
// monitor knows, so that it and what the runtime has are cleared away when the state is written: an engine that comes before that asks the monitor.
type owed struct {
	mu   sync.Mutex
	ctrs map[*live]bool
}

// owedEvery is how often a full disk is tried again.
const owedEvery = 2 * time.Second

// noRoom tells whether the disk was full.
func noRoom(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// putOff keeps what clears the last run away for later.
func (ctr *live) putOff(clear func()) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.clear = clear
}

// settleFirst is for a new run, which would clear away who knows how the last one ended.
func (s *Service) settleFirst(ctr *live) error {
	ctr.mu.Lock()
	owes := ctr.clear != nil
	ctr.mu.Unlock()
	if !owes {
		return nil
	}
	return s.save(ctr, false)
}

// clearNow does what was put off, once, and waits for it.
func (ctr *live) clearNow() {
	ctr.mu.Lock()
	clear := ctr.clear
	ctr.mu.Unlock()
	if clear == nil {
		return
	}
	clear() // whoever comes meanwhile waits for it
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.clear = nil
}

// owe remembers a container whose record could not be written for want of room.
func (s *Service) owe(ctr *live, err error) {
	if !noRoom(err) {
		return
	}
	s.owed.mu.Lock()
	defer s.owed.mu.Unlock()
	if s.owed.ctrs == nil {
		s.owed.ctrs = map[*live]bool{}
		s.background(s.settleOwed)
	}
	s.owed.ctrs[ctr] = true
}

// settleOwed writes what is owed, and ends with the last of it.
func (s *Service) settleOwed(ctx context.Context) {
	every := time.NewTicker(owedEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		if s.writeOwed() {
			return
		}
	}
}

// writeOwed tells whether nothing is owed any more.
func (s *Service) writeOwed() bool {
	for {
		ctr := s.nextOwed()
		if ctr == nil {
			return true
		}
		err := s.save(ctr, false)
		if noRoom(err) {
			s.owe(ctr, err)
			return false // nor will the others find any
		}
		if err != nil {
			s.Log.Error("keep the state of a container", "container", ctr.record().Name, "error", err)
		}
		ctr.clearNow()
	}
}

// nextOwed takes one out; without any, the next to owe begins anew.
func (s *Service) nextOwed() *live {
	s.owed.mu.Lock()
	defer s.owed.mu.Unlock()
	for ctr := range s.owed.ctrs {
		delete(s.owed.ctrs, ctr)
		return ctr
	}
	s.owed.ctrs = nil
	return nil
}
