package containers_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
)

// until waits for a condition of a container.
func (h *host) until(id, what string, ok func(containers.View) bool) containers.View {
	h.t.Helper()
	for range 3000 {
		if view := h.inspect(id); ok(view) {
			return view
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Fatalf("%s: not %s after 30 seconds: %+v %+v", id, what, h.inspect(id).State, h.inspect(id).State.Health)
	return containers.View{}
}

func healthIs(want container.HealthStatus) func(containers.View) bool {
	return func(view containers.View) bool { return view.State.Health != nil && view.State.Health.Status == want }
}

func checked(script string, test ...string) containers.CreateRequest {
	req := sh(script)
	req.Config.Healthcheck = &image.Healthcheck{Test: test, Interval: 20 * time.Millisecond, Timeout: 20 * time.Second, Retries: 2}
	return req
}

func TestHealthByCommand(t *testing.T) {
	h := newHost(t)
	req := checked("sleep 1000", "CMD-SHELL", "echo looking; cat /tmp/well")
	id := h.run(req)
	if st := h.inspect(id).State.Health; st == nil || st.Status != container.HealthStarting && st.Status != container.Unhealthy {
		t.Fatalf("at first: %+v", st)
	}
	view := h.until(id, "unhealthy", healthIs(container.Unhealthy))
	if p := view.State.Health.Log[0]; p.ExitCode != 1 || !strings.Contains(p.Output, "looking\n") || !strings.Contains(p.Output, "well") || p.End.Before(p.Start) {
		t.Errorf("probe %+v", p)
	}
	h.exec(id, "touch", "/tmp/well")
	h.until(id, "healthy", healthIs(container.Healthy))
	listed, err := h.svc.List(bg, containers.ListOptions{Filters: filter.Args{"health": {"healthy"}}})
	if err != nil || len(listed) != 1 {
		t.Errorf("ps --filter health=healthy: %d, %v", len(listed), err)
	}
	// The next engine goes on from there.
	h.close()
	h.open()
	if st := h.inspect(id).State.Health; st.Status != container.Healthy {
		t.Errorf("after a restart of the engine: %+v", st)
	}
	h.exec(id, "sh", "-c", "busybox rm /tmp/well || /bin/busybox rm /tmp/well")
	h.until(id, "unhealthy", healthIs(container.Unhealthy))
	// What is frozen cannot answer, which says nothing.
	must(t, h.svc.Pause(bg, id))
	streak, quiet := 0, 0
	waitFor(t, "no more probes of a frozen container", func() bool { // one that had ended just before may come late
		last := streak
		streak = h.inspect(id).State.Health.FailingStreak
		if quiet++; streak != last {
			quiet = 0
		}
		return quiet == 20
	})
	must(t, h.svc.Unpause(bg, id))
	h.until(id, "probed again", func(v containers.View) bool { return v.State.Health.FailingStreak > streak })
}

// A probe that never ends is killed at its time limit, with what it had said, and counts as a failure; so does a command that is not there.
func TestHealthThatHangs(t *testing.T) {
	h := newHost(t)
	req := checked("sleep 1000", "CMD", "sh", "-c", "echo before; sleep 1000")
	req.Config.Healthcheck.Timeout, req.Config.Healthcheck.Retries = 3*time.Second, 1 // time to say something on a busy machine
	id := h.run(req)
	view := h.until(id, "unhealthy", healthIs(container.Unhealthy))
	if p := view.State.Health.Log[0]; p.ExitCode != -1 || p.Output != "Health check exceeded timeout (3s): before\n" {
		t.Errorf("probe %+v", p)
	}
	id = h.run(checked("sleep 1000", "CMD", "/no/such"))
	view = h.until(id, "unhealthy", healthIs(container.Unhealthy))
	if p := view.State.Health.Log[0]; p.ExitCode != -1 || !strings.Contains(p.Output, "no such file") {
		t.Errorf("probe %+v", p)
	}
	// Endless output costs no memory, and what is kept is bounded.
	req = checked("sleep 1000", "CMD-SHELL", "while :; do echo 0123456789012345678901234567890123456789; done")
	req.Config.Healthcheck.Timeout, req.Config.Healthcheck.Retries = 3*time.Second, 1
	id = h.run(req)
	view = h.until(id, "unhealthy", healthIs(container.Unhealthy))
	if n := len(view.State.Health.Log[0].Output); n != container.MaxProbeOutput+len("...") {
		t.Errorf("%d bytes of output are kept", n)
	}
}

func TestHealthByNetwork(t *testing.T) {
	h := newHost(t)
	serve := "while :; do printf 'HTTP/1.0 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi' | /bin/busybox nc -l -p 80; done"
	for _, network := range []string{"bridge", "none"} { // from the inside: it needs no way in
		req := checked(serve, "HTTP", ":80/")
		req.Host.NetworkMode = network
		id := h.run(req)
		view := h.until(id, "healthy", healthIs(container.Healthy))
		if log := view.State.Health.Log; !slices.ContainsFunc(log, func(p container.ProbeResult) bool { return p.ExitCode == 0 && p.Output == "hi" }) {
			t.Errorf("probes %+v", log)
		}
	}
	id := h.run(checked("sleep 1000", "TCP", "80"))
	view := h.until(id, "unhealthy", healthIs(container.Unhealthy))
	if p := view.State.Health.Log[0]; p.ExitCode != 1 || !strings.Contains(p.Output, "refused") {
		t.Errorf("probe %+v", p)
	}
}

func TestRestartOnUnhealthy(t *testing.T) {
	h := newHost(t)
	req := checked("trap 'exit 0' TERM; sleep 1000 & wait", "CMD", "false")
	req.Host.Restart = container.RestartPolicy{Name: container.RestartOnUnhealthy, MaxRetries: 2}
	id := h.run(req)
	view := h.until(id, "given up", func(v containers.View) bool { return v.State.Status == container.Exited })
	if view.RestartCount != 2 {
		t.Errorf("%d restarts, want 2", view.RestartCount)
	}
	// One that the user stops stays stopped.
	req.Host.Restart.MaxRetries = 0
	req.Config.Healthcheck.Test = []string{"CMD", "true"}
	id = h.run(req)
	h.until(id, "healthy", healthIs(container.Healthy))
	must(t, h.svc.Stop(bg, id, containers.StopOptions{}))
	h.status(id, container.Exited)
	if st := h.inspect(id).State.Health; st.Status != container.Unhealthy || len(st.Log) == 0 { // as Docker has it: what does not run is not healthy
		t.Errorf("health of what was stopped: %+v", st)
	}
}

func TestTimeLimitOfARun(t *testing.T) {
	h := newHost(t)
	req := sh("trap 'exit 7' TERM; echo listens; sleep 1000 & wait")
	req.Host.Restart = container.RestartPolicy{Name: "always"}
	var id string
	var view containers.View
	for limit := 300 * time.Millisecond; limit < 30*time.Second; limit *= 4 { // a machine with much to do may need longer until the shell listens
		req.Host.Annotations = map[string]string{container.AnnotationTimeout: limit.String()}
		id = h.run(req)
		view = h.until(id, "ended", func(v containers.View) bool { return v.State.Status == container.Exited })
		if strings.Contains(h.logs(id), "listens") {
			break
		}
	}
	if view.State.ExitCode != 7 || view.RestartCount != 0 {
		t.Errorf("%+v, %d restarts", view.State, view.RestartCount)
	}
	// It counts while no engine runs.
	req.Host.Restart = container.RestartPolicy{}
	req.Host.Annotations = map[string]string{container.AnnotationTimeout: "1s"}
	id = h.run(req)
	h.close()
	time.Sleep(time.Second)
	h.open()
	h.until(id, "ended", func(v containers.View) bool { return v.State.Status == container.Exited })
}

func TestHealthRefusals(t *testing.T) {
	w := newWorld()
	svc, err := containers.New(w.options(t))
	must(t, err)
	defer func() { must(t, svc.Close()) }()
	for text, change := range map[string]func(*containers.CreateRequest){
		"unknown health check type": func(r *containers.CreateRequest) { r.Config.Healthcheck = &image.Healthcheck{Test: []string{"ECHO"}} },
		"the host is the container": func(r *containers.CreateRequest) {
			r.Config.Healthcheck = &image.Healthcheck{Test: []string{"HTTP", "http://example.com/"}}
		},
		"want [address:]port": func(r *containers.CreateRequest) {
			r.Config.Healthcheck = &image.Healthcheck{Test: []string{"TCP", "x"}}
		},
		"longer than the longest wait": func(r *containers.CreateRequest) {
			r.Host.Annotations = map[string]string{container.AnnotationRestartDelay: "2m"}
		},
		"want a duration above": func(r *containers.CreateRequest) {
			r.Host.Annotations = map[string]string{container.AnnotationTimeout: "60"}
		},
	} {
		req := fakeRequest(t)
		change(&req)
		_, err := svc.Create(bg, req)
		wants(t, err, errs.Invalid, text)
	}
}
