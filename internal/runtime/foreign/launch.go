package foreign

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/runtime"
)

// job is a command that makes a process: create or exec.
type job struct {
	launcher runtime.Launcher
	terminal bool
	name     string // of its files
	prepare  func(b *launch.Builder, slots []launch.Arg)
	files    []*os.File
	verb     []string // without what this file adds
	id       string   // the last argument
}

// launch has the command run by the launcher, and answers with the process that it made.
func (ctr *Container) launch(ctx context.Context, j job) (pid int, pidfd *os.File, err error) {
	at := func(what string) string { return filepath.Join(ctr.dir, j.name+"."+what) }
	pidFile, log := at("pid"), at("log")
	for _, name := range []string{pidFile, log} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, nil, err
		}
		defer os.Remove(name) //nolint:errcheck // goes with the folder
	}
	verb := append(j.verb, "--pid-file", pidFile)
	b := launch.NewBuilder(0)
	var slots []launch.Arg
	for range j.files {
		slots = append(slots, b.NewSlot())
	}
	files, console := j.files, launch.Imm(0)
	if j.terminal {
		dir, err := os.Open(ctr.dir)
		if err != nil {
			return 0, nil, err
		}
		defer dir.Close()                         //nolint:errcheck // a directory
		name := ours(dir) + "/" + j.name + ".tty" // the path of a socket may have only 107 bytes
		defer os.Remove(at("tty"))                //nolint:errcheck // goes with the folder
		tty, err := listen(name)
		if err != nil {
			return 0, nil, err
		}
		defer tty.Close() //nolint:errcheck // the monitor has its own
		verb, files, console = append(verb, "--console-socket", name), append(files[:len(files):len(files)], tty), b.NewSlot()
	}
	path, args, err := ctr.line(log, append(verb, j.id)...)
	if err != nil {
		return 0, nil, err
	}
	b.Makes(pidFile, console)
	if j.prepare != nil {
		j.prepare(b, slots)
	}
	null := launch.Imm(0)
	b.Sys(unix.SYS_UMASK, launch.Imm(0o022))
	b.Note("set standard input and output")
	for i := range 3 {
		b.Sys(unix.SYS_DUP3, launch.Slot(i), launch.Imm(i), null)
	}
	b.Keep(3)
	b.Note("execute " + path)
	b.Exec([]string{path}, args, environment())
	code, err := b.Encode()
	if err != nil {
		return 0, nil, err
	}
	pid, pidfd, err = j.launcher.Launch(ctx, code, files)
	if err == nil {
		return pid, pidfd, nil
	}
	if text := lastError(log); text != "" {
		return 0, nil, ctr.complaint(log, "", err)
	}
	return 0, nil, fmt.Errorf("runtime %s: %w", ctr.rec.Command.Name, err)
}

// listen makes the socket on which a runtime sends the master of a terminal.
func listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	return f, errors.Join(err, l.Close())
}
