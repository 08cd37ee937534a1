package monitortest

import (
	"bytes"
	"context"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs/logfile"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/wire"
)

// Fake is a [monitor.Starter] in memory: no process is made, the test plays their parts with Write and End. Logs and exit records are written as a monitor does.
type Fake struct {
	// OnLaunch, if set, is called with each launched monitor before Launch returns; its error makes the launch fail.
	OnLaunch func(*FakeMonitor) error
	// OnExec likewise for exec sessions.
	OnExec func(*FakeMonitor, *FakeProcess) error

	mu   sync.Mutex // guards what is below
	all  map[string]*FakeMonitor
	pids int
}

// FakeMonitor is a monitor of a Fake, and its first process.
type FakeMonitor struct {
	*FakeProcess
	Launch monitor.Launch

	fake     *Fake
	mu       sync.Mutex // guards sessions
	sessions map[string]*FakeProcess
}

// FakeProcess is a process that the test plays.
type FakeProcess struct {
	Session string
	Program []byte
	Stdio   monitor.Stdio

	pid    int
	exited chan struct{}

	mu         sync.Mutex // guards what is below
	exit       monitor.Exit
	log        *logfile.Writer
	exitPath   string
	clients    []*fakeClient
	input      bytes.Buffer
	rows, cols uint16
	closed     bool
}

type fakeClient struct {
	conn net.Conn
	opts monitor.AttachOptions
	end  func(monitor.AttachEnd)
}

var (
	_ monitor.Starter = (*Fake)(nil)
	_ monitor.Monitor = (*FakeMonitor)(nil)
	_ monitor.Starter = (*monitor.Pool)(nil)
)

func (f *Fake) process(session string, program []byte, stdio monitor.Stdio) *FakeProcess {
	f.pids++
	return &FakeProcess{Session: session, Program: program, Stdio: stdio, pid: 1<<22 + f.pids, exited: make(chan struct{}), rows: stdio.Rows, cols: stdio.Cols}
}

// Launch implements [monitor.Starter].
func (f *Fake) Launch(_ context.Context, l monitor.Launch) (monitor.Monitor, error) {
	f.mu.Lock()
	if f.all == nil {
		f.all = map[string]*FakeMonitor{}
	}
	if f.all[l.ID] != nil {
		f.mu.Unlock()
		return nil, errs.New(errs.Conflict, "%s has a monitor already", l.ID)
	}
	m := &FakeMonitor{FakeProcess: f.process("", l.Program, l.Stdio), Launch: l, fake: f, sessions: map[string]*FakeProcess{}}
	f.all[l.ID] = m
	f.mu.Unlock()
	m.exitPath = l.ExitPath
	err := error(nil)
	if l.Log.Path != "" {
		m.log, err = logfile.Open(logfile.Options{Path: l.Log.Path, MaxSize: l.Log.MaxSize, MaxFiles: l.Log.MaxFiles})
	}
	for _, a := range l.Attached {
		end := a.End
		m.attach(&fakeClient{a.Conn, a.Options, func(e monitor.AttachEnd) { end <- e }})
	}
	if err == nil && f.OnLaunch != nil {
		err = f.OnLaunch(m)
	}
	if err != nil {
		f.mu.Lock()
		delete(f.all, l.ID)
		f.mu.Unlock()
		return nil, err
	}
	return m, nil
}

// Open implements [monitor.Starter].
func (f *Fake) Open(_ context.Context, id string) (monitor.Monitor, error) {
	if m := f.Monitor(id); m != nil {
		return m, nil
	}
	return nil, errs.New(errs.NotFound, "monitor of %s: not found", id)
}

// Monitor is the monitor of id, or nil.
func (f *Fake) Monitor(id string) *FakeMonitor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[id]
}

// List implements [monitor.Starter].
func (f *Fake) List() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for id := range f.all {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// PID implements [monitor.Process]; no process has the number.
func (p *FakeProcess) PID() int { return p.pid }

// PIDFD implements [monitor.Process]; it is nil.
func (p *FakeProcess) PIDFD() *os.File { return nil }

// Exited implements [monitor.Process].
func (p *FakeProcess) Exited() <-chan struct{} { return p.exited }

// Exit implements [monitor.Process].
func (p *FakeProcess) Exit() monitor.Exit { return p.exit }

// Resize implements [monitor.Process].
func (p *FakeProcess) Resize(_ context.Context, rows, cols uint16) error {
	if !p.Stdio.Terminal {
		return errs.New(errs.Conflict, "resize: no terminal")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rows, p.cols = rows, cols
	return nil
}

// Size is what the terminal was resized to.
func (p *FakeProcess) Size() (rows, cols uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rows, p.cols
}

// Input is what clients sent so far, and whether stdin was closed.
func (p *FakeProcess) Input() (text string, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.input.String(), p.closed
}

// Attach implements [monitor.Process].
func (p *FakeProcess) Attach(_ context.Context, conn net.Conn, opts monitor.AttachOptions) (<-chan monitor.AttachEnd, error) {
	ch := make(chan monitor.AttachEnd, 1)
	p.attach(&fakeClient{conn, opts, func(e monitor.AttachEnd) { ch <- e; close(ch) }})
	return ch, nil
}

func (p *FakeProcess) attach(c *fakeClient) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.exited:
		c.conn.Close()
		c.end(monitor.AttachEnd{})
		return
	default:
	}
	p.clients = append(p.clients, c)
	if !c.opts.Stdin {
		return
	}
	p.input.Write(c.opts.Preread)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := c.conn.Read(buf)
			p.mu.Lock()
			p.input.Write(buf[:n])
			p.closed = p.closed || err != nil && p.Stdio.StdinOnce && !p.Stdio.Terminal
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

// Write has the process say something on stream 1 or 2.
func (p *FakeProcess) Write(stream int, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.log != nil {
		p.log.Write(stream, time.Now().UnixNano(), []byte(text))
	}
	for _, c := range p.clients {
		if stream == 1 && !c.opts.Stdout || stream == 2 && !c.opts.Stderr {
			continue
		}
		if c.opts.Framed && !p.Stdio.Terminal {
			n := len(text)
			c.conn.Write([]byte{byte(stream), 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		}
		c.conn.Write([]byte(text))
	}
}

// End ends the process: its exit is recorded and told, its clients are let go. Ending it again does nothing.
func (p *FakeProcess) End(x monitor.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.exited:
		return
	default:
	}
	if x.At.IsZero() {
		x.At = time.Now()
	}
	p.exit = x
	if p.log != nil {
		p.log.Close()
	}
	if p.exitPath != "" && !x.Lost {
		m := wire.Message{Code: uint8(x.Code), Signal: uint8(x.Signal), Time: x.At.UnixNano()}
		if x.OOMKilled {
			m.Exit |= wire.OOMKilled
		}
		os.WriteFile(p.exitPath, wire.AppendExit(nil, &m), 0o600)
	}
	close(p.exited)
	for _, c := range p.clients {
		c.conn.Close()
		c.end(monitor.AttachEnd{})
	}
	p.clients = nil
}

// Exec implements [monitor.Monitor].
func (m *FakeMonitor) Exec(_ context.Context, id string, program []byte, _ []*os.File, stdio monitor.Stdio) (monitor.Process, error) {
	m.fake.mu.Lock()
	p := m.fake.process(id, program, stdio)
	m.fake.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions[id] != nil {
		return nil, errs.New(errs.Conflict, "session %s exists", id)
	}
	if m.fake.OnExec != nil {
		if err := m.fake.OnExec(m, p); err != nil {
			return nil, err
		}
	}
	m.sessions[id] = p
	return p, nil
}

// Sessions implements [monitor.Monitor].
func (m *FakeMonitor) Sessions() map[string]monitor.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]monitor.Process{}
	for id, p := range m.sessions {
		select {
		case <-p.exited:
		default:
			all[id] = p
		}
	}
	return all
}

// CloseStdin implements [monitor.Monitor].
func (m *FakeMonitor) CloseStdin(context.Context) error {
	m.FakeProcess.mu.Lock()
	defer m.FakeProcess.mu.Unlock()
	m.closed = true
	return nil
}

// MonitorPID implements [monitor.Monitor]; no process has the number.
func (m *FakeMonitor) MonitorPID() int { return 1<<22 - 1 }

// Close implements [monitor.Monitor].
func (m *FakeMonitor) Close() error {
	select {
	case <-m.exited:
		m.fake.mu.Lock()
		delete(m.fake.all, m.Launch.ID)
		m.fake.mu.Unlock()
	default: // it goes on, and can be opened again
	}
	return nil
}
