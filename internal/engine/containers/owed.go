package containers

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"
)

// owed are the containers whose state found no room on the disk: how the last run of one ended is nowhere else by then. They are tried again until there is room.
type owed struct {
	mu   sync.Mutex
	ctrs map[*live]bool
}

// owedEvery is how often a full disk is tried again.
const owedEvery = 2 * time.Second

// owe remembers a container whose record could not be written for want of room.
func (s *Service) owe(ctr *live, err error) {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
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
		if err := s.save(ctr, false); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			s.owe(ctr, err)
			return false // nor will the others find any
		} else if err != nil {
			s.Log.Error("keep the state of a container", "container", ctr.record().Name, "error", err)
		}
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
