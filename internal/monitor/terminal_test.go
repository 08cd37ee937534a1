package monitor_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// playTerminal does what a container's program does for a terminal: it opens one, sends its master over descriptor 3, and runs a shell on it.
func playTerminal(script string) {
	fail := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	fail(err)
	fail(unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	fail(err)
	slave, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR, 0)
	fail(err)
	fail(unix.Sendmsg(3, []byte{0}, unix.UnixRights(master), nil, 0))
	unix.Close(3)
	unix.Close(master)
	for i := range 3 {
		fail(unix.Dup3(slave, i, 0))
	}
	fail(unix.IoctlSetInt(0, unix.TIOCSCTTY, 0))
	unix.Close(slave)
	fail(syscall.Exec("/bin/sh", []string{"sh", "-c", script}, os.Environ()))
}

// readUntil reads from r until what it read contains want.
func readUntil(t *testing.T, r io.Reader, want string) string {
	t.Helper()
	var got strings.Builder
	buf := make([]byte, 1024)
	for !strings.Contains(got.String(), want) {
		n, err := r.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("%q, %v; want %q", got.String(), err, want)
		}
	}
	return got.String()
}

func TestTerminal(t *testing.T) {
	b := newBench(t, monitor.Options{})
	log := filepath.Join(b.dir, "log")
	script := "read x; stty size; echo got $x; stty size; read y; echo bye $y; exit 4" // what is typed comes once the terminal has its size
	client, engine := pair(t)
	end := make(chan monitor.AttachEnd, 1)
	opts := monitor.AttachOptions{Stdin: true, Stdout: true, Stderr: true, Framed: true, DetachKeys: []byte{16, 17}, Preread: []byte("early\n")}
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, true, os.Args[0], "play-terminal", script), Log: monitor.LogOptions{Path: log},
		Stdio: monitor.Stdio{Terminal: true, Stdin: true, StdinOnce: true, Rows: 33, Cols: 99}, Attached: []monitor.AttachRequest{{Conn: engine, Options: opts, End: end}}})
	readUntil(t, client, "got early\r\n")
	if err := m.Resize(b.ctx, 11, 22); err != nil {
		t.Fatal(err)
	}
	client.Write([]byte{16})
	client.Write([]byte{17})
	select {
	case e := <-end:
		if !e.Detached {
			t.Error("not detached")
		}
	case <-b.ctx.Done():
		t.Fatal("the keys do not detach")
	}
	if rest, err := io.ReadAll(client); err != nil || len(rest) > 20 {
		t.Error(rest, err)
	}
	client.Close()

	client, engine = pair(t)
	opts.Preread = nil
	if _, err := m.Attach(b.ctx, engine, opts); err != nil {
		t.Fatal(err)
	}
	client.Write([]byte{'a', 16, 'b', '\n'}) // the beginning of the keys, and then something else
	got := readUntil(t, client, "bye ")
	rest, err := io.ReadAll(client)
	if got += string(rest); err != nil || !strings.HasSuffix(got, "bye a\x10b\r\n") {
		t.Errorf("%q %v", got, err)
	}
	if x := b.wait(m); x.Code != 4 {
		t.Error(x)
	}
	if got := logged(t, log); !strings.HasPrefix(got, "33 99\r\n") && !strings.HasPrefix(got, "early\r\n33 99\r\n") || !strings.Contains(got, "11 22\r\n") && !strings.HasSuffix(got, "bye a\x10b\r\n") {
		t.Errorf("%q", got)
	}
}

// What a program writes to its terminal and ends at once is not lost, though the kernel hands it to the master from elsewhere.
func TestTerminalSaysEverythingBeforeItEnds(t *testing.T) {
	b := newBench(t, monitor.Options{})
	for i := range 30 {
		log := filepath.Join(b.dir, fmt.Sprint("log", i))
		client, engine := pair(t)
		m := b.launch(monitor.Launch{ID: fmt.Sprint("t", i), Program: monitortest.Program(t, 0, true, os.Args[0], "play-terminal", "seq 1 300"), Log: monitor.LogOptions{Path: log},
			Stdio: monitor.Stdio{Terminal: true}, Attached: []monitor.AttachRequest{{Conn: engine, Options: both, End: make(chan monitor.AttachEnd, 1)}}})
		client.SetReadDeadline(time.Now().Add(time.Minute))
		got, err := io.ReadAll(client)
		if want := logged(t, log); string(got) != want || !strings.HasSuffix(want, "\r\n300\r\n") || err != nil {
			t.Fatalf("%d: %q, %v; log %q", i, got, err, want)
		}
		b.wait(m)
		m.Close()
	}
}

func TestTerminalSession(t *testing.T) {
	b := newBench(t, monitor.Options{})
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "sleep", "100")})
	s, err := m.Exec(b.ctx, "s", monitortest.Program(t, 0, true, os.Args[0], "play-terminal", "read x; stty size; echo $x"), nil, monitor.Stdio{Terminal: true, Stdin: true, AttachOnly: true, Rows: 5, Cols: 6})
	if err != nil {
		t.Fatal(err)
	}
	client, engine := pair(t)
	opts := both
	opts.Stdin = true
	if _, err := s.Attach(b.ctx, engine, opts); err != nil {
		t.Fatal(err)
	}
	client.Write([]byte("hello\n"))
	got, err := io.ReadAll(client)
	if err != nil || !strings.HasSuffix(string(got), "5 6\r\nhello\r\n") {
		t.Errorf("%q %v", got, err)
	}
	b.wait(s)
	if err := s.Resize(b.ctx, 1, 1); err == nil {
		t.Error("resized a session that ended")
	}
}

// A client that takes part of what a full disk left out is told of it in the log.
func TestFullDisk(t *testing.T) {
	b := newBench(t, monitor.Options{})
	disk := filepath.Join(b.dir, "disk")
	os.Mkdir(disk, 0o700)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=4m"); err != nil {
		t.Skip("no tmpfs: ", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	log := filepath.Join(disk, "log")
	ballast := filepath.Join(disk, "ballast")
	os.WriteFile(ballast, make([]byte, 3972<<10), 0o600)
	m := b.launch(monitor.Launch{Program: monitortest.Program(t, 0, false, "sh", "-c", os.Args[0]+" play-lines 18000 4096; echo full > "+b.dir+"/full; while test -e "+ballast+"; do sleep 0.02; done; echo after"),
		Log: monitor.LogOptions{Path: log}})
	// By then 1.4 MB were written, of which the disk takes 0.1 and the pipe at most 1: the monitor has met the full disk.
	eventually(t, "full", func() bool { _, err := os.Stat(b.dir + "/full"); return err == nil })
	os.Remove(ballast)
	if x := b.wait(m); x.Code != 0 {
		t.Error(x)
	}
	got := logged(t, log)
	if !strings.Contains(got, "bytes of output are missing here") || !strings.HasSuffix(got, "after\n") {
		t.Errorf("%q", got[max(0, len(got)-300):])
	}
}
