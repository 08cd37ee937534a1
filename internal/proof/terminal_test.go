package proof

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/enginetest"
)

// screen is a program on a terminal of its own.
type screen struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	ended  chan struct{}

	mu   sync.Mutex // guards text
	text strings.Builder
	seen int // how far the text was waited for
}

func onScreen(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("needs /dev/ptmx: ", err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	s := &screen{t: t, master: master, cmd: cmd, ended: make(chan struct{})}
	s.resize(24, 80)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *screen) resize(rows, cols uint16) {
	if err := unix.IoctlSetWinsize(int(s.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		s.t.Fatal(err)
	}
}

// types sends keys, and waits until the text appears that they did not bring along; without keys, it waits for what comes after the last text that was waited for: it may be there already.
func (s *screen) types(keys, want string) {
	s.t.Helper()
	before := s.seen
	if keys != "" {
		s.mu.Lock()
		before = s.text.Len()
		s.mu.Unlock()
	}
	if _, err := s.master.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
	for range 1500 {
		s.mu.Lock()
		now := s.text.String()[before:]
		s.mu.Unlock()
		if i := strings.Index(now, want); i >= 0 {
			s.seen = before + i + len(want)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.t.Fatalf("after %q: no %q in %q", keys, want, s.text.String())
}

// leaves waits for the program's end and gives its code.
func (s *screen) leaves() int {
	s.t.Helper()
	s.over()
	<-s.ended
	s.master.Close()
	return s.cmd.ProcessState.ExitCode()
}

// over waits for the program's end.
func (s *screen) over() {
	s.t.Helper()
	err := make(chan error, 1)
	go func() { err <- s.cmd.Wait() }()
	select {
	case <-err:
	case <-time.After(time.Minute):
		_ = s.cmd.Process.Kill()
		s.t.Fatalf("it does not end: %q", s.text.String())
	}
}

// A person at a terminal: sizes follow, the keys that detach leave the container running, attach finds it as it was, and the exit code comes home. The same with docker's command line.
func TestTerminal(t *testing.T) {
	e := enginetest.Start(t)
	for name, path := range clients(e) {
		call := func(args ...string) *exec.Cmd {
			cmd := exec.Command(path, append([]string{"-H", e.Socket()}, args...)...)
			cmd.Env = append(os.Environ(), "HOME="+e.Dir, "TERM=xterm")
			return cmd
		}
		ctr := "at-" + name
		s := onScreen(t, call("run", "-it", "--name", ctr, "-e", "PS1=ready> ", enginetest.Busybox, "sh"))
		s.types("", "ready> ")
		s.types("stty size\r", "24 80")
		s.resize(30, 100)
		wait(t, name+": the size to follow", func() bool {
			out, err := e.Try("exec", ctr, "sh", "-c", "stty size < /proc/1/fd/0")
			return err == nil && out == "30 100"
		})
		s.types("stty size\r", "30 100")
		s.types("sleep 100\r", "sleep 100")
		wait(t, "the program to run", func() bool { _, err := e.Try("exec", ctr, "pidof", "sleep"); return err == nil })
		s.types("\x03", "ready> ") // goes to the program there, not to the client
		s.types("\x10\x11", "")
		if code := s.leaves(); code != 0 {
			t.Errorf("%s: run ends with %d when one detaches", name, code)
		}
		if got := e.Corten("inspect", "-f", "{{.State.Status}}", ctr); got != "running" {
			t.Fatalf("%s: detached, the container is %s", name, got)
		}
		s = onScreen(t, call("attach", "--detach-keys", "ctrl-x,q", ctr))
		s.types("\r", "ready> ")
		s.types("\x10\x11\x15echo $((20+1))\r", "21") // the usual keys go to the shell now, which clears the line again
		s.types("\x18q", "")
		if code := s.leaves(); code != 0 && code != 1 {
			t.Errorf("%s: attach ends with %d when one detaches: %q", name, code, s.text.String())
		}
		s = onScreen(t, call("attach", ctr))
		s.types("\r", "ready> ")
		s.types("exit 7\r", "")
		if code := s.leaves(); code != 7 {
			t.Errorf("%s: attach ends with %d, want 7", name, code)
		}
		s = onScreen(t, call("run", "--rm", "-it", enginetest.Busybox, "sh", "-c", "stty size; exit 9"))
		s.types("", "24 80")
		if code := s.leaves(); code != 9 {
			t.Errorf("%s: run ends with %d, want 9", name, code)
		}
		s = onScreen(t, call("start", "-ai", ctr))
		s.types("", "ready> ")
		s.types("exit 3\r", "")
		if code := s.leaves(); code != 3 {
			t.Errorf("%s: start -ai ends with %d, want 3", name, code)
		}
	}
}
