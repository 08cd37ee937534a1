package monitor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// memoryGroup makes a v1 memory cgroup with a small bound.
func memoryGroup(t *testing.T) string {
	t.Helper()
	dir := fmt.Sprintf("/sys/fs/cgroup/memory/corten-monitor-test-%d", os.Getpid())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip("no v1 memory cgroup: ", err)
	}
	t.Cleanup(func() {
		eventually(t, "cgroup removed", func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(dir+"/memory.limit_in_bytes", []byte("20000000"), 0); err != nil {
		t.Skip("memory cgroup: ", err)
	}
	return dir
}

func oomEvent(t *testing.T, dir string) *os.File {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	ev := os.NewFile(uintptr(fd), "eventfd")
	t.Cleanup(func() { ev.Close() })
	ctl, err := os.Open(dir + "/memory.oom_control")
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	if err := os.WriteFile(dir+"/cgroup.event_control", fmt.Appendf(nil, "%d %d", fd, ctl.Fd()), 0); err != nil {
		t.Fatal(err)
	}
	return ev
}

// The exit says that the kernel killed for memory, in whichever of the two ways the engine lets the monitor know; and not when somebody else killed.
func TestOOM(t *testing.T) {
	told := make(chan string, 100)
	b := newBench(t, monitor.Options{OnOOM: func(id string) { told <- id }})
	dir := memoryGroup(t)
	join := "echo $$ > " + dir + "/cgroup.procs; "
	eat := join + "exec " + os.Args[0] + " play-eat"
	for _, c := range []struct {
		name, script string
		event, path  bool
		oom          bool
	}{
		{"event", eat, true, false, true}, {"path", eat, false, true, true}, {"both", eat, true, true, true},
		{"killed", join + "kill -9 $$", true, true, false},
		{"child", join + "(" + os.Args[0] + " play-eat); sleep 0.1; exit 3", true, true, true},
	} {
		l := monitor.Launch{ID: c.name, Program: monitortest.Shell(t, c.script), Log: monitor.LogOptions{Path: filepath.Join(b.dir, c.name)}}
		if c.event {
			l.OOMEvent = oomEvent(t, dir)
		}
		if c.path {
			l.OOMPath = dir + "/memory.oom_control"
		}
		m := b.launch(l)
		x := b.wait(m)
		if x.OOMKilled != c.oom || c.name != "child" && x.Code != 137 {
			t.Errorf("%s: %+v", c.name, x)
		}
		m.Close()
		if c.event && c.oom {
			select {
			case id := <-told:
				if id != c.name {
					t.Error(id)
				}
			case <-time.After(30 * time.Second):
				t.Errorf("%s: not told at once", c.name)
			}
		}
		for len(told) > 0 {
			<-told
		}
	}
}

// systemd makes the container's cgroup only once its process exists, and a kill may come before the engine's answer was sent: a monitor that read the count once, when it
// found the time, took that kill for one of an earlier life.
func TestOOMCountThatComesLate(t *testing.T) {
	b := newBench(t, monitor.Options{})
	for name, c := range map[string]struct {
		before, script string
		oom            bool
	}{
		"late":      {"", "sleep 0.05; echo oom_kill 1 > FILE", true},
		"very late": {"", "sleep 0.3; echo oom_kill 0 > FILE; sleep 0.5; echo oom_kill 1 > FILE", true},
		"none":      {"", "sleep 0.05; echo oom_kill 0 > FILE", false},
		"never":     {"", "true", false},
		"at once":   {"oom_kill 4\n", "echo oom_kill 5 > FILE", true},
		"before":    {"oom_kill 4\n", "true", false},
	} {
		file := filepath.Join(b.dir, "events of "+name)
		if c.before != "" {
			if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		script := strings.ReplaceAll(c.script, "FILE", "'"+file+"'")
		m := b.launch(monitor.Launch{ID: strings.ReplaceAll(name, " ", "-"), Program: monitortest.Shell(t, script), OOMPath: file, Log: monitor.LogOptions{Path: filepath.Join(b.dir, name)}})
		if x := b.wait(m); x.OOMKilled != c.oom || x.Code != 0 {
			t.Errorf("%s: %+v", name, x)
		}
		m.Close()
	}
}
