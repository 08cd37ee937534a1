// Package pidfd asks and tells a process through its pidfd, which always means the same process: a pid may belong to another one by the time it is used.
//
// It owns nothing: descriptors belong to the caller, those it gets and those it returns. It promises that what is said of a process by pid is checked by its pidfd
// afterwards, and that an error of kind [errs.Conflict] means that the process has ended and been waited for. Linux 5.3 is the floor.
package pidfd

import (
	"errors"
	"os"
	"strconv"
	"syscall"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// Alive fails when the process has ended and been waited for, or there is no descriptor.
func Alive(fd *os.File) error {
	if fd == nil {
		return errs.New(errs.Conflict, "the process has ended")
	}
	if err := unix.PidfdSendSignal(int(fd.Fd()), 0, nil, 0); err != nil {
		return errs.New(errs.Conflict, "the process has ended: %w", err)
	}
	return nil
}

// Kill sends SIGKILL. A process that has ended is no error.
func Kill(fd *os.File) error {
	if err := unix.PidfdSendSignal(int(fd.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// Dup gives a second descriptor of the same process, to be closed on its own.
func Dup(fd *os.File) (*os.File, error) {
	n, err := unix.FcntlInt(fd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "pidfd"), nil
}

// Open opens a file of the process's directory in procfs, such as "ns/net". The process of fd had this pid at some time; that it still had it is asked after the file is
// open: nobody else has the pid while the process is there.
func Open(fd *os.File, pid int, name string) (*os.File, error) {
	return open(fd, pid, name, unix.O_RDONLY)
}

// Root opens the root directory of the process, without the right to read it (O_PATH), checked as with [Open].
func Root(fd *os.File, pid int) (*os.File, error) {
	return open(fd, pid, "root", unix.O_PATH|unix.O_DIRECTORY)
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
	if err := unix.PidfdSendSignal(int(fd.Fd()), sig, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return errs.New(errs.Conflict, "the process has ended")
		}
		return err
	}
	return nil
}
