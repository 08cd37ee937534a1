package monitor_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// maker is a program that plays the command line of an OCI runtime: a shell that makes a process, writes its number down and ends.
func maker(t testing.TB, pidFile, script string) []byte {
	t.Helper()
	b := launch.NewBuilder(0)
	for i := range 3 {
		b.Sys(syscall.SYS_DUP3, launch.Slot(i), launch.Imm(i), launch.Imm(0))
	}
	b.Makes(pidFile, launch.Imm(0))
	b.Exec([]string{"/bin/sh"}, []string{"sh", "-c", script}, os.Environ())
	code, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// A process that a command made is as any other: its number, output, input and exit, and sessions, however early they end.
func TestMadeByACommand(t *testing.T) {
	b := newBench(t, monitor.Options{})
	pidFile := filepath.Join(b.dir, "pid")
	exit := filepath.Join(b.dir, "exit")
	log := filepath.Join(b.dir, "log")
	client, engine := pair(t)
	end := make(chan monitor.AttachEnd, 1)
	script := fmt.Sprintf(`exec 3<&0; (exec sh -c 'echo made $$; read x <&3; echo got $x; exit 7') & echo $! >%s; exit 0`, pidFile)
	m := b.launch(monitor.Launch{
		Program: maker(t, pidFile, script), ExitPath: exit, Log: monitor.LogOptions{Path: log}, Stdio: monitor.Stdio{Stdin: true},
		Attached: []monitor.AttachRequest{{Conn: engine, Options: monitor.AttachOptions{Stdin: true, Stdout: true, Stderr: true}, End: end}},
	})
	said, err := os.ReadFile(pidFile)
	if err != nil || strings.TrimSpace(string(said)) != fmt.Sprint(m.PID()) {
		t.Errorf("process %d, the command wrote %q, %v", m.PID(), said, err)
	}
	for i := range 5 {
		at := filepath.Join(b.dir, fmt.Sprint("pid", i))
		// The session is over before its command is.
		s, err := m.Exec(b.ctx, fmt.Sprint("s", i), maker(t, at, fmt.Sprintf(`(sleep 0.05; exit %d) & echo $! >%s; exec sleep 0.2`, i, at)), nil, monitor.Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if x := b.wait(s); x.Code != i {
			t.Errorf("session %d: %+v", i, x)
		}
	}
	if _, err := client.Write([]byte("word\n")); err != nil {
		t.Fatal(err)
	}
	if x := b.wait(m); x.Code != 7 {
		t.Errorf("%+v", x)
	}
	if got, err := io.ReadAll(client); err != nil || string(got) != fmt.Sprintf("made %d\ngot word\n", m.PID()) {
		t.Errorf("%q, %v", got, err)
	}
	if rec, err := monitor.ReadExit(exit); err != nil || rec.Code != 7 {
		t.Errorf("%+v, %v", rec, err)
	}
	if got := logged(t, log); !strings.Contains(got, "got word") {
		t.Errorf("log %q", got)
	}
}

// A command that fails, or names a process that is none of ours, starts nothing; what it says on the pipes is nobody's output, and the connections are still the caller's.
func TestCommandThatMakesNothing(t *testing.T) {
	b := newBench(t, monitor.Options{})
	pidFile := filepath.Join(b.dir, "pid")
	for script, want := range map[string]string{
		"echo noise; exit 3": "the command failed",
		"kill -9 $$":         "the command failed",
		"exit 0":             "open the command's file with the number of the process",
		"echo 1 >" + pidFile: "the command wrote no number of a process",
		fmt.Sprintf("echo %d >%s", os.Getpid(), pidFile): "the process that the command made is not ours",
	} {
		os.Remove(pidFile)
		client, engine := pair(t)
		_, err := b.pool.Launch(b.ctx, monitor.Launch{ID: "c1", Program: maker(t, pidFile, script),
			Attached: []monitor.AttachRequest{{Conn: engine, Options: both, End: make(chan monitor.AttachEnd, 1)}}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", script, err, want)
		}
		if _, err := engine.Write([]byte("mine")); err != nil {
			t.Errorf("%s: %v", script, err)
		}
		engine.Close()
		if got, _ := io.ReadAll(client); string(got) != "mine" {
			t.Errorf("%s: %q", script, got)
		}
		if ids, err := b.pool.List(); err != nil || len(ids) != 0 {
			t.Errorf("%s: left %v, %v", script, ids, err)
		}
	}
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "sleep", "100")})
	if _, err := m.Exec(b.ctx, "s", maker(t, pidFile, "exit 1"), nil, monitor.Stdio{}); err == nil || len(m.Sessions()) != 0 {
		t.Error(err, m.Sessions())
	}
}

// A launch that failed once the log was open left it open, and the count of kills for memory: the next one of the same monitor had two logs.
func TestNothingIsLeftOfALaunchThatFailed(t *testing.T) {
	b := newBench(t, monitor.Options{Pool: 1})
	b.only()
	m, launch, err := monitor.Take(b.pool, "c1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.end(m) })
	kills := filepath.Join(b.dir, "kills")
	if err := os.WriteFile(kills, []byte("oom_kill 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(b.dir, "pid")
	ask := func(program []byte, log string) error {
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		oom := os.NewFile(uintptr(event), "eventfd")
		defer oom.Close()
		return launch(b.ctx, monitor.Launch{
			ID: "c1", Program: program, ExitPath: filepath.Join(b.dir, "exit"), Log: monitor.LogOptions{Path: log}, Stdio: monitor.Stdio{Stdin: true}, OOMEvent: oom, OOMPath: kills,
		})
	}
	var first []string
	for range 3 {
		for what, program := range map[string][]byte{"a command that fails": maker(t, pidFile, "exit 3"), "a program that is none": []byte("x")} {
			if err := ask(program, filepath.Join(b.dir, "log")); err == nil {
				t.Fatalf("%s was launched", what)
			}
		}
		if err := ask(maker(t, pidFile, "exec sleep 100"), filepath.Join(b.dir, "none", "log")); err == nil {
			t.Fatal("launched without a log")
		}
		if now := open(t, m.MonitorPID()); first == nil {
			first = now
		} else if !slices.Equal(now, first) {
			t.Fatalf("more is open after each launch that failed:\n%q\n%q", first, now)
		}
	}
	for _, name := range first {
		if name == "log" || name == "kills" {
			t.Errorf("left open: %q", first)
		}
	}
	if err := ask(monitortest.Shell(t, "echo said; exit 5"), filepath.Join(b.dir, "other")); err != nil {
		t.Fatal(err)
	}
	if x := b.wait(m); x.Code != 5 {
		t.Errorf("%+v", x)
	}
	if got := logged(t, filepath.Join(b.dir, "other")); got != "said\n" {
		t.Errorf("log %q", got)
	}
}
