package serve

import (
	"syscall"

	"corten.dev/corten/internal/monitor/wire"
)

const (
	pauseAt   = 256 << 10 // a client with more waiting stops the reading
	queueMax  = 1 << 20   // what a client of a non-blocking container may have waiting
	stdinMax  = 64 << 10
	drainMax  = 16 << 20 // read from one pipe after the process ended, should others keep writing into it
	quick     = 200_000  // ns between two reads that count as close
	readsEach = 4        // reads of one output before the others have their turn
	streakMin = 16       // close reads that make a stream
	streamGap = 64       // ns for a byte: what comes faster is a stream, too
	napGrown  = 500_000  // ns that a stream gathers in a large pipe
	growFull  = 60 << 10 // bytes in one turn that make the pipe large
	growAt    = 16 << 10 // the same, of a stream
	keepEnded = 64       // ended sessions whose exit nobody fetched
)

// process is the container's first process or an exec session.
type process struct {
	s         *Server
	session   string
	stdio     uint8
	pid       int
	pidfd     int
	terminal  bool
	logged    bool
	rows      uint16
	cols      uint16
	console   *console
	making    *making // while another process makes it
	master    master
	in        input
	out       [2]output
	life      life
	paused    bool
	asked     bool  // it was sent input since its output was read last
	waitFirst int64 // deadline until which the output waits for the first client
	ended     bool  // reaped; its exit is told
	done      bool  // its output was delivered to the clients' queues
	forgotten bool
	exit      wire.Message
}

func (s *Server) find(session string) *process {
	for _, p := range s.procs {
		if p.session == session {
			return p
		}
	}
	return nil
}

// life hears of the end of a process.
type life struct{ p *process }

func (l *life) ready(uint32) { l.p.s.reap() }

// output is a pipe that the process writes into.
type output struct {
	p      *process
	fd     int
	stream int
	grown  bool
	last   int64 // when it was read last, and how many reads followed each other closely
	streak int
	got    int // bytes that the last turn brought
}

// moderate has the loop wait a moment when a process writes faster than it makes sense to wake up for: what comes meanwhile is taken in one go. Woken for every
// write, a monitor needs three times the processor of one that takes a large pipe's worth, and the writer needs more, too, because it does the waking. Nobody
// waits while the process outruns the monitor, nor when it was told something: what it says then is an answer, and somebody wants it.
func (o *output) moderate() {
	s := o.p.s
	now := monotonic()
	gap := now - o.last
	o.last = now
	switch {
	case o.p.asked:
		o.streak = 0
	case gap > quick && int64(o.got) < gap/streamGap: // on a busy machine even a stream's reads are far apart
		o.streak /= 2
	case o.streak < streakMin:
		o.streak++
	case o.got >= len(s.scratch):
	case o.grown:
		s.gather = napGrown
	default:
		s.gather = max(s.gather, quick/2)
	}
	o.p.asked = false
}

func (o *output) ready(uint32) {
	got := 0
	for i := 0; i < readsEach && o.fd >= 0 && !o.p.paused; i++ {
		n, more := o.pump()
		if got += n; !more {
			break
		}
	}
	o.got = got
	o.moderate()
	full := got >= growFull || o.streak == streakMin && got >= growAt
	if full && !o.grown && !o.p.terminal && o.fd >= 0 { // a larger pipe saves switches. Most containers never need it.
		o.grown = true
		fcntl(o.fd, setPipeSize, pipeSize)
	}
}

// pump moves one read's worth of output and reports whether it looks as if there were more.
func (o *output) pump() (n int, more bool) {
	s := o.p.s
	n, errno := readOutput(o.fd, s.scratch, s.nonblock)
	if errno == syscall.EAGAIN {
		return 0, false
	}
	if n <= 0 || errno != 0 { // EIO is a terminal's way of saying that everyone closed it
		o.close()
		return 0, false
	}
	if n >= 16<<10 {
		s.busy = monotonic()
	}
	o.p.deliver(o.stream, s.scratch[:n])
	if o.streak == streakMin {
		return n, n == len(s.scratch) // the little that came meanwhile waits until it is more
	}
	return n, n >= 4096
}

func (o *output) close() {
	if o.fd < 0 {
		return
	}
	if o.p.terminal {
		o.p.s.unwatch(o.fd) // the master is the input's too, which closes it
		o.fd = -1
		o.p.in.close()
		return
	}
	o.p.s.close(o.fd)
	o.fd = -1
}

// master watches a terminal's only descriptor for both directions.
type master struct{ p *process }

func (m *master) ready(events uint32) {
	if events&epollOut != 0 {
		m.p.in.flush()
	}
	if events&(epollIn|epollHup) != 0 {
		m.p.out[0].ready(events)
	}
}

// deliver hands output to the log and to the clients.
func (p *process) deliver(stream int, data []byte) {
	if p.logged && p.s.log != nil {
		p.s.log.write(stream, realtime(), data)
	}
	for i := len(p.s.clients) - 1; i >= 0; i-- {
		if c := p.s.clients[i]; c.p == p {
			c.output(stream, data)
		}
	}
}

// flow sets what is watched, from whether the output is to be read and the input to be written.
func (p *process) flow() {
	s := p.s
	p.paused = p.waitFirst != 0 || p.making != nil // its terminal may be there before it is known that it has a client
	if !s.nonblock {
		for _, c := range s.clients {
			if c.p == p && c.out.len() > pauseAt {
				p.paused = true
			}
		}
	}
	reading := uint32(epollIn)
	if p.paused {
		reading = 0
	}
	if p.terminal {
		if p.out[0].fd < 0 {
			return
		}
		if p.in.wait.len() > 0 {
			reading |= epollOut
		}
		p.set(p.out[0].fd, reading, &p.master)
		return
	}
	for i := range p.out {
		if p.out[i].fd >= 0 {
			p.set(p.out[i].fd, reading, &p.out[i])
		}
	}
	if p.in.fd >= 0 {
		writing := uint32(0) // 0 hears of the process closing its end
		if p.in.wait.len() > 0 {
			writing = epollOut
		}
		p.s.watch(p.in.fd, writing, &p.in)
	}
}

// set watches fd, or takes it out altogether: a hang-up would be told again and again.
func (p *process) set(fd int, events uint32, w watcher) {
	if events == 0 {
		p.s.unwatch(fd)
		return
	}
	p.s.watch(fd, events, w)
}

// tend ends the waiting for a first client that never came.
func (p *process) tend(now int64) {
	if p.waitFirst != 0 && now > p.waitFirst {
		p.waitFirst = 0
		p.flow()
		if p.ended {
			p.drain()
			p.release()
		}
	}
}

// reap takes the exit of every child that ended; the container's orphans (in the host's pid namespace) come here too.
func (s *Server) reap() {
	for s.made() {
	}
	for !s.isMaking() {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, p := range s.procs {
			if p.pid == pid && !p.ended {
				p.reaped(status)
				break
			}
		}
	}
}

// reaped drains what the process left and tells its exit.
func (p *process) reaped(status syscall.WaitStatus) {
	s := p.s
	s.close(p.pidfd)
	p.pidfd = -1
	p.exit = wire.Message{Kind: wire.Exited, Session: p.session, PID: uint32(p.pid), Stdio: p.stdio, Exit: wire.Ran, Time: realtime()}
	if status.Signaled() {
		p.exit.Signal = uint8(status.Signal())
		p.exit.Code = 128 + p.exit.Signal
	} else {
		p.exit.Code = uint8(status.ExitStatus())
	}
	if p == s.procs[0] && s.oom.killed() {
		p.exit.Exit |= wire.OOMKilled
	}
	p.lastConsole()
	p.in.close0()
	if p.waitFirst == 0 {
		p.drain()
	}
	p.ended = true
	if p == s.procs[0] {
		s.record(&p.exit)
	}
	s.tellAll(&p.exit)
	p.release()
	s.sweep()
}

// drain takes what is in the pipes now, without regard to slow clients (their queues grow by at most a pipe), and closes them.
func (p *process) drain() {
	if p.done {
		return
	}
	p.done, p.paused = true, false
	for i := range p.out {
		o := &p.out[i]
		for total := 0; o.fd >= 0 && total < drainMax; {
			if !readable(o.fd) {
				break
			}
			n, errno := read(o.fd, p.s.scratch)
			if n <= 0 || errno != 0 {
				break
			}
			total += n
			p.deliver(o.stream, p.s.scratch[:n])
		}
		o.close()
	}
	p.in.close()
}

// release lets the clients of a drained process finish. It comes after the exit was told: a client that asks for the exit code when its stream ended must get one.
func (p *process) release() {
	if !p.done || !p.ended {
		return
	}
	for i := len(p.s.clients) - 1; i >= 0; i-- {
		if c := p.s.clients[i]; c.p == p {
			c.finish()
		}
	}
}

// sweep removes the sessions whose exit was fetched, and the oldest when nobody fetches.
func (s *Server) sweep() {
	ended := 0
	for i := len(s.procs) - 1; i > 0; i-- {
		p := s.procs[i]
		if !p.ended {
			continue
		}
		ended++
		if p.done && (p.forgotten || ended > keepEnded) {
			s.procs = append(s.procs[:i], s.procs[i+1:]...)
		}
	}
}

// tellState describes the process to an engine that asks.
func (p *process) tellState(e *engine, id uint32) {
	m := p.exit
	if !p.ended {
		m = wire.Message{Session: p.session, PID: uint32(p.pid), Stdio: p.stdio}
	}
	m.Kind, m.ID = wire.Process, id
	e.tell(&m, p.pidfd)
}
