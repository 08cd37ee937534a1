package drivers

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
	"corten.dev/corten/internal/volume/driver"
)

// Questions to all drivers (what volumes are there, who has one of that name) come from callers who have nothing to do with most of them. So nobody waits for a driver that is known to be late: it is
// asked in the background, one question at a time, and callers get what it told last. Whether a driver is late turns out once, when a caller had the patience; an answer makes it prompt again.

// patience is how long a caller waits for a driver that was not late so far.
const patience = time.Second

// answer is what one driver says; with errLate, what it said when it was asked last.
type answer struct {
	list []driver.Volume
	err  error
}

var errLate = errs.New(errs.Unavailable, "the plugin has not answered yet")

// standing is what a driver told, and how it is.
type standing struct {
	told   []driver.Volume // by its last List
	late   bool
	asking bool // in the background
	known  bool // it has answered as a volume driver
}

// question is put to all drivers. From fills in for a driver that is late.
type question struct {
	ask  func(context.Context, driver.Driver) ([]driver.Volume, error)
	from func(told []driver.Volume) ([]driver.Volume, error)
	list bool // the answer is all that the driver has
}

var whatIsThere = question{
	ask:  func(ctx context.Context, d driver.Driver) ([]driver.Volume, error) { return d.List(ctx) },
	from: func(told []driver.Volume) ([]driver.Volume, error) { return told, errLate },
	list: true,
}

// whoHas asks for one volume. Of a late driver counts what it told of that name.
func whoHas(name string) question {
	return question{
		ask: func(ctx context.Context, d driver.Driver) ([]driver.Volume, error) {
			vol, err := d.Get(ctx, name)
			return []driver.Volume{vol}, err
		},
		from: func(told []driver.Volume) ([]driver.Volume, error) {
			if i := slices.IndexFunc(told, func(vol driver.Volume) bool { return vol.Name == name }); i >= 0 {
				return told[i : i+1], nil
			}
			return nil, errLate
		},
	}
}

type named struct {
	name string
	answer
}

// all asks all drivers of which there is a trace, and those that have volumes here, side by side. What is no volume driver is left out.
func (s *Store) all(ctx context.Context, q question) map[string]answer {
	prompt, late := s.whom()
	for _, name := range late {
		s.askLate(name)
	}
	answers := make(chan named, len(prompt))
	waited := map[string]bool{}
	for _, name := range prompt {
		if s.background(func(ctx context.Context) { answers <- named{name, s.askOne(ctx, name, q)} }) {
			waited[name] = true
		}
	}
	all := map[string]answer{}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for over := false; len(waited) > 0 && !over; {
		select {
		case n := <-answers:
			delete(waited, n.name)
			if !errors.Is(n.err, errs.Invalid) {
				all[n.name] = n.answer
			}
		case <-limit.C:
			over = true
		case <-ctx.Done():
			over = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range waited {
		if ctx.Err() == nil {
			s.standing(name).late = true
		}
		late = append(late, name)
	}
	for _, name := range late {
		list, err := q.from(s.standing(name).told)
		all[name] = answer{slices.Clone(list), err}
	}
	return all
}

// standing needs mu.
func (s *Store) standing(name string) *standing {
	m := s.drivers[name]
	if m == nil {
		m = &standing{}
		s.drivers[name] = m
	}
	return m
}

// whom tells the drivers that are worth waiting for, and the others.
func (s *Store) whom() (prompt, late []string) {
	names, err := s.opts.Plugins.Names()
	if err != nil {
		s.log.Warn("plugins cannot be listed", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.vols {
		names = append(names, e.rec.Driver)
	}
	all := map[string]bool{}
	for _, name := range names {
		all[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if s.standing(name).late {
			late = append(late, name)
		} else {
			prompt = append(prompt, name)
		}
	}
	for name := range s.drivers {
		if !all[name] {
			delete(s.drivers, name) // it went away
		}
	}
	return prompt, late
}

// askOne asks one driver, whoever waits for it.
func (s *Store) askOne(ctx context.Context, name string, q question) (ans answer) {
	defer task.Contain(s.log, "ask volume plugin "+name, &ans.err)
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	if ans.err = s.opts.Plugins.Ready(ctx, name); ans.err == nil {
		var d driver.Driver
		if d, ans.err = s.driver(name); ans.err == nil {
			if ans.list, ans.err = q.ask(ctx, d); ans.err == nil {
				s.learn(ctx, d)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.standing(name)
	m.late = errors.Is(ans.err, context.DeadlineExceeded) // one that says no, or is not there, keeps nobody waiting
	if ans.err == nil {
		m.known = true
		if q.list {
			m.told = ans.list
		}
	}
	return ans
}

// askLate asks a driver in the background, unless somebody does already.
func (s *Store) askLate(name string) {
	s.mu.Lock()
	m := s.standing(name)
	busy := m.asking
	m.asking = true
	s.mu.Unlock()
	if busy {
		return
	}
	end := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.standing(name).asking = false
	}
	if !s.background(func(ctx context.Context) {
		defer end()
		s.askOne(ctx, name, whatIsThere)
	}) {
		end()
	}
}

// isDriver tells whether a plugin was ever known as a volume driver.
func (s *Store) isDriver(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.standing(name).known
}
