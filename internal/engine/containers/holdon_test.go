package containers_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/linux/mount"
)

// A monitor's processes die with it because the kernel tells the first one (PR_SET_PDEATHSIG). Executing a set-uid program makes the kernel forget that, and where the pid
// namespace is the host's nobody dies with the first process: so the engine kills all of the container as soon as it sees that the monitor is gone.
func TestMonitorIsKilledAndProcessesHoldOn(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	program, err := os.ReadFile("/bin/busybox")
	must(t, err)
	must(t, os.WriteFile(dir+"/busybox", program, 0o755))
	must(t, os.Chmod(dir+"/busybox", 0o755|os.ModeSetuid))
	for _, mode := range []string{"", "host"} {
		mark := itoa(1e6 + os.Getpid())
		req := sh("")
		req.Config.User = "1000"
		req.Config.Cmd = []string{"/s/busybox", "sh", "-c", "/s/busybox sleep " + mark + " & /s/busybox sleep " + mark + "; true"}
		req.Host.Binds = []string{dir + ":/s"}
		req.Host.PidMode = mode
		id := h.run(req)
		waitFor(t, "the sleepers", func() bool { return len(sleepers(t, mark)) == 2 })
		killMonitorOf(t, h.inspect(id).State.PID)
		if end := h.wait(id, containers.NotRunning); end.Code != 137 {
			t.Errorf("pid mode %q: end %+v", mode, end)
		}
		waitFor(t, "the end of the sleepers", func() bool { return len(sleepers(t, mark)) == 0 })
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited for %s", what)
}

// sleepers are the processes that sleep for the time given.
func sleepers(t *testing.T, mark string) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && strings.HasSuffix(string(b), "\x00sleep\x00"+mark+"\x00") {
			pids = append(pids, path)
		}
	}
	return pids
}

// Every handle that a run opens is closed when it is over: pidfds (the monitor's and the runtime's), the monitor's socket, what a failed start had open.
func TestDescriptorsComeBack(t *testing.T) {
	h := newHost(t)
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the collector would close what was forgotten
	count := func() map[string]int {
		kinds := map[string]int{}
		links, err := filepath.Glob("/proc/self/fd/*")
		must(t, err)
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil {
				kind, _, _ := strings.Cut(to, ":[")
				kinds[kind]++
			}
		}
		return kinds
	}
	round := func(n int) {
		for range n {
			req := sh("exit 3")
			req.Host.AutoRemove = true
			made, err := h.svc.Create(bg, req)
			must(t, err)
			gone, err := h.svc.Wait(bg, made.ID, containers.Removed) // once started it may be gone before anybody asks
			must(t, err)
			must(t, h.svc.Start(bg, made.ID, ""))
			<-gone
		}
		req := sh("sleep 100")
		id := h.run(req)
		h.exec(h.inspect(id).Name, "true")
		must(t, h.svc.Kill(bg, id, "KILL"))
		h.wait(id, containers.NotRunning)
		must(t, h.svc.Remove(bg, id, containers.RemoveOptions{Force: true}))
		bad := sh("")
		bad.Config.Cmd = []string{"/no/such/program"}
		made, err := h.svc.Create(bg, bad)
		must(t, err)
		if err := h.svc.Start(bg, made.ID, ""); err == nil {
			t.Fatal("started")
		}
		must(t, h.svc.Remove(bg, made.ID, containers.RemoveOptions{}))
	}
	round(2)
	before := map[string]int{}
	quiet := 0
	waitFor(t, "quiet", func() bool {
		last := before
		before = count()
		time.Sleep(20 * time.Millisecond)
		if quiet++; !maps.Equal(last, before) {
			quiet = 0
		}
		return quiet == 20
	})
	round(10)
	const slack = 4 // the pools may be fuller; a leak shows once a round at least
	after := map[string]int{}
	for range 3000 { // clearing goes on in the background, and pools are filled again
		if after = count(); after["anon_inode"] <= before["anon_inode"]+slack && after["socket"] <= before["socket"]+slack {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("before %v, after %v", before, after)
}

// An engine that ended in order with no container left kept an empty cgroup of all containers in every hierarchy.
func TestParentCgroupGoes(t *testing.T) {
	h := newHost(t)
	h.close()
	h.opts.CgroupParent = "/corten-engine-parent-" + itoa(os.Getpid())
	h.open()
	at := func() []string {
		dirs, err := filepath.Glob("/sys/fs/cgroup/*" + h.opts.CgroupParent)
		must(t, err)
		return dirs
	}
	id := h.run(sh("sleep 100"))
	if len(at()) == 0 {
		t.Skip("the cgroups of this host are elsewhere")
	}
	h.close()
	if len(at()) == 0 {
		t.Error("the cgroups of a running container are gone")
	}
	h.open()
	must(t, h.svc.Remove(bg, id, containers.RemoveOptions{Force: true}))
	h.close()
	if left := at(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	h.open()
}

// An engine that was killed between the mount of a shareable /dev/shm and the clone, or after a container with --rm was gone and before its mount was, left the mount for good.
func TestMountsOfKilledEnginesGo(t *testing.T) {
	h := newHost(t)
	req := sh("exec sleep 100")
	req.Host.IpcMode = "shareable"
	made, err := h.svc.Create(bg, req)
	must(t, err)
	runs := h.run(req)
	h.close()
	nobody := strings.Repeat("e", 64)
	dirs := []string{h.execRoot + "/shm/" + made.ID, h.execRoot + "/shm/" + nobody, h.execRoot + "/" + nobody + "-image"}
	for _, dir := range dirs {
		must(t, os.MkdirAll(dir, 0o700))
		must(t, mount.Tmpfs("shm", dir, "size=64k"))
		t.Cleanup(func() { must(t, mount.Detach(dir)) })
	}
	h.open()
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if st, err := os.Stat(h.execRoot + "/shm/" + runs); err != nil || st.Mode().Perm() != 0o777 {
		t.Errorf("that of a container that runs: %v, %v", st, err)
	}
	must(t, h.svc.Remove(bg, runs, containers.RemoveOptions{Force: true}))
}
