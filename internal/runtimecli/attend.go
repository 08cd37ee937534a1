package runtimecli

import (
	"io"
	"os"
	"os/signal"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/pty"
	"corten.dev/corten/internal/runtime"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// terminal is the terminal of a process that runs in the foreground: its master comes over a socket pair, and bytes are copied between it and our own.
type terminal struct {
	ours, theirs *os.File
	in, out      *os.File
	saved        *unix.Termios
	signals      chan os.Signal // kept from before the process starts: one that comes in between is the process's, not ours to die of
}

// ownTerminal readies a terminal where the process wants one and nobody else takes it.
func (c *call) ownTerminal(l *runtime.Launcher, proc *specs.Process, s *starting, detach bool) (*terminal, error) {
	t := &terminal{in: c.In, out: c.Out, signals: make(chan os.Signal, 64)}
	if !detach {
		signal.Notify(t.signals)
	}
	if proc == nil || !proc.Terminal || s.console != "" {
		return t, nil
	}
	if detach {
		return nil, errs.New(errs.Invalid, "a terminal needs --console-socket when nobody waits")
	}
	var err error
	if t.ours, t.theirs, err = pty.Socket(); err != nil {
		return nil, err
	}
	*l = runtime.WithStdio([3]*os.File{c.In, c.Out, c.Err}, t.theirs)
	return t, nil
}

func (t *terminal) close() {
	if t == nil || t.ours == nil {
		return
	}
	t.ours.Close()
	t.theirs.Close()
	if t.saved != nil {
		_ = unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, t.saved)
	}
}

func (t *terminal) resize(master *os.File) {
	if size, err := unix.IoctlGetWinsize(int(t.in.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = pty.Resize(master, size.Row, size.Col) // a terminal without a size is one all the same
	}
}

// raw switches our own terminal to pass everything on.
func (t *terminal) raw() {
	old, err := unix.IoctlGetTermios(int(t.in.Fd()), unix.TCGETS)
	if err != nil {
		return // not a terminal
	}
	now := *old
	now.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	now.Oflag &^= unix.OPOST
	now.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	now.Cflag = now.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, &now) == nil {
		t.saved = old
	}
}

// attend waits for the process, which is our child: signals go to it, and its terminal is ours meanwhile.
func (c *call) attend(pid int, pidfd *os.File, t *terminal) (int, error) {
	signals := t.signals
	defer signal.Stop(signals)
	var master *os.File
	copied := make(chan struct{})
	if t.ours != nil {
		var err error
		if master, err = pty.Receive(t.ours); err != nil {
			return 1, err
		}
		defer master.Close()
		t.raw()
		t.resize(master)
		go func() { _, _ = io.Copy(master, t.in) }() // ends with the process
		go func() {
			defer close(copied)
			_, _ = io.Copy(t.out, master) // ends with EIO when the last of the terminal's processes is gone
		}()
	} else {
		close(copied)
	}
	ended := make(chan unix.WaitStatus, 1)
	go func() {
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
				break
			}
		}
		ended <- ws
	}()
	for {
		select {
		case sig := <-signals:
			switch sig {
			case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
			case unix.SIGWINCH:
				if master != nil {
					t.resize(master)
				}
			default:
				_ = unix.PidfdSendSignal(int(pidfd.Fd()), sig.(unix.Signal), nil, 0) // gone is what the other case tells
			}
		case ws := <-ended:
			<-copied
			if ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return ws.ExitStatus(), nil
		}
	}
}
