package runtimecli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/runtime"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// words collects the values of a flag that may be given several times.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

type execFlags struct {
	starting
	process, cwd, user, label, apparmor string
	env, caps, gids, cgroups            words
	tty, detach, nnp, paused            bool
}

func execute(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	var x execFlags
	x.common(fs)
	fs.StringVar(&x.process, "process", "", "`file` with the process as JSON")
	fs.StringVar(&x.process, "p", "", "short for --process")
	fs.StringVar(&x.cwd, "cwd", "", "working `directory`")
	fs.StringVar(&x.user, "user", "", "`uid[:gid]`")
	fs.StringVar(&x.user, "u", "", "short for --user")
	fs.StringVar(&x.label, "process-label", "", "SELinux `label`")
	fs.StringVar(&x.apparmor, "apparmor", "", "AppArmor `profile`")
	fs.Var(&x.env, "env", "`NAME=value`, may be repeated")
	fs.Var(&x.env, "e", "short for --env")
	fs.Var(&x.caps, "cap", "`capability` to add, may be repeated")
	fs.Var(&x.caps, "c", "short for --cap")
	fs.Var(&x.gids, "additional-gids", "`gid`, may be repeated")
	fs.Var(&x.gids, "g", "short for --additional-gids")
	fs.Var(&x.cgroups, "cgroup", "`[controller,…:]path` of a cgroup below the container's to join, may be repeated")
	fs.BoolVar(&x.tty, "tty", false, "give it a terminal")
	fs.BoolVar(&x.tty, "t", false, "short for --tty")
	fs.BoolVar(&x.detach, "detach", false, "do not wait for the end")
	fs.BoolVar(&x.detach, "d", false, "short for --detach")
	fs.BoolVar(&x.paused, "ignore-paused", false, "let it into a paused container, where it waits with the others")
	fs.BoolVar(&x.nnp, "no-new-privs", false, "no new privileges")
	return func(args []string) (int, error) {
		if len(args) == 0 {
			return 1, errs.New(errs.Invalid, "a container's id and a command are needed")
		}
		ctr, err := c.load(args[0])
		if err != nil {
			return 1, err
		}
		defer ctr.Close()
		proc, err := x.build(ctr, args[1:])
		if err != nil {
			return 1, err
		}
		launcher, done, err := c.launcher(x.console)
		defer done()
		if err != nil {
			return 1, err
		}
		own, err := c.ownTerminal(&launcher, proc, &x.starting, x.detach)
		if err != nil {
			return 1, err
		}
		defer own.close()
		pid, pidfd, err := ctr.Exec(c.ctx, runtime.Exec{Process: proc, Launcher: launcher, PreserveFDs: x.preserve, IgnorePaused: x.paused, Cgroups: x.cgroups})
		if err != nil {
			return execCode(err), err
		}
		defer pidfd.Close()
		if err := x.started(pid, pidfd); err != nil {
			return 1, err
		}
		if x.detach {
			return 0, nil
		}
		return c.attend(pid, pidfd, own)
	}
}

// execCode is what a shell would say.
func execCode(err error) int {
	switch {
	case errors.Is(err, errs.NoCommand):
		return 127
	case errors.Is(err, errs.NotExecutable):
		return 126
	}
	return 255
}

// build makes the process of a file, or of the container's own process and the flags.
func (x *execFlags) build(ctr *runtime.Container, args []string) (*specs.Process, error) {
	if x.process != "" {
		body, err := os.ReadFile(x.process)
		if err != nil {
			return nil, fmt.Errorf("process: %w", err)
		}
		proc := &specs.Process{}
		if err := json.Unmarshal(body, proc); err != nil {
			return nil, errs.New(errs.Invalid, "process %s: %w", x.process, err)
		}
		return proc, nil
	}
	st, err := ctr.State()
	if err != nil {
		return nil, err
	}
	spec, err := ReadSpec(st.Bundle)
	if err != nil {
		return nil, err
	}
	proc := spec.Process
	if proc == nil {
		return nil, errs.New(errs.Invalid, "bundle %s: process is missing", st.Bundle)
	}
	if len(args) == 0 {
		return nil, errs.New(errs.Invalid, "a command is needed")
	}
	proc.Args, proc.Terminal, proc.ConsoleSize = args, x.tty, nil
	if x.cwd != "" {
		proc.Cwd = x.cwd
	}
	if x.label != "" {
		proc.SelinuxLabel = x.label
	}
	if x.apparmor != "" {
		proc.ApparmorProfile = x.apparmor
	}
	proc.NoNewPrivileges = proc.NoNewPrivileges || x.nnp
	proc.Env = append(proc.Env, x.env...)
	if err := x.ids(proc); err != nil {
		return nil, err
	}
	if len(x.caps) > 0 {
		if proc.Capabilities == nil {
			proc.Capabilities = &specs.LinuxCapabilities{}
		}
		// Not the inheritable set: it would give the capabilities to programs with file capabilities that the user runs.
		c := proc.Capabilities
		c.Bounding, c.Effective, c.Permitted = append(c.Bounding, x.caps...), append(c.Effective, x.caps...), append(c.Permitted, x.caps...)
	}
	return proc, nil
}

func (x *execFlags) ids(proc *specs.Process) error {
	if x.user != "" {
		uid, gid, both := strings.Cut(x.user, ":")
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return errs.New(errs.Invalid, "--user %q: must be numbers", x.user)
		}
		proc.User.UID = uint32(n)
		if both {
			if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
				return errs.New(errs.Invalid, "--user %q: must be numbers", x.user)
			}
			proc.User.GID = uint32(n)
		}
	}
	for _, g := range x.gids {
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return errs.New(errs.Invalid, "--additional-gids %q: must be a number", g)
		}
		proc.User.AdditionalGids = append(proc.User.AdditionalGids, uint32(n))
	}
	return nil
}
