package proof

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/enginetest"
)

// `corten run -it … | head` left a terminal without echo: SIGPIPE ended the command before it had given the terminal back, and so did SIGINT from outside. Whatever ends it, the terminal is as it was.
func TestTerminalIsGivenBack(t *testing.T) {
	e := enginetest.Start(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		ctr := fmt.Sprintf("back-%d", sig)
		s := onScreen(t, e.Client("run", "-it", "--name", ctr, "-e", "PS1=ready> ", enginetest.Busybox, "sh"))
		slave := s.slave()
		s.types("", "ready> ")
		if err := s.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		s.givesBack(slave)
		if st := s.cmd.ProcessState.Sys().(syscall.WaitStatus); st.Signal() != sig {
			t.Errorf("%v: ended with %v", sig, s.cmd.ProcessState)
		}
		e.Corten("rm", "-f", ctr)
	}
	run := e.Client("run", "-it", "--name", "back-pipe", enginetest.Busybox, "sh", "-c", "while :; do echo line; sleep 0.1; done")
	piped := exec.Command("sh", append([]string{"-c", `"$@" | head -n 1`, "sh"}, run.Args...)...)
	piped.Env = run.Env
	s := onScreen(t, piped)
	slave := s.slave()
	s.types("", "line")
	s.types("", "broken pipe")
	s.givesBack(slave)
	e.Corten("rm", "-f", "back-pipe")
}

// slave opens the terminal's own side once more: with it, the settings outlive the program.
func (s *screen) slave() *os.File {
	s.t.Helper()
	n, err := unix.IoctlGetInt(int(s.master.Fd()), unix.TIOCGPTN)
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

// givesBack waits for the program's end, and looks at what it leaves of the terminal.
func (s *screen) givesBack(slave *os.File) {
	s.t.Helper()
	s.over()
	left, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	if want := uint32(unix.ECHO | unix.ICANON | unix.ISIG); left.Lflag&want != want {
		s.t.Errorf("%v: the terminal stays raw", s.cmd.Args)
	}
	slave.Close()
	<-s.ended
	s.master.Close()
}
