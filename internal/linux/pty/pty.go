// Package pty gets the master of a terminal that a process opened itself, and changes its size.
//
// It owns nothing: descriptors belong to the caller. It promises that a master can be read with deadlines and closed while somebody reads.
package pty

import (
	"fmt"
	"os"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// Socket gives both ends of the socket over which a master comes: theirs is for the process that opens the terminal.
func Socket() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket for a terminal: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), "console"), os.NewFile(uintptr(pair[1]), "console"), nil
}

// Receive takes the master from the socket. It waits for it until the other end is closed.
func Receive(ours *os.File) (*os.File, error) {
	buf, oob := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
	var n int
	var err error
	for {
		if _, n, _, _, err = unix.Recvmsg(int(ours.Fd()), buf, oob, unix.MSG_CMSG_CLOEXEC); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errs.New(errs.Unavailable, "terminal: none came")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errs.New(errs.Unavailable, "terminal: none came")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// Resize tells the terminal its size; zeros leave it as it is.
func Resize(master *os.File, rows, cols uint16) error {
	if rows == 0 && cols == 0 {
		return nil
	}
	conn, err := master.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	var ierr error
	err = conn.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err == nil {
		err = ierr
	}
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}
