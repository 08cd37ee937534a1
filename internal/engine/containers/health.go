package containers

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/probe"
	"corten.dev/corten/internal/task"
)

// probeSession begins the ids of sessions that are probes of a command: an engine that finds one of its predecessor's ends it, because nobody waits for its answer.
const probeSession = "health-"

// firstHealth is the health of a run that begins; nil where nothing is checked.
func firstHealth(cfg *container.Config) *container.Health {
	if _, on := container.CheckOf(cfg.Healthcheck); !on {
		return nil
	}
	return &container.Health{Status: container.HealthStarting}
}

// validateHealth refuses a check that could not be made.
func validateHealth(h *image.Healthcheck) error {
	if err := container.ValidateCheck(h); err != nil || h == nil || len(h.Test) == 0 {
		return err
	}
	var err error
	switch h.Test[0] {
	case container.ProbeHTTP:
		_, err = probe.ParseHTTP(h.Test[1])
	case container.ProbeTCP:
		_, err = probe.ParseTCP(h.Test[1])
	case container.ProbeGRPC:
		_, err = probe.ParseGRPC(h.Test[1])
	}
	return err
}

// watchHealth probes a container as long as this run of it lasts and this engine lives. What was found stays in the record, so that the next engine goes on from there: a container that is
// healthy does not become "starting" because an engine was replaced.
func (s *Service) watchHealth(ctr *live, mon monitor.Monitor, proc Process) {
	check, on := container.CheckOf(ctr.record().Config.Healthcheck)
	if !on {
		return
	}
	s.background(func(ctx context.Context) {
		for s.healthTurn(ctx, ctr, mon, proc, check) {
		}
	})
}

// healthTurn waits until a probe is due, makes it, and acts upon it; false when it was the last.
func (s *Service) healthTurn(ctx context.Context, ctr *live, mon monitor.Monitor, proc Process, check container.Check) bool {
	rec := ctr.record()
	if rec.State.Health == nil {
		return false
	}
	timer := time.NewTimer(check.Wait(*rec.State.Health, rec.State.StartedAt, time.Now()))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-mon.Exited():
		return false
	case <-timer.C:
	}
	if ctr.record().State.Status != container.Running {
		return true // frozen: it cannot answer, which says nothing of its health
	}
	result := s.probe(ctx, ctr, mon, proc, check)
	if ctx.Err() != nil {
		return false
	}
	return s.probed(ctr, mon, result, check)
}

// probe makes one probe, bounded by the check's time limit.
func (s *Service) probe(ctx context.Context, ctr *live, mon monitor.Monitor, proc Process, check container.Check) container.ProbeResult {
	ctx, cancel := context.WithTimeout(ctx, check.Timeout)
	defer cancel()
	result := container.ProbeResult{Start: time.Now()}
	var err error
	switch check.Test[0] {
	case container.ProbeCommand, container.ProbeShell:
		result.ExitCode, result.Output, err = s.probeByCommand(ctx, ctr, mon, proc, check)
	default:
		result.Output, err = s.probeByNetwork(ctx, ctr, mon, check)
		if err != nil {
			result.ExitCode = 1
		}
	}
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		result.ExitCode = -1
		text := fmt.Sprintf("Health check exceeded timeout (%v)", check.Timeout)
		if result.Output != "" {
			text += ": " + result.Output
		}
		result.Output = text
	case err != nil && result.Output == "":
		result.Output = err.Error()
	case err != nil:
		result.Output = err.Error() + "\n" + result.Output
	}
	if len(result.Output) > container.MaxProbeOutput { // with Docker's dots
		result.Output = result.Output[:container.MaxProbeOutput] + "..."
	}
	result.End = time.Now()
	return result
}

// probeByNetwork looks at a service from inside the container's network.
func (s *Service) probeByNetwork(ctx context.Context, ctr *live, mon monitor.Monitor, check container.Check) (output string, err error) {
	defer task.Contain(s.Log, "health check of container "+ctr.record().Name, &err)
	netns, err := pidfd.Open(mon.PIDFD(), mon.PID(), "ns/net")
	if err != nil {
		return "", err
	}
	defer netns.Close()
	return lookAt(ctx, netns, check.Test[0], check.Test[1])
}

func lookAt(ctx context.Context, netns *os.File, kind, where string) (output string, err error) {
	switch kind {
	case container.ProbeHTTP:
		to, err := probe.ParseHTTP(where)
		if err != nil {
			return "", err
		}
		return probe.HTTP(ctx, netns, to)
	case container.ProbeTCP:
		to, err := probe.ParseTCP(where)
		if err != nil {
			return "", err
		}
		return "", probe.TCP(ctx, netns, to)
	default:
		to, err := probe.ParseGRPC(where)
		if err != nil {
			return "", err
		}
		return "", probe.GRPC(ctx, netns, to)
	}
}

// probeByCommand runs a command in the container, as an exec session that nobody but this function knows.
func (s *Service) probeByCommand(ctx context.Context, ctr *live, mon monitor.Monitor, proc Process, check container.Check) (code int, output string, err error) {
	defer task.Contain(s.Log, "health check of container "+ctr.record().Name, &err)
	cmd := check.Test[1:]
	if check.Test[0] == container.ProbeShell {
		shell := ctr.record().Config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		cmd = append(shell[:len(shell):len(shell)], cmd...)
	}
	ses := &session{id: probeSession + newID(), ctr: ctr, req: ExecRequest{Cmd: cmd, AttachStdout: true, AttachStderr: true}, started: true, running: true}
	told := map[string]string{"execID": ses.id}
	s.emit(ctr, "exec_create: "+strings.Join(cmd, " "), told)
	s.emit(ctr, "exec_start: "+strings.Join(cmd, " "), told)
	if err := s.runSession(context.WithoutCancel(ctx), ses, mon, proc, ExecStart{}, true); err != nil {
		s.sessionEnded(ses, sessionCode(err))
		return -1, "", err
	}
	here, there := net.Pipe()
	said := make(chan string, 1)
	go func() { said <- readProbe(here) }()
	ended, aerr := ses.proc.Attach(ctx, there, monitor.AttachOptions{Stdout: true, Stderr: true})
	if aerr != nil {
		there.Close()
	}
	select {
	case <-ses.proc.Exited():
	case <-ctx.Done():
		if err := pidfd.Kill(ses.proc.PIDFD()); err != nil {
			s.Log.Warn("kill a health check that takes too long", "container", ctr.record().Name, "error", err)
		}
		select {
		case <-ses.proc.Exited():
		case <-time.After(exitNews):
			here.Close()
			s.sessionEnded(ses, 137)
			return -1, <-said, nil
		}
	}
	code = ses.proc.Exit().Code
	s.sessionEnded(ses, code)
	if aerr == nil {
		select { // what it left running may hold its output open; that is not waited for
		case <-ended:
		case <-time.After(exitNews):
		case <-ctx.Done():
		}
	}
	here.Close()
	return code, <-said, nil
}

// readProbe keeps the beginning of what a probe says, one byte more than is shown, and drinks the rest.
func readProbe(conn net.Conn) string {
	var kept []byte
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		kept = append(kept, buf[:min(n, container.MaxProbeOutput+1-len(kept))]...)
		if err != nil {
			return string(kept)
		}
	}
}

// probed notes a result; false when the run that it is about is over.
func (s *Service) probed(ctr *live, mon monitor.Monitor, result container.ProbeResult, check container.Check) bool {
	ctr.mu.Lock()
	rec := ctr.record()
	was := rec.State.Health
	if ctr.mon != mon || was == nil {
		ctr.mu.Unlock()
		return false
	}
	if rec.State.Status != container.Running { // it was frozen meanwhile
		ctr.mu.Unlock()
		return true
	}
	select {
	case <-mon.Exited(): // a probe of what was ending says nothing
		ctr.mu.Unlock()
		return false
	default:
	}
	now := was.After(result, check, rec.State.StartedAt)
	rec = ctr.changeLocked(func(rec *container.Record) { rec.State.Health = &now })
	ctr.mu.Unlock()
	if now.Status != was.Status {
		s.saveState(ctr)
		s.emit(ctr, "health_status: "+string(now.Status), nil)
	}
	// Also when it was so before: an engine may have been killed between this and the end of the run.
	if now.Status == container.Unhealthy && rec.Host.Restart.Name == container.RestartOnUnhealthy && !rec.StoppedByUser {
		s.endUnhealthy(ctr, mon)
		return false
	}
	return true
}

// endUnhealthy stops a container because of what its probes say; its policy starts it again, after its back-off, as often as it allows.
func (s *Service) endUnhealthy(ctr *live, mon monitor.Monitor) {
	ctr.mu.Lock()
	current := ctr.mon == mon
	if current {
		ctr.sick = true
	}
	ctr.mu.Unlock()
	if !current {
		return
	}
	s.Log.Info("an unhealthy container is stopped, to be started again", "container", ctr.record().Name)
	if err := ignore(s.stop(s.ctx, ctr, StopOptions{}, false), errs.NotModified); err != nil && s.ctx.Err() == nil { // else the next engine goes on
		s.Log.Error("stop an unhealthy container", "container", ctr.record().Name, "error", err)
	}
}

// limitRun stops a run that lasts longer than the container may (container.AnnotationTimeout); a restart policy does not apply, as after a stop by hand.
func (s *Service) limitRun(ctr *live, mon monitor.Monitor) {
	rec := ctr.record()
	asked, err := container.ReadAnnotations(rec.Host.Annotations)
	if err != nil || asked.Timeout == 0 {
		return
	}
	left := time.Until(rec.State.StartedAt.Add(asked.Timeout))
	s.background(func(ctx context.Context) {
		timer := time.NewTimer(max(left, 0))
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return
		case <-mon.Exited():
			return
		case <-timer.C:
		}
		s.Log.Info("a container is stopped because its time is up", "container", rec.Name, "limit", asked.Timeout)
		if err := ignore(s.stop(ctx, ctr, StopOptions{}, true), errs.NotModified); err != nil && ctx.Err() == nil { // else the next engine goes on
			s.Log.Error("stop a container whose time is up", "container", rec.Name, "error", err)
		}
	})
}
