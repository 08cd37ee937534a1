package pidfd

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// process starts a process that waits, with a pidfd of it.
func process(t *testing.T) (*exec.Cmd, *os.File) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	n, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := os.NewFile(uintptr(n), "pidfd")
	t.Cleanup(func() { fd.Close() })
	return cmd, fd
}

func TestLifeAndEnd(t *testing.T) {
	cmd, fd := process(t)
	if err := Alive(fd); err != nil {
		t.Fatal(err)
	}
	if err := Kill(fd); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if err := Alive(fd); !errors.Is(err, errs.Conflict) {
		t.Errorf("after the end: %v", err)
	}
	if err := Kill(fd); err != nil {
		t.Errorf("killing what has ended: %v", err)
	}
	if err := Alive(nil); !errors.Is(err, errs.Conflict) {
		t.Errorf("without a descriptor: %v", err)
	}
}

func TestDupLivesOnItsOwn(t *testing.T) {
	_, fd := process(t)
	second, err := Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	fd.Close()
	if err := Alive(second); err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(second.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v: a child would get it", flags, err)
	}
	if _, err := Dup(fd); err == nil {
		t.Error("a closed descriptor was doubled")
	}
}

func TestOpen(t *testing.T) {
	cmd, fd := process(t)
	ns, err := Open(fd, cmd.Process.Pid, "ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	root, err := Root(fd, cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if fi, err := root.Stat(); err != nil || !fi.IsDir() {
		t.Errorf("%v, %v is no directory", fi, err)
	}
	if _, err := Open(fd, cmd.Process.Pid, "ns/none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// The pid of an ended process may be another's by now: what is opened by it must not be given out.
func TestNothingOfAnotherProcess(t *testing.T) {
	cmd, fd := process(t)
	cmd.Process.Kill()
	cmd.Wait()
	if f, err := Root(fd, os.Getpid()); !errors.Is(err, errs.Conflict) {
		f.Close()
		t.Errorf("the root of another process was opened: %v", err)
	}
}

// The number of a descriptor that was closed is soon that of another process, since pidfds come and go with every container: a signal to the one was heard by the other.
func TestClosedMeanwhile(t *testing.T) {
	_, fd := process(t)
	other, _ := process(t)
	if Ended(fd, 0) {
		t.Fatal("it has not ended")
	}
	number := int(fd.Fd())
	if err := fd.Close(); err != nil {
		t.Fatal(err)
	}
	taken, err := unix.PidfdOpen(other.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(taken)
	if taken != number {
		t.Logf("the number %d is not used again", number)
	}
	if err := Kill(fd); err != nil {
		t.Error(err)
	}
	if err := Signal(fd, unix.SIGKILL); !errors.Is(err, errs.Conflict) {
		t.Error(err)
	}
	if err := Alive(fd); !errors.Is(err, errs.Conflict) {
		t.Error(err)
	}
	if !Ended(fd, time.Minute) {
		t.Error("a closed descriptor's process runs")
	}
	if err := unix.PidfdSendSignal(taken, 0, nil, 0); err != nil {
		t.Errorf("the other process: %v", err)
	}
}

// A process that has ended, but that nobody has waited for, has no root any more: exec beside stop said that a path in /proc is not there.
func TestRootOfAZombie(t *testing.T) {
	cmd, fd := process(t)
	if err := Kill(fd); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(fd.Fd()), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, 60_000); err != unix.EINTR {
			break
		}
	}
	if root, err := Root(fd, cmd.Process.Pid); !errors.Is(err, errs.Conflict) {
		t.Errorf("%v %v", root, err)
	}
}
