package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
)

// process is a step that runs: its first process.
type process struct {
	exec    *Executor
	id      string
	ctx     context.Context // of the step's life
	step    step.Step
	user    hostspec.Identity
	sandbox *network.Sandbox
	label   string // SELinux
	spec    *specs.Spec
	ctr     *runtime.Container
	io      stdio

	mu    sync.Mutex // guards ended, and the handle of the process until then
	ended bool
	rest  sync.WaitGroup // sessions that run beside

	done chan struct{}
	code int
	err  error
}

// attend waits for the end and takes everything down.
func (p *process) attend() {
	defer p.exec.work.Done()
	stop := context.AfterFunc(p.ctx, p.kill)
	code, err := wait(p.ctr.Pid(), &p.mu, &p.ended)
	stop()
	p.exec.remove(p)
	ctx := context.WithoutCancel(p.ctx)
	clean := make(chan error, 1)
	go func() { clean <- p.exec.opts.Networks.Leave(ctx, p.id) }()
	p.rest.Wait()
	err = errors.Join(err, p.io.finish(), p.ctr.Delete(ctx, true), <-clean)
	p.exec.opts.Maker.Security.ReleaseLabels(p.label)
	p.code, p.err = code, err
	close(p.done)
}

// wait reaps a child, and notes under mu that nobody must be signalled any more.
func wait(pid int, mu *sync.Mutex, ended *bool) (int, error) {
	var status syscall.WaitStatus
	_, err := syscall.Wait4(pid, &status, 0, nil)
	for err == syscall.EINTR {
		_, err = syscall.Wait4(pid, &status, 0, nil)
	}
	mu.Lock()
	*ended = true
	mu.Unlock()
	switch {
	case err != nil:
		return -1, fmt.Errorf("wait for process %d: %w", pid, err)
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// kill ends the first process, and all with it.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	if err := pidfd.Kill(p.ctr.PIDFD()); err != nil {
		p.exec.log.Error("kill a step", "step", p.id, "err", err)
	}
}

// Wait implements [step.Process].
func (p *process) Wait() (int, error) {
	<-p.done
	return p.code, p.err
}

// Signal implements [step.Process].
func (p *process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return errs.New(errs.Conflict, "the process has ended")
	}
	return pidfd.Signal(p.ctr.PIDFD(), sig)
}

// Resize implements [step.Process].
func (p *process) Resize(rows, cols uint16) error { return p.io.resize(rows, cols) }

// Exec implements [step.Process].
func (p *process) Exec(ctx context.Context, c step.Command) (step.Process, error) {
	s := &session{first: p, done: make(chan struct{})}
	proc, err := p.another(&c)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return nil, errs.New(errs.Conflict, "the step has ended")
	}
	p.rest.Add(1)
	p.mu.Unlock()
	if err := s.start(ctx, &c, proc); err != nil {
		p.rest.Done()
		return nil, err
	}
	return s, nil
}

// another is the process of a session: the first one's surroundings with the command's own wishes.
func (p *process) another(c *step.Command) (*specs.Process, error) {
	root, err := pidfd.Root(p.ctr.PIDFD(), p.ctr.Pid())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	who, err := hostspec.ResolveUser(root, c.User, nil)
	if err != nil {
		return nil, err
	}
	proc := *p.spec.Process
	proc.Terminal, proc.Args, proc.Cwd, proc.User, proc.ConsoleSize = c.Tty, c.Args, clean(c.Cwd), who.User, nil
	proc.Env = environment(c, who.Home)
	host := p.host(c.Security)
	names, err := p.exec.opts.Maker.Security.Capabilities(host, host.Privileged)
	if err != nil {
		return nil, err
	}
	proc.Capabilities = hostspec.Capabilities(names, who.UID)
	return &proc, nil
}

// session is another process of a step.
type session struct {
	first *process
	pid   int
	pidfd *os.File
	io    stdio

	mu    sync.Mutex
	ended bool

	done chan struct{}
	code int
	err  error
}

func (s *session) start(ctx context.Context, c *step.Command, proc *specs.Process) (err error) {
	e := s.first.exec
	if err := s.io.open(e, c); err != nil {
		return err
	}
	s.pid, s.pidfd, err = s.first.ctr.Exec(ctx, runtime.Exec{Process: proc, Launcher: e.launcher.with(s.io.child, s.io.console), DieWithLauncher: true})
	if err != nil {
		return errors.Join(inner(err), s.io.abandon())
	}
	if err := s.io.start(c); err != nil {
		e.log.Warn("the terminal of a session", "step", s.first.id, "err", err)
	}
	go func() {
		defer s.first.rest.Done()
		stop := context.AfterFunc(ctx, func() { _ = s.Signal(syscall.SIGKILL) }) // gone is what it should be
		defer stop()
		s.code, s.err = wait(s.pid, &s.mu, &s.ended)
		s.err = errors.Join(s.err, s.io.finish(), s.pidfd.Close())
		close(s.done)
	}()
	return nil
}

// Wait implements [step.Process].
func (s *session) Wait() (int, error) {
	<-s.done
	return s.code, s.err
}

// Signal implements [step.Process].
func (s *session) Signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errs.New(errs.Conflict, "the process has ended")
	}
	return pidfd.Signal(s.pidfd, sig)
}

// Resize implements [step.Process].
func (s *session) Resize(rows, cols uint16) error { return s.io.resize(rows, cols) }

// Exec implements [step.Process].
func (s *session) Exec(ctx context.Context, c step.Command) (step.Process, error) {
	return s.first.Exec(ctx, c)
}
