package serve

import (
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
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

// askPassword reads a password; on a terminal it asks for it and hides what is typed. A signal gives up, with the terminal as it was.
func askPassword(std IO) (string, error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	defer hidden(std)()
	type answer struct {
		password string
		err      error
	}
	got := make(chan answer, 1)
	go func() {
		password, err := readPassword(std.In)
		got <- answer{password, err}
	}()
	select {
	case a := <-got:
		return a.password, a.err
	case sig := <-signals:
		return "", errs.New(errs.Invalid, "no password was given: %s", sig)
	}
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
