// Package pidfd asks and tells a process through its pidfd, which always means the same process: a pid may belong to another one by the time it is used.
//
// It owns nothing: descriptors belong to the caller, those it gets and those it returns. It promises that what is said of a process by pid is checked by its pidfd
// afterwards, and that an error of kind [errs.Conflict] means that the process has ended and been waited for. A descriptor that was closed, which others may do at any moment, is one of a process that has ended.
// Linux 5.3 is the floor.
package pidfd

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// Alive fails when the process has ended and been waited for, or there is no descriptor.
func Alive(fd *os.File) error {
	if fd == nil {
		return errs.New(errs.Conflict, "the process has ended")
	}
	if err := send(fd, 0); err != nil {
		return errs.New(errs.Conflict, "the process has ended: %w", err)
	}
	return nil
}

// send keeps the descriptor from being closed meanwhile: its number could be that of another process's by the time it is used, as pidfds come and go with every container.
func send(fd *os.File, sig syscall.Signal) (err error) {
	raw, err := fd.SyscallConn()
	if err != nil {
		return err
	}
	if raw.Control(func(n uintptr) { err = unix.PidfdSendSignal(int(n), sig, nil, 0) }) != nil { // it was closed
		return unix.ESRCH
	}
	return err
}

// Ended waits until the process has ended, for at most limit, and tells whether it has. It need not have been waited for.
func Ended(fd *os.File, limit time.Duration) bool {
	raw, err := fd.SyscallConn()
	if err != nil {
		return true
	}
	over := true
	end := time.Now().Add(limit)
	_ = raw.Control(func(n uintptr) { // not called when it was closed
		for {
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(n), Events: unix.POLLIN}}, int(max(0, time.Until(end).Milliseconds())))
			if err != unix.EINTR {
				over = ready > 0
				return
			}
		}
	})
	return over
}

// Kill sends SIGKILL. A process that has ended is no error.
func Kill(fd *os.File) error {
	if err := send(fd, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// Dup gives a second descriptor of the same process, to be closed on its own.
func Dup(fd *os.File) (*os.File, error) {
	raw, err := fd.SyscallConn()
	if err != nil {
		return nil, err
	}
	var second int
	if cerr := raw.Control(func(n uintptr) { second, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(second), "pidfd"), nil
}

// Open opens a file of the process's directory in procfs, such as "ns/net". The process of fd had this pid at some time; that it still had it is asked after the file is
// open: nobody else has the pid while the process is there.
func Open(fd *os.File, pid int, name string) (*os.File, error) {
	return open(fd, pid, name, unix.O_RDONLY)
}

// Root opens the root directory of the process, without the right to read it (O_PATH), checked as with [Open].
func Root(fd *os.File, pid int) (*os.File, error) {
	root, err := open(fd, pid, "root", unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) { // nobody has waited for it yet, but its root is gone
		return nil, errs.New(errs.Conflict, "the process has ended")
	}
	return root, err
}

func open(fd *os.File, pid int, name string, flags int) (*os.File, error) {
	f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/"+name, flags, 0)
	if err != nil {
		return nil, err
	}
	if err := Alive(fd); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Signal sends a signal. [errs.Conflict] when the process has ended and was waited for.
func Signal(fd *os.File, sig syscall.Signal) error {
	if err := send(fd, sig); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return errs.New(errs.Conflict, "the process has ended")
		}
		return err
	}
	return nil
}
