package serve

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// keepOwner gives a new version of a file the owner of the old one, so that a registry that runs as an ordinary user can still read it.
func keepOwner(f *os.File, old fs.FileInfo) error {
	if old == nil || os.Geteuid() != 0 {
		return nil
	}
	if st, ok := old.Sys().(*syscall.Stat_t); ok {
		return f.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}

// hidden asks for a password on a terminal and hides what is typed; restore shows it again.
func hidden(std IO) (restore func()) {
	in, ok := std.In.(*os.File)
	if !ok {
		return func() {}
	}
	old, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return func() {} // no terminal
	}
	fmt.Fprint(std.Err, "Password: ")
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &quiet); err != nil {
		fmt.Fprintln(std.Err, "(it will be seen:", err, ")")
	}
	return func() {
		_ = unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, old) // the terminal may be gone
		fmt.Fprintln(std.Err)
	}
}
