package monitor

// Waiting is how many monitors wait in a pool.
func Waiting(p *Pool) int { return p.ready.count() }

// StopFilling leaves a pool with what it has.
func StopFilling(p *Pool) {
	p.stop()
	p.stopped.Wait()
}
