package containers_test

import (
	"testing"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
)

// After a reboot the engine started all containers at once whose policy says so, and those that join the network, IPC or processes of another were refused, because that one did not run yet: they
// stayed down. The same when both ended at one moment and their policy applied.
func TestThoseThatJoinComeAfterWhatTheyJoin(t *testing.T) {
	h := newHost(t)
	add := func(name string, change func(*containers.CreateRequest)) {
		req := sh("sleep 1000")
		req.Name, req.Host.Restart.Name = name, "always"
		change(&req)
		h.run(req)
	}
	add("base", func(r *containers.CreateRequest) {
		r.Host.IpcMode = "shareable"
		r.Host.Annotations = map[string]string{container.AnnotationRestartDelay: "300ms"}
	})
	add("middle", func(r *containers.CreateRequest) { r.Host.NetworkMode = "container:base" })
	add("net", func(r *containers.CreateRequest) { r.Host.NetworkMode = "container:middle" })
	add("ipc", func(r *containers.CreateRequest) { r.Host.IpcMode = "container:base" })
	names := []string{"base", "middle", "net", "ipc"}
	back := func(what string, times int) {
		t.Helper()
		for _, name := range names {
			h.until(name, what, func(v containers.View) bool { return v.State.Status == container.Running && v.RestartCount >= times })
		}
	}
	for i, name := range names {
		killMonitorOf(t, h.inspect(name).State.PID)
		if i == 0 {
			h.until(name, "ended", func(v containers.View) bool { return v.State.Status != container.Running || v.RestartCount > 0 })
		}
	}
	back("running again", 1)
	var pids []int
	for _, name := range names {
		pids = append(pids, h.inspect(name).State.PID)
	}
	h.close()
	for _, pid := range pids {
		killMonitorOf(t, pid)
	}
	h.open()
	back("running in a new engine", 0)
}
