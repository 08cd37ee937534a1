package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor/wire"
)

// parcel is the descriptors of a request, in the order in which they travel, and what to close once it was sent.
type parcel struct {
	fds     []int
	done    []func(sent bool)
	preread int // bytes of stdin that travel in the packet
}

func (p *parcel) close(sent bool) {
	for _, f := range p.done {
		f(sent)
	}
}

// program adds a program to the request: inside the packet, or as a file when it is large.
func (p *parcel) program(m *wire.Message, b []byte) error {
	if len(b) <= wire.MaxInline {
		m.Program = b
		return nil
	}
	fd, err := unix.MemfdCreate("program", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("program: %w", err)
	}
	p.done = append(p.done, func(bool) { unix.Close(fd) })
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			return fmt.Errorf("program: %w", err)
		}
		b = b[n:]
	}
	m.Flags |= wire.ProgramFD
	p.fds = append(p.fds, fd)
	return nil
}

func stdioFlags(s Stdio) (f uint8) {
	for _, x := range []struct {
		on  bool
		bit uint8
	}{{s.Terminal, wire.Terminal}, {s.Stdin, wire.Stdin}, {s.StdinOnce, wire.StdinOnce}, {s.AttachOnly, wire.AttachOnly}} {
		if x.on {
			f |= x.bit
		}
	}
	return f
}

// launch sends the one message of the hot path and waits for its answer.
func (m *monitor) launch(ctx context.Context, l Launch) (err error) {
	req := wire.Message{Kind: wire.Launch, Stdio: stdioFlags(l.Stdio), Rows: l.Stdio.Rows, Cols: l.Stdio.Cols, Folder: m.folder, LogPath: l.Log.Path,
		LogSize: l.Log.MaxSize, LogFiles: uint32(max(l.Log.MaxFiles, 0)), LogBuffer: l.Log.BufferSize, ExitPath: l.ExitPath, OOMPath: l.OOMPath}
	if l.Log.NonBlocking {
		req.Flags |= wire.NonBlocking
	}
	if l.Durable {
		req.Flags |= wire.Durable
	}
	if l.ExitPath != "" {
		if err := os.Remove(l.ExitPath); err != nil && !errors.Is(err, os.ErrNotExist) { // of an earlier run
			return err
		}
		m.exitPath = l.ExitPath
	}
	var pc parcel
	defer func() { pc.close(err == nil) }()
	if err := pc.program(&req, l.Program); err != nil {
		return err
	}
	if l.OOMEvent != nil {
		req.Flags |= wire.OOMEventFD
		pc.fds = append(pc.fds, int(l.OOMEvent.Fd()))
	}
	for _, a := range l.Attached {
		end := a.End
		if err := m.hand(&req, &pc, a.Conn, a.Options, func(e AttachEnd) { end <- e }); err != nil {
			return err
		}
	}
	return m.start(ctx, &m.proc, &req, &pc, l.Files)
}

// start sends a Launch or Exec and learns the process.
func (m *monitor) start(ctx context.Context, p *proc, req *wire.Message, pc *parcel, files []*os.File) error {
	for _, f := range files {
		if f == nil {
			return errs.New(errs.Invalid, "a file of the program is missing")
		}
		pc.fds = append(pc.fds, int(f.Fd()))
	}
	a, err := m.link.call(ctx, req, pc.fds...)
	if err != nil {
		a.close()
		return err
	}
	m.mu.Lock()
	p.pid, p.pidfd = int(a.PID), a.pidfd()
	m.mu.Unlock()
	return nil
}

// Exec implements [Monitor].
func (m *monitor) Exec(ctx context.Context, id string, program []byte, files []*os.File, stdio Stdio) (_ Process, err error) {
	if id == "" {
		return nil, errs.New(errs.Invalid, "exec in %s: no session id", m.id)
	}
	p := &proc{m: m, session: id, exited: make(chan struct{})}
	m.mu.Lock()
	taken := m.sessions[id] != nil
	if !taken {
		m.addLocked(p) // before the start: its exit may come before the answer is read here
	}
	m.mu.Unlock()
	if taken {
		return nil, errs.New(errs.Conflict, "exec in %s: session %s exists", m.id, id)
	}
	req := wire.Message{Kind: wire.Exec, Session: id, Stdio: stdioFlags(stdio), Rows: stdio.Rows, Cols: stdio.Cols}
	var pc parcel
	defer func() { pc.close(err == nil) }()
	if err = pc.program(&req, program); err == nil {
		err = m.start(ctx, p, &req, &pc, files)
	}
	if err != nil {
		m.mu.Lock()
		delete(m.sessions, id)
		m.mu.Unlock()
		return nil, fmt.Errorf("exec in %s: %w", m.id, err)
	}
	return p, nil
}

// open learns the state of a monitor that another engine launched.
func (m *monitor) open(ctx context.Context) error {
	if err := m.link.with(func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			m.pid = int(cred.Pid)
		}
		return err
	}); err != nil {
		return err
	}
	if _, err := m.link.call(ctx, &wire.Message{Kind: wire.State}); err != nil {
		return err
	}
	if m.PID() == 0 {
		return errs.New(errs.NotFound, "it has no container")
	}
	return nil
}
