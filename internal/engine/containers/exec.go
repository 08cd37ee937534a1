package containers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/runtime"
)

// keepSessions is how long an ended session can still be inspected.
const keepSessions = 5 * time.Minute

// session is another process in a container, from its creation until it is forgotten.
type session struct {
	id  string
	ctr *live
	req ExecRequest

	mu      sync.Mutex // guards what follows
	started bool
	running bool
	pid     int
	code    *int
	ended   time.Time
	proc    monitor.Process
}

type execTable struct {
	mu   sync.Mutex // guards byID
	byID map[string]*session
}

func (t *execTable) add(ses *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, old := range t.byID {
		old.mu.Lock()
		if !old.ended.IsZero() && time.Since(old.ended) > keepSessions {
			delete(t.byID, id)
		}
		old.mu.Unlock()
	}
	t.byID[ses.id] = ses
}

func (t *execTable) drop(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byID, id)
}

func (t *execTable) find(id string) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ses := t.byID[id]; ses != nil {
		return ses, nil
	}
	return nil, errs.New(errs.NotFound, "No such exec instance: %s", id)
}

func (ctr *live) dropExec(id string) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.execs = slices.DeleteFunc(slices.Clone(ctr.execs), func(have string) bool { return have == id })
}

// dropSessions forgets the sessions that were never started, once the container ended; ended ones stay for those who ask for their code.
func (s *Service) dropSessions(ctr *live) {
	ctr.mu.Lock()
	ids := ctr.execs
	ctr.execs = nil
	ctr.mu.Unlock()
	s.execs.mu.Lock()
	defer s.execs.mu.Unlock()
	for _, id := range ids {
		if ses := s.execs.byID[id]; ses != nil {
			ses.mu.Lock()
			if !ses.started {
				delete(s.execs.byID, id)
			}
			ses.mu.Unlock()
		}
	}
}

// ExecCreate notes a process to be run in a container.
func (s *Service) ExecCreate(ctx context.Context, ref string, req ExecRequest) (string, error) {
	ctr, err := s.find(ref)
	if err != nil {
		return "", err
	}
	if len(req.Cmd) == 0 {
		return "", errs.New(errs.Invalid, "No exec command specified")
	}
	if err := validateEnv(req.Env, true); err != nil {
		return "", err
	}
	switch status := ctr.record().State.Status; {
	case status == container.Paused:
		return "", errs.New(errs.Conflict, "Container %s is paused, unpause the container before exec", ref)
	case status != container.Running:
		return "", errs.New(errs.Conflict, "container %s is not running", ctr.id)
	}
	if _, err := parseDetachKeys(req.DetachKeys); err != nil {
		return "", err
	}
	ses := &session{id: newID(), ctr: ctr, req: req}
	s.execs.add(ses)
	ctr.mu.Lock()
	live := ctr.record().State.Status.Live()
	if live {
		ctr.execs = append(slices.Clone(ctr.execs), ses.id)
	}
	ctr.mu.Unlock()
	if !live { // it ended meanwhile: nobody would forget the session (dropSessions)
		s.execs.drop(ses.id)
		return "", errs.New(errs.Conflict, "container %s is not running", ctr.id)
	}
	s.emit(ctr, "exec_create: "+strings.Join(req.Cmd, " "), map[string]string{"execID": ses.id})
	return ses.id, nil
}

// ExecStart runs a session, and stays with it unless detached.
func (s *Service) ExecStart(ctx context.Context, id string, opts ExecStart) error {
	ses, err := s.execs.find(id)
	if err != nil {
		return err
	}
	mon, proc, err := ses.ctr.handles()
	if err != nil {
		return err
	}
	if ses.ctr.record().State.Status == container.Paused {
		return errs.New(errs.Conflict, "Container %s is paused, unpause the container before exec", ses.ctr.id)
	}
	if err := ses.claim(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	attached := !opts.Detach && opts.Hijack != nil
	s.emit(ses.ctr, "exec_start: "+strings.Join(ses.req.Cmd, " "), map[string]string{"execID": ses.id})
	if serr := s.runSession(ctx, ses, mon, proc, opts, attached); serr != nil {
		return s.sessionFailed(ses, serr, opts, attached)
	}
	s.background(func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-ses.proc.Exited():
			s.sessionEnded(ses, ses.proc.Exit().Code)
		}
	})
	if !attached {
		return nil
	}
	conn, preread, err := opts.Hijack(ses.req.Tty)
	if err != nil {
		return err
	}
	keys, err := parseDetachKeys(ses.req.DetachKeys)
	if err != nil {
		return err
	}
	ended, err := ses.proc.Attach(ctx, conn, monitor.AttachOptions{
		Stdin: ses.req.AttachStdin, Stdout: ses.req.AttachStdout, Stderr: ses.req.AttachStderr, Framed: !ses.req.Tty, Preread: preread, DetachKeys: keys,
	})
	if err != nil {
		conn.Close()
		select {
		case <-ses.proc.Exited(): // the container ended, and the session with it, before it could be attached
			return nil
		case <-time.After(time.Second):
			return fmt.Errorf("attach to exec session %s: %w", ses.id, err)
		}
	}
	if end := <-ended; end.Detached {
		s.emit(ses.ctr, "exec_detach", map[string]string{"execID": ses.id})
		return nil
	}
	// The client asks for the code as soon as its connection ends.
	select {
	case <-ses.proc.Exited():
		s.sessionEnded(ses, ses.proc.Exit().Code)
	case <-s.ctx.Done():
	case <-time.After(time.Second):
	}
	return nil
}

func (ses *session) claim() error {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	switch {
	case ses.running:
		return errs.New(errs.Conflict, "exec command %s is already running", ses.id)
	case ses.started:
		return errs.New(errs.Conflict, "exec command has already run")
	}
	ses.started, ses.running = true, true
	return nil
}

// runSession makes the process.
func (s *Service) runSession(ctx context.Context, ses *session, mon monitor.Monitor, proc Process, opts ExecStart, attached bool) error {
	p, err := s.sessionProcess(ses, mon)
	if err != nil {
		return err
	}
	size := opts.ConsoleSize
	if size == [2]uint{} {
		size = ses.req.ConsoleSize
	}
	stdio := monitor.Stdio{Terminal: ses.req.Tty, Rows: uint16(size[0]), Cols: uint16(size[1]), Stdin: attached && ses.req.AttachStdin, StdinOnce: true, AttachOnly: attached}
	var made monitor.Process
	launcher := runtime.LauncherFunc(func(ctx context.Context, program []byte, files []*os.File) (int, *os.File, error) {
		made, err = mon.Exec(ctx, ses.id, program, files, stdio)
		if err != nil {
			return 0, nil, err
		}
		return made.PID(), made.PIDFD(), nil
	})
	pid, err := proc.Exec(ctx, runtime.Exec{Process: p, Launcher: launcher, DieWithLauncher: true})
	if err != nil {
		dropPIDFD(made)
		return fmt.Errorf("%s: %w", notExecuted, err)
	}
	ses.mu.Lock()
	ses.pid, ses.proc = pid, made
	ses.mu.Unlock()
	return nil
}

// sessionProcess describes the process: the container's surroundings with the session's own wishes.
func (s *Service) sessionProcess(ses *session, mon monitor.Monitor) (*specs.Process, error) {
	rec := ses.ctr.record()
	cfg, host, req := &rec.Config, &rec.Host, &ses.req
	root, err := rootOf(mon, rec.ID)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	who := req.User
	if who == "" {
		who = cfg.User
	}
	id, err := hostspec.ResolveUser(root, who, host.GroupAdd)
	if err != nil {
		return nil, err
	}
	sec, err := hostspec.ParseSecurityOpt(host.SecurityOpt)
	if err != nil {
		return nil, err
	}
	names, err := s.maker.Security.Capabilities(host, host.Privileged || req.Privileged)
	if err != nil {
		return nil, err
	}
	profile, err := s.maker.Security.AppArmor(sec.AppArmor, host.Privileged || req.Privileged)
	if err != nil {
		return nil, err
	}
	cwd := req.WorkingDir
	if cwd != "" && !path.IsAbs(cwd) {
		return nil, errs.New(errs.Invalid, "OCI runtime exec failed: exec failed: Cwd must be an absolute path: %s", cwd)
	}
	if cwd == "" {
		cwd = cfg.WorkingDir
	}
	more, err := s.linkEnv(rec)
	if err != nil {
		s.Log.Debug("variables of a container's links", "container", rec.Name, "error", err) // it runs; what it is linked to does not
	}
	env := hostspec.Environment(cfg.Hostname, req.Tty, id.Home, more, cfg.Env, req.Env)
	noNewPrivs := s.NoNewPrivs && !host.Privileged
	if sec.NoNewPrivs != nil {
		noNewPrivs = *sec.NoNewPrivs
	}
	p := &specs.Process{
		Terminal: req.Tty, User: id.User, Args: req.Cmd, Env: env, Cwd: path.Clean("/" + cwd), Capabilities: hostspec.Capabilities(names, id.UID),
		Rlimits: s.maker.Rlimits(host.Resources.Ulimits), NoNewPrivileges: noNewPrivs, ApparmorProfile: profile, SelinuxLabel: rec.ProcessLabel, OOMScoreAdj: &host.OomScoreAdj,
	}
	return p, nil
}

// rootOf opens the root of a running container as its processes see it, volumes included.
func rootOf(mon monitor.Process, id string) (*os.File, error) {
	root, err := pidfd.Root(mon.PIDFD(), mon.PID())
	if errors.Is(err, errs.Conflict) { // it has ended meanwhile
		return nil, errs.New(errs.Conflict, "container %s is not running", id)
	}
	if err != nil {
		return nil, fmt.Errorf("open the root of the running container: %w", err)
	}
	return root, nil
}

// sessionCode is the code that a shell would give for a command that cannot be run.
func sessionCode(cause error) int {
	if errors.Is(cause, errs.NoCommand) {
		return 127
	}
	return 126
}

// sessionFailed keeps the code that a shell would give. A client that waits on its stream reads the reason there, as with Docker.
func (s *Service) sessionFailed(ses *session, cause error, opts ExecStart, attached bool) error {
	s.sessionEnded(ses, sessionCode(cause))
	if !attached {
		return cause
	}
	conn, _, err := opts.Hijack(ses.req.Tty)
	if err != nil {
		return err
	}
	defer conn.Close()
	text := cause.Error() + "\r\n"
	return writeFramed(conn, !ses.req.Tty, text)
}

func writeFramed(conn net.Conn, framed bool, text string) error {
	b := []byte(text)
	if framed {
		n := len(text)
		b = append([]byte{1, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, text...)
	}
	_, err := conn.Write(b)
	return err
}

// sessionEnded notes the end once.
func (s *Service) sessionEnded(ses *session, code int) {
	ses.mu.Lock()
	first := ses.code == nil
	if first {
		ses.running, ses.code, ses.ended = false, &code, time.Now()
	}
	proc := ses.proc
	ses.mu.Unlock()
	if first {
		dropPIDFD(proc)
		ses.ctr.dropExec(ses.id)
		s.emit(ses.ctr, "exec_die", map[string]string{"execID": ses.id, "exitCode": strconv.Itoa(code)})
	}
}

// dropPIDFD closes the descriptor of a session's process; waiting for the collector to find it would pile up hundreds.
func dropPIDFD(proc monitor.Process) {
	if proc == nil {
		return
	}
	if fd := proc.PIDFD(); fd != nil {
		fd.Close()
	}
}

// ExecInspect shows a session.
func (s *Service) ExecInspect(ctx context.Context, id string) (ExecView, error) {
	ses, err := s.execs.find(id)
	if err != nil {
		return ExecView{}, err
	}
	s.awaitExit(ctx, ses)
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return ExecView{ExecRequest: ses.req, ID: ses.id, Container: ses.ctr.id, Running: ses.running, ExitCode: ses.code, PID: ses.pid}, nil
}

// exitNews bounds how long the news of an exit may be on its way from the monitor.
const exitNews = 2 * time.Second

// awaitExit waits for the exit code of a session whose process is dead already: the client saw its stream end, asks for the code, and must not overtake the news.
func (s *Service) awaitExit(ctx context.Context, ses *session) {
	ses.mu.Lock()
	proc, running := ses.proc, ses.running
	ses.mu.Unlock()
	if !running || proc == nil || pidfd.Alive(proc.PIDFD()) == nil {
		return
	}
	select {
	case <-proc.Exited():
		s.sessionEnded(ses, proc.Exit().Code)
	case <-time.After(exitNews):
	case <-ctx.Done():
	}
}

// ExecResize changes the size of a session's terminal.
func (s *Service) ExecResize(ctx context.Context, id string, height, width uint) error {
	ses, err := s.execs.find(id)
	if err != nil {
		return err
	}
	ses.mu.Lock()
	proc := ses.proc
	ses.mu.Unlock()
	if proc == nil {
		return errs.New(errs.Conflict, "exec process is not started: %s", id)
	}
	return proc.Resize(ctx, uint16(height), uint16(width))
}
