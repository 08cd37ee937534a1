package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor/wire"
)

// monitor is a live [Monitor].
type monitor struct {
	proc
	pool     *Pool
	id       string
	folder   string
	exitPath string // known to the engine that launched
	link     *link
	pid      int  // the monitor's own process
	child    bool // it is ours to reap
	gone     chan struct{}

	mu       sync.Mutex // guards what is below, and pid, pidfd and after of the processes
	closing  bool
	idle     *link // the way to the monitor once it has done its work and waits again
	sessions map[string]*proc
	ends     map[uint32]func(AttachEnd) // attachments that go on, by number
	number   uint32
}

// proc is a process under a monitor.
type proc struct {
	m       *monitor
	session string
	pid     int
	pidfd   *os.File
	exited  chan struct{}
	exit    Exit     // written before exited closes
	after   []func() // what is called when it does
}

// newMonitor begins to hear a monitor over a socket, which it owns from here on.
func newMonitor(p *Pool, id, folder string, l *link, pid int) (*monitor, error) {
	m := &monitor{pool: p, id: id, folder: folder, pid: pid, child: pid != 0, gone: make(chan struct{}), link: l}
	m.proc = proc{m: m, exited: make(chan struct{})}
	l.hear, l.gone = m.hear, m.lost
	if err := p.poller.add(l); err != nil {
		_ = l.sock.Close()
		return nil, err
	}
	return m, nil
}

// lost is called when nothing more will be heard of the monitor, and says so to everyone who waits.
func (m *monitor) lost() {
	m.mu.Lock()
	procs := []*proc{&m.proc}
	for _, p := range m.sessions {
		procs = append(procs, p)
	}
	ends, idle := m.ends, m.idle
	m.ends, m.idle = nil, nil
	closing := m.closing
	m.mu.Unlock()
	if !closing {
		for _, p := range procs {
			p.lost()
		}
	}
	for _, end := range ends {
		end(AttachEnd{})
	}
	if idle != nil {
		close(m.gone)
		m.pool.keepLater(&spare{pid: m.pid, link: idle})
		return
	}
	if m.child && (!closing || m.hasExited()) { // else it lives on, and is init's to reap when this engine ended
		go func() {
			wait(m.pid)
			close(m.gone)
		}()
		return
	}
	close(m.gone)
}

func (p *proc) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// lost is what becomes of a process whose monitor died: it must not go on without anyone who hears it.
func (p *proc) lost() {
	if p.hasExited() {
		return
	}
	p.m.mu.Lock()
	if p.pidfd != nil {
		unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
	p.m.mu.Unlock()
	x := Exit{Code: 137, Signal: int(unix.SIGKILL), At: time.Now(), Lost: true}
	if p.session == "" && p.m.exitPath != "" { // it may have died between recording and telling
		if recorded, err := ReadExit(p.m.exitPath); err == nil {
			x = recorded
		}
	}
	p.end(x)
}

func (p *proc) end(x Exit) {
	p.m.mu.Lock()
	p.exit = x
	close(p.exited)
	after := p.after
	p.after = nil
	p.m.mu.Unlock()
	for _, fn := range after {
		go fn()
	}
}

// WhenExited calls fn once, in a goroutine of its own, when the exit of p is known and recorded. It is for those who watch many processes: no goroutine waits meanwhile.
func WhenExited(p Process, fn func()) {
	if w, ok := p.(interface{ whenExited(func()) }); ok {
		w.whenExited(fn)
		return
	}
	go func() {
		<-p.Exited()
		fn()
	}()
}

func (p *proc) whenExited(fn func()) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.hasExited() {
		go fn()
		return
	}
	p.after = append(p.after, fn)
}

// hear is called for what the monitor tells by itself, in order.
func (m *monitor) hear(a *answer) {
	switch a.Kind {
	case wire.Process:
		p := &m.proc
		m.mu.Lock()
		if a.Session != "" {
			if p = m.sessions[a.Session]; p == nil {
				p = &proc{m: m, session: a.Session, exited: make(chan struct{})}
				m.addLocked(p)
			}
		}
		p.pid, p.pidfd = int(a.PID), a.pidfd()
		m.mu.Unlock()
		if a.Exit&wire.Ran != 0 && !p.hasExited() {
			p.end(exitOf(&a.Message))
			m.fetched(p)
		}
	case wire.Exited:
		p := &m.proc
		if a.Session != "" {
			m.mu.Lock()
			p = m.sessions[a.Session]
			delete(m.sessions, a.Session)
			m.mu.Unlock()
		}
		if p != nil && !p.hasExited() {
			p.end(exitOf(&a.Message))
			m.fetched(p)
		}
	case wire.Ended:
		m.mu.Lock()
		end := m.ends[a.Number]
		delete(m.ends, a.Number)
		m.mu.Unlock()
		if end != nil {
			end(AttachEnd{Detached: a.Exit&wire.Detached != 0})
		}
	case wire.OOM:
		if m.pool.opts.OnOOM != nil {
			go m.pool.opts.OnOOM(m.id)
		}
	case wire.Idle:
		next, err := m.link.again()
		if err != nil {
			return // without its socket it ends
		}
		m.mu.Lock()
		m.idle = next
		m.mu.Unlock()
	}
}

// fetched lets the monitor forget a session whose exit is known here.
func (m *monitor) fetched(p *proc) {
	if p.session == "" {
		return
	}
	m.link.tell(&wire.Message{Kind: wire.Forget, Session: p.session})
}

func (m *monitor) addLocked(p *proc) {
	if m.sessions == nil {
		m.sessions = map[string]*proc{}
	}
	m.sessions[p.session] = p
}

func exitOf(m *wire.Message) Exit {
	return Exit{Code: int(m.Code), Signal: int(m.Signal), At: time.Unix(0, m.Time), OOMKilled: m.Exit&wire.OOMKilled != 0}
}

// ReadExit reads the exit that a monitor recorded at Launch.ExitPath; errs.NotFound when there is none.
func ReadExit(path string) (Exit, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Exit{}, errs.As(errs.NotFound, err)
	}
	if err != nil {
		return Exit{}, err
	}
	m, ok := wire.ParseExit(b)
	if !ok {
		return Exit{}, fmt.Errorf("%s: not an exit record", path)
	}
	return exitOf(&m), nil
}

// PID implements [Process].
func (p *proc) PID() int {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return p.pid
}

// PIDFD implements [Process].
func (p *proc) PIDFD() *os.File {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return p.pidfd
}

// Exited implements [Process].
func (p *proc) Exited() <-chan struct{} { return p.exited }

// Exit implements [Process].
func (p *proc) Exit() Exit { return p.exit }

// Resize implements [Process].
func (p *proc) Resize(ctx context.Context, rows, cols uint16) error {
	_, err := p.m.link.call(ctx, &wire.Message{Kind: wire.Resize, Session: p.session, Rows: rows, Cols: cols})
	return err
}

// CloseStdin implements [Monitor].
func (m *monitor) CloseStdin(ctx context.Context) error {
	_, err := m.link.call(ctx, &wire.Message{Kind: wire.CloseStdin})
	return err
}

// MonitorPID implements [Monitor].
func (m *monitor) MonitorPID() int { return m.pid }

// Sessions implements [Monitor].
func (m *monitor) Sessions() map[string]Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]Process, len(m.sessions))
	for id, p := range m.sessions {
		all[id] = p
	}
	return all
}

// Close implements [Monitor].
func (m *monitor) Close() error {
	ended := m.hasExited()
	var err error
	if ended {
		m.mu.Lock()
		lost := m.exit.Lost
		m.mu.Unlock()
		// Once the folder is gone the name is free: what the monitor still has to deliver to slow clients it delivers from elsewhere.
		err = removeFolder(m.folder)
		switch {
		case lost:
		case m.child && !m.pool.ready.full():
			m.link.tell(&wire.Message{Kind: wire.Again})
		default:
			m.link.tell(&wire.Message{Kind: wire.Quit})
		}
	}
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	if ended && m.child {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.pidfd != nil {
			m.pidfd.Close()
		}
		return err // it ends, or is idle, when it has delivered everything: lost hears of it
	}
	serr := m.link.shut()
	select {
	case <-m.gone:
	case <-m.pool.poller.ended: // nobody hears it any more
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pidfd != nil {
		m.pidfd.Close()
	}
	return errors.Join(err, serr)
}
