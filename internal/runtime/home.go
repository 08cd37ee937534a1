package runtime

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/safefs"
)

// maxPasswd bounds the file of users that is looked through.
const maxPasswd = 4 << 20

// withHome gives a process that names no HOME the one of its user, or /. The specification does not ask for it, but every other runtime does it, and engines rely on it.
func withHome(proc *specs.Process, root func() (*os.File, error)) *specs.Process {
	for _, e := range proc.Env {
		if strings.HasPrefix(e, "HOME=") && e != "HOME=" {
			return proc
		}
	}
	home := "/"
	if dir, err := root(); err == nil { // without a root it fails elsewhere
		if passwd, err := safefs.ReadFile(dir, "/etc/passwd", maxPasswd); err == nil {
			home = homeOf(passwd, proc.User.UID)
		}
		dir.Close()
	}
	with := *proc
	with.Env = append(append([]string(nil), proc.Env...), "HOME="+home)
	return &with
}

// openRoot opens the root file system for a look.
func (o *RunOptions) openRoot() (*os.File, error) {
	if o.Root == nil {
		return safefs.Root(o.rootPath())
	}
	fd, err := unix.FcntlInt(o.Root.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), o.Root.Name()), nil
}

// homeOf finds the home of a user in a passwd file: name:password:uid:gid:comment:home:shell.
func homeOf(passwd []byte, uid uint32) string {
	for line := range bytes.Lines(passwd) {
		parts := strings.Split(strings.TrimSpace(string(line)), ":")
		if len(parts) < 6 || parts[5] == "" {
			continue
		}
		if n, err := strconv.ParseUint(parts[2], 10, 32); err == nil && uint32(n) == uid {
			return parts[5]
		}
	}
	return "/"
}
