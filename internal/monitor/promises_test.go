package monitor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// logged is what a log says, both streams.
func logged(t testing.TB, dir string) string {
	t.Helper()
	l, err := logs.Open(context.Background(), dir, logs.ReadOptions{Tail: -1, Stdout: true, Stderr: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var b bytes.Buffer
	if err := l.Copy(context.Background(), &b, logs.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("still not: " + what)
}

func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// The engine goes and another comes: the container, its sessions and its output go on, and an exit that nobody heard is told.
func TestReopen(t *testing.T) {
	root := filepath.Join(t.TempDir(), "monitors")
	b := newBench(t, monitor.Options{Root: root})
	log := filepath.Join(b.dir, "log")
	exit := filepath.Join(b.dir, "exit")
	m := b.launch(monitor.Launch{Program: monitortest.Shell(t, "while ! test -e "+b.dir+"/go; do echo tick; sleep 0.05; done; exit 7"), Log: monitor.LogOptions{Path: log}, ExitPath: exit})
	long, err := m.Exec(b.ctx, "long", monitortest.Shell(t, "while ! test -e "+b.dir+"/go; do sleep 0.05; done; exit 3"), nil, monitor.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	pid, long1 := m.PID(), long.PID()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	short := time.Now()
	other := monitortest.NewPool(t, monitor.Options{Root: root, Pool: -1})
	if ids, err := other.List(); err != nil || len(ids) != 1 || ids[0] != "c1" {
		t.Fatal(ids, err)
	}
	m2, err := other.Open(b.ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if m2.PID() != pid || m2.MonitorPID() != m.MonitorPID() || m2.PIDFD() == nil {
		t.Fatal(m2.PID(), pid)
	}
	s := m2.Sessions()["long"]
	if s == nil || s.PID() != long1 {
		t.Fatal(m2.Sessions())
	}
	client, engine := pair(t)
	if _, err := m2.Attach(b.ctx, engine, both); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(b.dir+"/go", nil, 0o600)
	if x := b.wait(s); x.Code != 3 {
		t.Error(x)
	}
	if x := b.wait(m2); x.Code != 7 || x.At.Before(short) {
		t.Error(x)
	}
	if got, err := io.ReadAll(client); err != nil || strings.Trim(string(got), "tick\n") != "" {
		t.Errorf("%q %v", got, err)
	}
	if got := logged(t, log); strings.Count(got, "tick\n")*5 != len(got) || got == "" {
		t.Errorf("%q", got)
	}
	if err := m2.Close(); err != nil {
		t.Error(err)
	}
	if _, err := other.Open(b.ctx, "c1"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

// While no engine looks, a container ends: its monitor goes too, and the exit is on disk.
func TestEndWithoutEngine(t *testing.T) {
	b := newBench(t, monitor.Options{})
	exit := filepath.Join(b.dir, "exit")
	m := b.launch(monitor.Launch{Program: monitortest.Shell(t, "while ! test -e "+b.dir+"/go; do sleep 0.02; done; exit 9"), ExitPath: exit, Durable: true})
	pid := m.MonitorPID()
	m.Close()
	os.WriteFile(b.dir+"/go", nil, 0o600)
	eventually(t, "monitor gone", func() bool { return dead(pid) })
	if x, err := monitor.ReadExit(exit); err != nil || x.Code != 9 {
		t.Error(x, err)
	}
	if ids, _ := b.pool.List(); len(ids) != 0 {
		t.Error(ids)
	}
	wait4(pid)
}

// The disk was full when a container ended without an engine: its exit was lost, and the next engine said that it was killed.
func TestEndOnAFullDiskWithoutEngine(t *testing.T) {
	b := newBench(t, monitor.Options{})
	disk := filepath.Join(b.dir, "disk")
	os.Mkdir(disk, 0o700)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("no tmpfs: ", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	os.WriteFile(filepath.Join(disk, "ballast"), make([]byte, 128<<10), 0o600) // as much of it as there is room for
	exit := filepath.Join(disk, "exit")
	m := b.launch(monitor.Launch{Program: monitortest.Shell(t, "while ! test -e "+b.dir+"/go; do sleep 0.02; done; exit 9"), ExitPath: exit, Durable: true})
	pid := m.MonitorPID()
	m.Close()
	os.WriteFile(b.dir+"/go", nil, 0o600)
	eventually(t, "no room for the exit", func() bool { _, err := monitor.ReadExit(exit); return err != nil && dead(m.PID()) })
	again, err := b.pool.Open(b.ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if x := b.wait(again); x.Code != 9 {
		t.Error(x)
	}
	again.Close()
	eventually(t, "monitor gone", func() bool { return dead(pid) })
	wait4(pid)
}

func wait4(pid int) { unix.Wait4(pid, nil, 0, nil) }

// A run in one request is told how it ended on its own connection, by the engine. When the engine was killed the client got the output but no exit code: now the monitor tells it.
func TestEndOfARunWithoutEngine(t *testing.T) {
	for code, want := range map[string]string{"0": "{\"Code\":0}", "105": "{\"Code\":105}"} {
		b := newBench(t, monitor.Options{})
		client, ours := pair(t)
		kept, err := monitor.CopyOf(ours)
		if err != nil {
			t.Fatal(err)
		}
		m := b.launch(monitor.Launch{Program: monitortest.Shell(t, "read x; echo on; exit "+code), Stdio: monitor.Stdio{Stdin: true}})
		if _, err := m.Attach(b.ctx, ours, monitor.AttachOptions{Stdin: true, Stdout: true, Framed: true, Shared: true}); err != nil {
			t.Fatal(err)
		}
		m.Close() // as for an engine that was killed: its copies of the connection are closed, too
		kept.Close()
		if _, err := client.Write([]byte("go\n")); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(client)
		if err != nil {
			t.Fatal(err)
		}
		if all := "\x01\x00\x00\x00\x00\x00\x00\x03on\n\x04\x00\x00\x00\x00\x00\x00" + string(rune(len(want))) + want; string(got) != all {
			t.Errorf("exit %s: %q", code, got)
		}
	}
}

// kill -9 of a monitor ends its own container alone, keeps every line written so far, and is reported as what it was.
func TestKilledMonitor(t *testing.T) {
	b := newBench(t, monitor.Options{})
	log := filepath.Join(b.dir, "log")
	m := b.launch(monitor.Launch{Program: monitortest.Shell(t, "i=0; while :; do echo line $i; i=$((i+1)); echo $i > "+b.dir+"/n; done"), Log: monitor.LogOptions{Path: log}})
	other := b.launch(monitor.Launch{ID: "other", Program: monitortest.Program(t, 0, false, "sleep", "100")})
	client, engine := pair(t)
	end, err := m.Attach(b.ctx, engine, both)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, client)
	eventually(t, "a few lines", func() bool { return strings.Contains(logged(t, log), "line 100\n") })
	unix.Kill(m.MonitorPID(), unix.SIGKILL)
	if x := b.wait(m); !x.Lost || x.Code != 137 {
		t.Error(x)
	}
	<-end
	eventually(t, "first process dead", func() bool { return dead(m.PID()) })
	got := strings.Split(strings.TrimSuffix(logged(t, log), "\n"), "\n")
	for i, l := range got {
		if l != fmt.Sprint("line ", i) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	n, _ := os.ReadFile(b.dir + "/n")
	t.Logf("%d lines kept of %s", len(got), strings.TrimSpace(string(n)))
	if dead(other.PID()) || dead(other.MonitorPID()) {
		t.Error("another container ended too")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.pool.Open(b.ctx, "c1"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	again := b.launch(monitor.Launch{Program: monitortest.Shell(t, "echo again"), Log: monitor.LogOptions{Path: log}})
	b.wait(again)
	if got := logged(t, log); !strings.HasSuffix(got, "again\n") {
		t.Errorf("%q", got[max(len(got)-50, 0):])
	}
}

// A dead monitor's folder is found by a new engine, and taken away.
func TestOpenOfDeadMonitor(t *testing.T) {
	root := filepath.Join(t.TempDir(), "monitors")
	b := newBench(t, monitor.Options{Root: root})
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "sleep", "100")})
	unix.Kill(m.MonitorPID(), unix.SIGKILL)
	b.wait(m)
	if ids, _ := b.pool.List(); len(ids) != 1 {
		t.Error(ids)
	}
	if _, err := b.pool.Open(b.ctx, "c1"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if ids, _ := b.pool.List(); len(ids) != 0 {
		t.Error(ids)
	}
}

// Signals for an engine's or a terminal's group do not end a monitor, and the container finds them as usual.
func TestSignals(t *testing.T) {
	b := newBench(t, monitor.Options{})
	log := filepath.Join(b.dir, "log")
	m := b.launch(monitor.Launch{Program: monitortest.Shell(t, "grep -E 'Sig(Ign|Blk)' /proc/self/status; cat /proc/self/oom_score_adj; while ! test -e "+b.dir+"/go; do sleep 0.02; done"), Log: monitor.LogOptions{Path: log}})
	s, err := m.Exec(b.ctx, "s", monitortest.Shell(t, "cat /proc/self/oom_score_adj > "+b.dir+"/score"), nil, monitor.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	b.wait(s)
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE, unix.SIGQUIT, unix.SIGUSR1} {
		for range 5 {
			unix.Kill(m.MonitorPID(), sig)
		}
	}
	time.Sleep(50 * time.Millisecond)
	if dead(m.MonitorPID()) {
		t.Error("the monitor is dead")
	}
	// Where the kernel lets it (not without CAP_SYS_RESOURCE), the monitor is the last that it kills for memory; its container is not.
	if exec.Command("sh", "-c", "echo -999 >/proc/self/oom_score_adj").Run() == nil {
		if got := readScore(t, m.MonitorPID()); got != "-999" {
			t.Errorf("the monitor's oom_score_adj is %s", got)
		}
	}
	os.WriteFile(b.dir+"/go", nil, 0o600)
	if x := b.wait(m); x.Code != 0 || x.Lost {
		t.Error(x)
	}
	own, _ := os.ReadFile("/proc/self/oom_score_adj")
	if got, want := logged(t, log), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"+string(own); got != want {
		t.Errorf("%q", got)
	}
	if score, _ := os.ReadFile(b.dir + "/score"); !bytes.Equal(score, own) {
		t.Errorf("%q %q", score, own)
	}
}

// Many clients, early and late, and one that reads nothing: the others get everything.
func TestManyClients(t *testing.T) {
	b := newBench(t, monitor.Options{})
	const n = 200000
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "sh", "-c", "read x; exec "+os.Args[0]+" play-lines "+strconv.Itoa(n)+" 4096"), Stdio: monitor.Stdio{Stdin: true}})
	type got struct {
		n   int
		err error
	}
	res := make(chan got)
	for i := range 8 {
		client, engine := pair(t)
		opts := both
		opts.Framed = i%2 == 0
		if _, err := m.Attach(b.ctx, engine, opts); err != nil {
			t.Fatal(err)
		}
		go func() {
			total := 0
			buf := make([]byte, 64<<10)
			for {
				k, err := client.Read(buf)
				total += k
				if err != nil {
					if err == io.EOF {
						err = nil
					}
					res <- got{total, err}
					return
				}
				if i == 0 {
					time.Sleep(time.Millisecond) // slow, but alive
				}
			}
		}()
	}
	gone, engine := pair(t)
	if _, err := m.Attach(b.ctx, engine, both); err != nil {
		t.Fatal(err)
	}
	gone.Close()
	in, engine := pair(t)
	if _, err := m.Attach(b.ctx, engine, monitor.AttachOptions{Stdin: true}); err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("go\n"))
	b.wait(m)
	for range 8 {
		if g := <-res; g.n < n*80 || g.err != nil {
			t.Errorf("%d of %d, %v", g.n, n*80, g.err)
		}
	}
	late, engine := pair(t)
	if _, err := m.Attach(b.ctx, engine, both); err != nil {
		t.Fatal(err)
	}
	if g, err := io.ReadAll(late); len(g) != 0 || err != nil {
		t.Error(len(g), err)
	}
}

// A client that takes nothing stops a container for ten seconds at most; with a non-blocking log not at all.
func TestStalledClient(t *testing.T) {
	for _, nonblocking := range []bool{true, false} {
		if testing.Short() && !nonblocking {
			continue
		}
		t.Run(fmt.Sprint("nonblocking=", nonblocking), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, monitor.Options{Pool: -1})
			play := func(id string) time.Duration {
				log := filepath.Join(b.dir, id)
				_, engine := pair(t)
				begin := time.Now()
				m := b.launch(monitor.Launch{ID: id, Program: monitortest.Program(t, 0, false, os.Args[0], "play-lines", "100000", "4096"),
					Log:      monitor.LogOptions{Path: log, NonBlocking: nonblocking, BufferSize: 64 << 20},
					Attached: []monitor.AttachRequest{{Conn: engine, Options: both, End: make(chan monitor.AttachEnd, 1)}}})
				b.wait(m)
				took := time.Since(begin)
				if n := len(logged(t, log)); n != 8e6 {
					t.Error(n)
				}
				return took
			}
			took := play("c1")
			if !nonblocking {
				if took < 9*time.Second || took > time.Minute {
					t.Error(took)
				}
				return
			}
			for i := 2; took > 9*time.Second && i < 5; i++ { // one that waits for its client always takes ten seconds, a machine with much to do now and then
				took = play(fmt.Sprint("c", i))
			}
			if took > 9*time.Second {
				t.Error(took)
			}
		})
	}
}

func TestNonBlockingTellsWhatIsMissing(t *testing.T) {
	b := newBench(t, monitor.Options{})
	log := filepath.Join(b.dir, "log")
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, os.Args[0], "play-lines", "200000", "1"),
		Log: monitor.LogOptions{Path: log, NonBlocking: true, BufferSize: 70 << 10, MaxSize: -1}})
	b.wait(m)
	got := logged(t, log)
	kept, missing := 0, 0
	for _, l := range strings.Split(got, "\n") {
		switch {
		case strings.HasPrefix(l, "corten: "):
			n, _ := strconv.Atoi(strings.Fields(l)[1])
			missing += n
		case strings.HasSuffix(l, "e"):
			kept += len(l) + 1
		default: // the gap begins inside this line: its end is not the program's
			kept += len(l)
		}
	}
	if kept+missing != 200000*80 {
		t.Errorf("%d bytes and %d missing ones", kept, missing)
	}
	t.Logf("%d bytes dropped", missing)
}

func TestExecSession(t *testing.T) {
	b := newBench(t, monitor.Options{})
	log := filepath.Join(b.dir, "log")
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "sleep", "100"), Log: monitor.LogOptions{Path: log}})
	for i := range 20 {
		s, err := m.Exec(b.ctx, fmt.Sprint("s", i), monitortest.Shell(t, "cat; echo err >&2; exit 5"), nil, monitor.Stdio{Stdin: true, StdinOnce: true, AttachOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // the output of one that ended already waits for its client
			time.Sleep(5 * time.Millisecond)
		}
		client, engine := pair(t)
		opts := both
		opts.Stdin, opts.Framed = true, true
		end, err := s.Attach(b.ctx, engine, opts)
		if err != nil {
			t.Fatal(err)
		}
		client.Write([]byte("hello\n"))
		client.CloseWrite()
		got, err := io.ReadAll(client)
		if want := "\x01\x00\x00\x00\x00\x00\x00\x06hello\n\x02\x00\x00\x00\x00\x00\x00\x04err\n"; string(got) != want || err != nil {
			t.Fatalf("%q %v", got, err)
		}
		<-end
		if x := b.wait(s); x.Code != 5 {
			t.Error(x)
		}
	}
	if got := logged(t, log); got != "" {
		t.Errorf("sessions in the log: %q", got)
	}
	if len(m.Sessions()) != 0 {
		t.Error(m.Sessions())
	}
	if _, err := m.Exec(b.ctx, "bad", []byte("junk"), nil, monitor.Stdio{}); err == nil || len(m.Sessions()) != 0 {
		t.Error(err)
	}
}

// A daemon that keeps the pipes open does not keep the exit back.
func TestDaemonKeepsThePipes(t *testing.T) {
	b := newBench(t, monitor.Options{})
	log := filepath.Join(b.dir, "log")
	begin := time.Now()
	m := b.launch(monitor.Launch{Program: monitortest.Shell(t, "echo before; (sleep 600; echo late) & echo $! > "+b.dir+"/pid"), Log: monitor.LogOptions{Path: log}})
	b.wait(m)
	if took := time.Since(begin); took > 100*time.Second {
		t.Error(took)
	}
	p, _ := os.ReadFile(b.dir + "/pid")
	if pid, _ := strconv.Atoi(strings.TrimSpace(string(p))); pid > 0 {
		unix.Kill(pid, unix.SIGKILL)
	}
	if got := logged(t, log); got != "before\n" {
		t.Errorf("%q", got)
	}
}

// Connections that have no descriptor of their own are copied through; so are those of which much was read already.
func TestCopiedThrough(t *testing.T) {
	b := newBench(t, monitor.Options{})
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "cat"), Stdio: monitor.Stdio{Stdin: true, StdinOnce: true}})
	client, engine := pair(t)
	opts := both
	opts.Stdin, opts.Preread = true, bytes.Repeat([]byte("p"), 100_000)
	end, err := m.Attach(b.ctx, struct{ halfConn }{halfConn{engine}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	go func() { client.Write([]byte("end")); client.CloseWrite() }()
	got, err := io.ReadAll(client)
	if err != nil || string(got) != string(opts.Preread)+"end" {
		t.Fatal(len(got), err)
	}
	<-end
}

type halfConn struct{ *net.UnixConn }

func TestTCPClient(t *testing.T) {
	b := newBench(t, monitor.Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	engine, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan monitor.AttachEnd, 1)
	opts := both
	opts.Stdin = true
	// The client sends more than the container reads: the output arrives in full all the same, before end of file and not before a reset.
	b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, os.Args[0], "play-lines", "50000", "4096"), Stdio: monitor.Stdio{Stdin: true},
		Attached: []monitor.AttachRequest{{Conn: engine, Options: opts, End: end}}})
	go client.Write(make([]byte, 4<<20))
	got, err := io.ReadAll(client)
	if err != nil || len(got) != 50000*80 {
		t.Fatal(len(got), err)
	}
	<-end
}
