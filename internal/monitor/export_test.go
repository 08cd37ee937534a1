package monitor

import "context"

// Waiting is how many monitors wait in a pool.
func Waiting(p *Pool) int { return p.ready.count() }

// StopFilling leaves a pool with what it has.
func StopFilling(p *Pool) {
	p.stop()
	p.stopped.Wait()
}

// Take gives a monitor that waits, with the way to ask it for a launch without the pool, which ends a monitor whose launch failed.
func Take(p *Pool, id string) (Monitor, func(context.Context, Launch) error, error) {
	folder, err := p.makeFolder(id)
	if err != nil {
		return nil, nil, err
	}
	s, err := p.take()
	if err != nil {
		return nil, nil, err
	}
	m, err := newMonitor(p, id, folder, s.link, s.pid)
	if err != nil {
		return nil, nil, err
	}
	return m, m.launch, nil
}
