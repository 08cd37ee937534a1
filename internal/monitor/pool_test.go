package monitor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// playEngine is an engine that starts one container and waits to be killed. args: the monitor's program, root, the container's program, log.
func playEngine(args []string) {
	pool, err := monitor.New(monitor.Options{Program: args[0], Root: args[1], Started: func(pid int) error { fmt.Println("monitor", pid); return nil }})
	if err != nil {
		log.Fatal(err)
	}
	prog, err := os.ReadFile(args[2])
	if err != nil {
		log.Fatal(err)
	}
	m, err := pool.Launch(context.Background(), monitor.Launch{ID: "c1", Program: prog, Log: monitor.LogOptions{Path: args[3]}, ExitPath: args[3] + ".exit"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("running", m.PID(), m.MonitorPID())
	select {}
}

// kill -9 of the engine at any moment: its container goes on and says everything into its log, the next engine finds it, and the monitors that waited are gone.
func TestKilledEngine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	bin := monitortest.Binary(t)
	for round := range 5 {
		dir := t.TempDir()
		b := &bench{t: t, dir: dir, ctx: context.Background()}
		prog := filepath.Join(dir, "program")
		os.WriteFile(prog, monitortest.Program(t, 0, false, "sh", "-c", "while ! test -e "+dir+"/go; do sleep 0.01; done; exec "+os.Args[0]+" play-lines 20000 0"), 0o600)
		engine := exec.Command(os.Args[0], "play-engine", bin, dir+"/monitors", prog, dir+"/log")
		out, err := engine.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := engine.Start(); err != nil {
			t.Fatal(err)
		}
		said := readUntil(t, out, "running")
		time.Sleep(time.Duration(round) * 8 * time.Millisecond)
		engine.Process.Kill()
		rest, _ := io.ReadAll(out)
		engine.Wait()
		said += string(rest)
		os.WriteFile(dir+"/go", nil, 0o600)
		m, err := monitortest.NewPool(t, monitor.Options{Program: bin, Root: dir + "/monitors", Pool: -1}).Open(b.ctx, "c1")
		if err == nil {
			if x := b.waitLong(m); x.Code != 0 || x.Lost {
				t.Error(x)
			}
			m.Close()
		} else if _, xerr := monitor.ReadExit(dir + "/log.exit"); !errors.Is(err, errs.NotFound) || xerr != nil {
			t.Fatal(err, xerr)
		}
		if got := logged(t, dir+"/log"); len(got) != 20000*80 {
			t.Errorf("round %d: %d bytes", round, len(got))
		}
		for _, l := range strings.Split(said, "\n") {
			if f := strings.Fields(l); len(f) == 2 && f[0] == "monitor" {
				pid, _ := strconv.Atoi(f[1])
				eventually(t, "monitor "+f[1]+" gone", func() bool { return dead(pid) })
			}
		}
	}
}

func (b *bench) waitLong(p monitor.Process) monitor.Exit {
	select {
	case <-p.Exited():
	case <-time.After(2 * time.Minute):
		b.t.Fatal("the process does not end")
	}
	return p.Exit()
}

func TestManyStartsAtOnce(t *testing.T) {
	b := newBench(t, monitor.Options{})
	errc := make(chan error)
	for i := range 16 {
		go func() {
			m, err := b.pool.Launch(b.ctx, monitor.Launch{ID: fmt.Sprint("m", i), Program: monitortest.Shell(t, "exit "+strconv.Itoa(i))})
			if err == nil {
				<-m.Exited()
				if m.Exit().Code != i {
					err = fmt.Errorf("%d: %+v", i, m.Exit())
				}
				err = errors.Join(err, m.Close())
			}
			errc <- err
		}()
	}
	for range 16 {
		if err := <-errc; err != nil {
			t.Error(err)
		}
	}
	if _, err := b.pool.Launch(b.ctx, monitor.Launch{ID: "bad", Program: []byte("junk")}); err == nil {
		t.Error("junk started")
	}
	noLog := monitor.Launch{ID: "bad", Program: monitortest.Program(t, 0, false, "sleep", "100"), Log: monitor.LogOptions{Path: "/proc/nowhere/log"}}
	if _, err := b.pool.Launch(b.ctx, noLog); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "open log /proc/nowhere/log") {
		t.Error(err)
	}
	if _, err := b.pool.Launch(b.ctx, monitor.Launch{ID: "../x"}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if ids, _ := b.pool.List(); len(ids) != 0 {
		t.Error(ids)
	}
}

// A pipe that the engine was started with, not marked close-on-exec, once stayed open in every monitor, and whoever waited for its end waited for all containers.
func TestMonitorKeepsNoStrangersFiles(t *testing.T) {
	b := newBench(t, monitor.Options{Pool: -1})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stranger, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD, 200)
	if err != nil {
		t.Fatal(err)
	}
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "sleep", "100")})
	w.Close()
	unix.Close(stranger)
	r.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.MonitorPID()))
	for _, fd := range fds {
		name, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", m.MonitorPID(), fd.Name()))
		if strings.HasPrefix(name, "/sys/") {
			t.Error(name)
		}
	}
	t.Logf("%d descriptors", len(fds))
}

// Waiting monitors end with their engine, however it ends.
func TestPoolEnds(t *testing.T) {
	pids := make(chan int, 10)
	b := newBench(t, monitor.Options{Pool: 3, Started: func(pid int) error { pids <- pid; return nil }})
	a, c, d := <-pids, <-pids, <-pids
	b.pool.Close()
	for _, pid := range []int{a, c, d} {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Error(pid, err)
		}
	}
}
