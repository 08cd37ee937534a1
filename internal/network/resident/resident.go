// Package resident is what the small processes that outlive the engine (port proxy, name server) have in common: no rights, little memory, and packets with descriptors.
//
// It owns nothing. It promises that a descriptor passes between processes without changing how anyone reads from it.
package resident

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/host"
)

// Confine gives up every privilege: all sockets that need one come from the engine.
func Confine() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		lim.Cur = lim.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &lim) // less at a time is no reason to do nothing
	}
	if os.Getuid() == 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
			return fmt.Errorf("give up root: %w", err)
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// Slim keeps the process small. The engine's program, which it runs, touches nearly all of its pages when it starts; what is needed of them afterwards is a small part, and
// the kernel finds that again in its cache. It is done again and again, more and more rarely.
func Slim() {
	debug.SetGCPercent(50)
	time.AfterFunc(time.Second, func() { slim(time.Minute) })
}

func slim(again time.Duration) {
	debug.FreeOSMemory()
	_ = host.ForgetPages() // they stay in memory, then
	time.AfterFunc(again, func() { slim(2 * again) })
}

// Control runs fn on the descriptor, which cannot be closed meanwhile. (Fd would make the socket a blocking one, for everybody who shares it.)
func Control(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = raw.Control(func(fd uintptr) { ferr = fn(int(fd)) })
	return errors.Join(err, ferr)
}

// Dup is a duplicate of the descriptor.
func Dup(f *os.File) (fd int, err error) {
	err = Control(f, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("dup", err)
	})
	return fd, err
}

// Send writes one packet, as JSON, with the files.
func Send(c *net.UnixConn, packet any, files []*os.File) error {
	raw, err := json.Marshal(packet)
	if err != nil {
		return err
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // a duplicate
		}
	}()
	for _, f := range files {
		fd, err := Dup(f)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(raw, oob, nil)
	return err
}

// Descriptors takes the files out of a control message.
func Descriptors(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, errors.Join(err, Close(files))
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// Close closes them all.
func Close(files []*os.File) error {
	var all []error
	for _, f := range files {
		all = append(all, f.Close())
	}
	return errors.Join(all...)
}
