package runtime

import (
	"bytes"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/safefs"
)

// maxPasswd bounds the file of users that is looked through.
const maxPasswd = 4 << 20

// withHome gives a process that names no HOME, or an empty one, that of its user, or /. The specification does not ask for it, but every other runtime does it, and engines rely on it.
func withHome(proc *specs.Process, root func() (*os.File, error)) *specs.Process {
	at := slices.IndexFunc(proc.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) // a program takes the first, too
	if at >= 0 && proc.Env[at] != "HOME=" {
		return proc
	}
	home := "/"
	if dir, err := root(); err == nil { // without a root it fails elsewhere
		if passwd, err := safefs.ReadFile(dir, "/etc/passwd", maxPasswd); err == nil {
			home = homeOf(passwd, proc.User.UID)
		}
		dir.Close()
	}
	with := *proc
	if with.Env = slices.Clone(proc.Env); at < 0 {
		at, with.Env = len(with.Env), append(with.Env, "")
	}
	with.Env[at] = "HOME=" + home
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

// homeOf finds the home of a user in a passwd file.
func homeOf(passwd []byte, uid uint32) string {
	found, err := user.ParsePasswdFilter(bytes.NewReader(passwd), func(u user.User) bool { return u.Uid == int(uid) && u.Home != "" })
	if err != nil || len(found) == 0 {
		return "/"
	}
	return found[0].Home
}
