package monitor_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// only waits until the pool has filled itself, which it does no more from then on.
func (b *bench) only() {
	b.t.Helper()
	eventually(b.t, "a monitor waits", func() bool { return monitor.Waiting(b.pool) > 0 })
	monitor.StopFilling(b.pool)
}

// open are the descriptors of a process, by what they stand for, apart from those that Go's runtime makes when it likes to.
func open(t *testing.T, pid int) (names []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		name, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		switch kind, _, numbered := strings.Cut(name, ":["); {
		case name == "anon_inode:[eventpoll]" || name == "anon_inode:[eventfd]":
		case numbered && kind != "anon_inode":
			names = append(names, kind)
		default:
			names = append(names, filepath.Base(name))
		}
	}
	slices.Sort(names)
	return names
}

// A monitor was started for every container, 2 to 3 ms of processor time each, and the engine's descriptors were copied and closed again for every one: with 1,000 containers
// running, that was a quarter of what a start took longer than on an idle machine. One whose container ended is used again, as if it were new.
func TestUsedAgain(t *testing.T) {
	b := newBench(t, monitor.Options{Pool: 1})
	b.only()
	kills := filepath.Join(b.dir, "kills")
	if err := os.WriteFile(kills, []byte("oom_kill 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var first []string
	score := readScore(t, os.Getpid())
	pid := 0
	for i := range 5 {
		log := filepath.Join(b.dir, fmt.Sprint(i), "log")
		if err := os.Mkdir(filepath.Dir(log), 0o700); err != nil {
			t.Fatal(err)
		}
		client, engine := pair(t)
		end := make(chan monitor.AttachEnd, 1)
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		oom := os.NewFile(uintptr(event), "eventfd")
		defer oom.Close()
		m, err := b.pool.Launch(b.ctx, monitor.Launch{
			ID: "c1", Program: monitortest.Shell(t, fmt.Sprintf("read x; cat /proc/self/oom_score_adj; echo %d $x; exit %d", i, i)), ExitPath: filepath.Join(b.dir, "exit"), Log: monitor.LogOptions{Path: log},
			Stdio: monitor.Stdio{Stdin: true, StdinOnce: true}, OOMEvent: oom, OOMPath: kills,
			Attached: []monitor.AttachRequest{{Conn: engine, Options: monitor.AttachOptions{Stdin: true, Stdout: true}, End: end}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if pid == 0 {
			pid = m.MonitorPID()
		} else if pid != m.MonitorPID() {
			t.Fatalf("container %d has another monitor, %d after %d", i, m.MonitorPID(), pid)
		}
		session, err := m.Exec(b.ctx, "s", monitortest.Shell(t, "exit 7"), nil, monitor.Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if x := b.wait(session); x.Code != 7 {
			t.Errorf("session: %+v", x)
		}
		if now := open(t, pid); first == nil {
			first = now
		} else if !slices.Equal(now, first) {
			t.Errorf("a monitor that is used again has other descriptors:\n%q\nthan a new one:\n%q", now, first)
		}
		fmt.Fprintf(client, "word%d\n", i)
		client.CloseWrite()
		if x := b.wait(m); x.Code != i || x.OOMKilled || x.Lost {
			t.Errorf("container %d: %+v", i, x)
		}
		said := everything(t, client)
		if want := fmt.Sprintf("%s\n%d word%d\n", score, i, i); said != want {
			t.Errorf("said %q, not %q", said, want)
		}
		client.Close()
		<-end
		if kept := logged(t, log); kept != said {
			t.Errorf("log has %q", kept)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "the monitor waits again", func() bool { return monitor.Waiting(b.pool) == 1 })
		if err := m.Resize(b.ctx, 1, 1); !errors.Is(err, errs.Unavailable) && !errors.Is(err, os.ErrClosed) {
			t.Errorf("the way to a monitor that is somebody else's: %v", err)
		}
		if ids, _ := b.pool.List(); len(ids) != 0 {
			t.Errorf("left: %v", ids)
		}
		if got := readScore(t, pid); got != score {
			t.Errorf("a waiting monitor has the score %s, not %s: the container's processes would inherit it", got, score)
		}
	}
	if size := pss(t, pid, "Pss_Anon:"); size > 1500 {
		t.Errorf("a monitor that was used five times has %d kB of its own", size)
	}
}

// A monitor that may have something of its container left ends with it.
func TestNotUsedAgain(t *testing.T) {
	for name, l := range map[string]monitor.Launch{
		"an orphan":                      {Program: monitortest.Shell(t, "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!")},
		"a log with a writer of its own": {Program: monitortest.Shell(t, "echo 0"), Log: monitor.LogOptions{Path: filepath.Join(t.TempDir(), "log"), NonBlocking: true}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, monitor.Options{Pool: 1})
			b.only()
			client, engine := pair(t)
			end := make(chan monitor.AttachEnd, 1)
			l.ID, l.Attached = "c1", []monitor.AttachRequest{{Conn: engine, Options: both, End: end}}
			m, err := b.pool.Launch(b.ctx, l)
			if err != nil {
				t.Fatal(err)
			}
			b.wait(m)
			orphan := 0
			fmt.Sscan(everything(t, client), &orphan)
			if orphan > 0 {
				defer syscall.Kill(orphan, syscall.SIGKILL)
			}
			client.Close()
			<-end
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			eventually(t, "the monitor is gone", func() bool { return dead(m.MonitorPID()) })
		})
	}
}

// A pool that was closed in the moment in which a monitor came back waited for itself, at full speed: the monitor's socket had stayed in an epoll from which nobody could take it any more.
func TestClosedWhileOneComesBack(t *testing.T) {
	for range 10 {
		b := newBench(t, monitor.Options{Pool: 3})
		b.only()
		var all []monitor.Monitor
		for i := range 3 {
			all = append(all, b.launch(monitor.Launch{ID: fmt.Sprint("c", i), Program: monitortest.Shell(t, "true")}))
		}
		for _, m := range all {
			b.wait(m)
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		closed := make(chan error, 1)
		go func() { closed <- b.pool.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-b.ctx.Done():
			t.Fatal("the pool does not end")
		}
	}
}

func readScore(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func everything(t *testing.T, client io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(client)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
