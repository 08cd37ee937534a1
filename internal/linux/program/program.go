// Package program executes programs that have no path: ones that a binary carries inside itself, and copies of itself that nobody can write to.
//
// It owns nothing: a program is an open file, and gone with it. It promises that nobody else can change what is executed between the copy and the execution.
package program

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sealed copies a program into a memory file that nobody can write to any more. A kernel that executes no such files (vm.memfd_noexec=2) refuses.
func Sealed(name string, from io.Reader) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 there was no such flag
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("a memory file for %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = io.Copy(f, from); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("a memory file for %s: %w", name, err), f.Close())
	}
	return f, nil
}

// Nameless copies a program into a file in dir that has no name. Unlike a memory file it lies on the disk, so the kernel keeps no more of it in memory than is used.
// What lies where programs must not be executed (noexec) only shows in Exec.
func Nameless(dir string, from io.Reader) (_ *os.File, err error) {
	w, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_WRONLY, 0o500)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }() // the kernel executes nothing that is open for writing
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{from}, make([]byte, 4<<10)); err != nil {
		return nil, err
	}
	return os.Open(path(w))
}

// Exec makes the process run the program; it returns only if it could not.
func Exec(f *os.File, argv, env []string) error {
	return fmt.Errorf("execute %s: %w", argv[0], syscall.Exec(path(f), argv, env))
}

func path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
