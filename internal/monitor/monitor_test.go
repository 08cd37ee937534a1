package monitor_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// bench is what each test works with.
type bench struct {
	t    testing.TB
	pool *monitor.Pool
	dir  string
	ctx  context.Context
}

func newBench(t testing.TB, opts monitor.Options) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return &bench{t: t, pool: monitortest.NewPool(t, opts), dir: t.TempDir(), ctx: ctx}
}

// launch starts l under a monitor that ends with the test.
func (b *bench) launch(l monitor.Launch) monitor.Monitor {
	b.t.Helper()
	if l.ID == "" {
		l.ID = "c1"
	}
	m, err := b.pool.Launch(b.ctx, l)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.end(m) })
	return m
}

// end kills what still runs and closes the monitor.
func (b *bench) end(m monitor.Monitor) {
	select {
	case <-m.Exited():
	default:
		unix.PidfdSendSignal(int(m.PIDFD().Fd()), unix.SIGKILL, nil, 0)
		select {
		case <-m.Exited():
		case <-time.After(time.Second): // a test that closed it while it ran
		}
	}
	m.Close()
}

func (b *bench) wait(p monitor.Process) monitor.Exit {
	b.t.Helper()
	select {
	case <-p.Exited():
	case <-b.ctx.Done():
		b.t.Fatal("the process does not end")
	}
	return p.Exit()
}

// pair is a client's connection, and the engine's end of it to attach.
func pair(t testing.TB) (client, engine *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return out[0], out[1]
}

var both = monitor.AttachOptions{Stdout: true, Stderr: true}

func TestLaunchTellsTheExit(t *testing.T) {
	b := newBench(t, monitor.Options{})
	for _, c := range []struct {
		script       string
		code, signal int
	}{{"exit 0", 0, 0}, {"exit 42", 42, 0}, {"kill -9 $$", 137, 9}, {"kill -TERM $$", 143, 15}} {
		exit := filepath.Join(b.dir, "exit")
		m := b.launch(monitor.Launch{Program: monitortest.Shell(t, c.script), ExitPath: exit, Durable: true})
		x := b.wait(m)
		if x.Code != c.code || x.Signal != c.signal || x.Lost || x.OOMKilled || time.Since(x.At) > time.Minute {
			t.Errorf("%s: %+v", c.script, x)
		}
		rec, err := monitor.ReadExit(exit)
		if err != nil || rec != x {
			t.Errorf("%s: recorded %+v, %v; told %+v", c.script, rec, err, x)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if ids, _ := b.pool.List(); len(ids) != 0 {
			t.Errorf("left: %v", ids)
		}
	}
}

func TestAttachedBeforeTheStart(t *testing.T) {
	b := newBench(t, monitor.Options{})
	client, engine := pair(t)
	end := make(chan monitor.AttachEnd, 1)
	b.launch(monitor.Launch{Program: monitortest.Shell(t, "echo out; echo err >&2"),
		Attached: []monitor.AttachRequest{{Conn: engine, Options: monitor.AttachOptions{Stdout: true, Stderr: true, Framed: true}, End: end}}})
	got, err := io.ReadAll(client)
	if want := "\x01\x00\x00\x00\x00\x00\x00\x04out\n\x02\x00\x00\x00\x00\x00\x00\x04err\n"; string(got) != want || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	select {
	case e := <-end:
		if e.Detached {
			t.Error("detached")
		}
	case <-b.ctx.Done():
		t.Fatal("the end is not told")
	}
}

func TestStdin(t *testing.T) {
	b := newBench(t, monitor.Options{})
	client, engine := pair(t)
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "cat"), Stdio: monitor.Stdio{Stdin: true, StdinOnce: true}})
	opts := both
	opts.Stdin, opts.Preread = true, []byte("first ")
	if _, err := m.Attach(b.ctx, engine, opts); err != nil {
		t.Fatal(err)
	}
	want := append([]byte("first "), bytes.Repeat([]byte("0123456789abcdef"), 1<<16)...)
	go func() {
		client.Write(want[6:])
		client.CloseWrite()
	}()
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if x := b.wait(m); x.Code != 0 {
		t.Fatal(x)
	}
}

func BenchmarkLaunch(b *testing.B) {
	bn := newBench(b, monitor.Options{Pool: 2})
	prog := monitortest.Program(b, 0, false, "true")
	time.Sleep(50 * time.Millisecond)
	var launch, exit, closing time.Duration
	for b.Loop() {
		t0 := time.Now()
		m, err := bn.pool.Launch(context.Background(), monitor.Launch{ID: "c1", Program: prog, ExitPath: filepath.Join(bn.dir, "exit"), Log: monitor.LogOptions{Path: filepath.Join(bn.dir, "log")}})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		<-m.Exited()
		t2 := time.Now()
		m.Close()
		launch, exit, closing = launch+t1.Sub(t0), exit+t2.Sub(t1), closing+time.Since(t2)
		b.StopTimer()
		time.Sleep(25 * time.Millisecond)
		b.StartTimer()
	}
	for _, x := range []struct {
		d    time.Duration
		unit string
	}{{launch, "launch-us"}, {exit, "until-exit-us"}, {closing, "close-us"}} {
		b.ReportMetric(float64(x.d.Microseconds())/float64(b.N), x.unit)
	}
}
