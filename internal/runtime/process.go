package runtime

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/caps"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// procWrites are the settings made by writing to the process's own files of procfs; they come first, while the process is still the host's.
func (p *plan) procWrites(proc *specs.Process) {
	if proc.OOMScoreAdj != nil {
		p.note("set oom score %d", *proc.OOMScoreAdj)
		p.writeProc("self/oom_score_adj", strconv.Itoa(*proc.OOMScoreAdj))
	}
	if proc.Scheduler != nil {
		p.scheduler(proc.Scheduler)
	}
	if proc.IOPriority != nil {
		p.ioPriority(proc.IOPriority)
	}
}

// limits come late: a low limit of open files would stop the program itself. Of two of one type the later one holds: the specification wants an error, but runc takes them, and
// engines that append (nerdctl for --ulimit given twice) rely on it.
func (p *plan) limits(proc *specs.Process) {
	for _, l := range proc.Rlimits {
		n, ok := rlimits[l.Type]
		if !ok {
			p.fail(errs.New(errs.Invalid, "rlimit %q is unknown", l.Type))
			return
		}
		if l.Soft > l.Hard {
			p.fail(errs.New(errs.Invalid, "rlimit %s: soft limit %d is above the hard limit %d", l.Type, l.Soft, l.Hard))
			return
		}
		p.note("set rlimit %s to %d:%d", l.Type, l.Soft, l.Hard)
		p.b.Sys(unix.SYS_PRLIMIT64, null, launch.Imm(n), p.b.Words(l.Soft, l.Hard), null)
	}
}

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// dieWithLauncher has the kernel kill the process when its launcher ends, whatever ends it, and whether or not an engine is there to see it. It comes twice: as soon as
// the process is the one that stays, and once more after its ids changed, because a change of ids clears it. Two short gaps remain, before each; a launcher that dies in one
// is found by the engine, or by the next one when it starts. So is one whose program changes its ids itself, which clears it for good.
func (p *plan) dieWithLauncher() {
	if p.opts.DieWithLauncher {
		p.note("tie the process to its launcher")
		p.b.Sys(unix.SYS_PRCTL, launch.Imm(unix.PR_SET_PDEATHSIG), launch.Imm(unix.SIGKILL), null, null, null)
	}
}

// session gives the process a session, a keyring and, with a terminal, its controlling terminal.
func (p *plan) session(proc *specs.Process) {
	b := p.b
	// Without one of its own the container would see the session keyring of whoever started the engine. Kernels without keyrings, or with a full quota, go on.
	if !p.opts.NoNewKeyring {
		p.note("make session keyring")
		b.Sys(unix.SYS_KEYCTL, launch.Imm(unix.KEYCTL_JOIN_SESSION_KEYRING), b.Str("_ses."+p.opts.ID)).Ignore(0)
	}
	p.note("make session")
	b.Sys(unix.SYS_SETSID).Ignore(unix.EPERM)
	if proc.Terminal {
		p.note("set controlling terminal")
		b.Sys(unix.SYS_IOCTL, p.slave, launch.Imm(unix.TIOCSCTTY), null)
	}
}

// stdio puts descriptors where the program expects them and closes the rest, except keep.
func (p *plan) stdio(proc *specs.Process, keep ...launch.Arg) {
	b := p.b
	p.note("set standard input and output")
	for i := range 3 {
		from := launch.Slot(i)
		if proc.Terminal {
			from = p.slave
		}
		b.Sys(unix.SYS_DUP3, from, launch.Imm(i), null)
	}
	for i, slot := range p.preserve {
		p.note("keep descriptor %d", 3+i)
		b.Sys(unix.SYS_DUP3, slot, launch.Imm(3+i), null)
	}
	p.note("close descriptors")
	b.Keep(3+p.opts.PreserveFDs, keep...)
}

// credentials drops what the process may not have, in the order the kernel demands:
//
//	bounding set, groups, ids        need CAP_SETPCAP, CAP_SETGID, CAP_SETUID
//	working directory                as the user; before the filter, which may forbid the look back
//	seccomp without no_new_privs     needs CAP_SYS_ADMIN, which PR_SET_KEEPCAPS kept permitted
//	capabilities, ambient set
//	seccomp with no_new_privs        as late as can be: the fewest calls run under it
func (p *plan) credentials(proc *specs.Process, filter *seccomp.Filter) {
	b := p.b
	set, err := p.capabilities(proc.Capabilities)
	p.fail(err)
	prctl := func(args ...launch.Arg) { b.Sys(unix.SYS_PRCTL, append(args, null, null, null, null)[:5]...) }
	p.note("drop capabilities from the bounding set")
	for i := 0; i <= set.last; i++ {
		if set.bounding&(1<<i) == 0 {
			prctl(launch.Imm(unix.PR_CAPBSET_DROP), launch.Imm(i))
		}
	}
	prctl(launch.Imm(unix.PR_SET_KEEPCAPS), launch.Imm(1))
	p.ids(proc)
	p.dieWithLauncher()
	p.note("change to directory %s", proc.Cwd)
	p.chdir(proc.Cwd)
	umask := uint32(0o022)
	if proc.User.Umask != nil {
		umask = *proc.User.Umask
	}
	b.Sys(unix.SYS_UMASK, launch.Imm(umask))
	prctl(launch.Imm(unix.PR_SET_KEEPCAPS))
	if proc.NoNewPrivileges {
		p.note("set no_new_privs")
		prctl(launch.Imm(unix.PR_SET_NO_NEW_PRIVS), launch.Imm(1))
	} else if filter != nil {
		const admin = 1 << unix.CAP_SYS_ADMIN
		p.capset(admin, set.permitted|admin, set.inheritable)
		p.seccomp(filter)
	}
	p.note("set capabilities")
	p.capset(set.effective, set.permitted, set.inheritable)
	prctl(launch.Imm(unix.PR_CAP_AMBIENT), launch.Imm(unix.PR_CAP_AMBIENT_CLEAR_ALL))
	for i := 0; i <= set.last; i++ {
		if set.ambient&(1<<i) != 0 {
			p.note("raise ambient capability %s", caps.Name(i))
			prctl(launch.Imm(unix.PR_CAP_AMBIENT), launch.Imm(unix.PR_CAP_AMBIENT_RAISE), launch.Imm(i))
		}
	}
	if proc.NoNewPrivileges && filter != nil {
		p.seccomp(filter)
	}
}

func (p *plan) capset(eff, perm, inh uint64) {
	const v3 = 0x20080522
	low := func(m uint64) uint64 { return m & 0xffffffff }
	// struct __user_cap_data_struct [2]: effective, permitted, inheritable, each of 32 bits, the lower half of all three first.
	data := p.b.Words(low(eff)|low(perm)<<32, low(inh)|eff>>32<<32, perm>>32|inh>>32<<32)
	p.b.Sys(unix.SYS_CAPSET, p.b.Words(v3), data)
}

// capSet is the five sets as masks.
type capSet struct {
	bounding, effective, permitted, inheritable, ambient uint64
	last                                                 int
}

// capabilities reads the sets. What cannot be granted, because this process does not have it itself or the sets do not fit each other, is left out, as the specification asks;
// in a new user namespace everything can.
func (p *plan) capabilities(c *specs.LinuxCapabilities) (set capSet, err error) {
	set.last = caps.Last() // reads a file
	if c == nil {
		return set, nil
	}
	can := ^uint64(0)
	if p.newFlags&unix.CLONE_NEWUSER == 0 && !p.joined {
		if can, err = ownCapabilities(); err != nil {
			return set, err
		}
	}
	for _, s := range []struct {
		list []string
		mask *uint64
	}{{c.Bounding, &set.bounding}, {c.Effective, &set.effective}, {c.Permitted, &set.permitted}, {c.Inheritable, &set.inheritable}, {c.Ambient, &set.ambient}} {
		m, err := capMask(s.list, set.last)
		if err != nil {
			return set, err
		}
		*s.mask = m & can
	}
	set.ambient &= set.permitted & set.inheritable // what the kernel lets be raised; runc's own template names more, and runc passes over it
	return set, nil
}

func ownCapabilities() (uint64, error) {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return 0, fmt.Errorf("own capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// capMask is caps.Parse for a known last capability. Names that this kernel does not know are left out, as the specification asks.
func capMask(list []string, last int) (mask uint64, err error) {
next:
	for _, name := range list {
		for i := range last + 1 {
			if caps.Name(i) == name {
				mask |= 1 << i
				continue next
			}
		}
		m, _, err := caps.Parse([]string{name})
		if err != nil {
			return 0, err
		}
		mask |= m
	}
	return mask, nil
}

func (p *plan) ids(proc *specs.Process) {
	b := p.b
	p.note("set groups")
	groups := make([]uint64, (len(proc.User.AdditionalGids)+1)/2)
	for i, g := range proc.User.AdditionalGids {
		groups[i/2] |= uint64(g) << (32 * (i % 2))
	}
	at := null
	if len(groups) > 0 {
		at = b.Words(groups...)
	}
	op := b.Sys(unix.SYS_SETGROUPS, launch.Imm(len(proc.User.AdditionalGids)), at)
	if p.opts.Rootless && len(proc.User.AdditionalGids) == 0 {
		op.Ignore(unix.EPERM)
	}
	p.note("set user %d and group %d", proc.User.UID, proc.User.GID)
	gid, uid := launch.Imm(proc.User.GID), launch.Imm(proc.User.UID)
	b.Sys(unix.SYS_SETRESGID, gid, gid, gid)
	b.Sys(unix.SYS_SETRESUID, uid, uid, uid)
}

// chdir enters the working directory as the user, and sees to it that it is the container's: a descriptor of the host that leaked would show here.
func (p *plan) chdir(cwd string) {
	if cwd == "" {
		cwd = "/"
	}
	p.b.Sys(unix.SYS_CHDIR, p.b.Str(cwd))
	p.b.CheckCwd()
}

func (p *plan) seccomp(f *seccomp.Filter) {
	b := p.b
	p.note("install seccomp filter")
	prog := make([]uint64, len(f.Prog))
	for i, in := range f.Prog {
		prog[i] = uint64(in.Code) | uint64(in.Jt)<<16 | uint64(in.Jf)<<24 | uint64(in.K)<<32
	}
	fprog := b.Words(uint64(len(f.Prog)), 0)
	b.Poke(fprog.Plus(8), b.Words(prog...), 8)
	fd := b.NewReg()
	b.Sys(unix.SYS_SECCOMP, launch.Imm(unix.SECCOMP_SET_MODE_FILTER), launch.Imm(f.Flags), fprog).To(fd)
	if f.Notify {
		p.note("hand over seccomp listener")
		b.Tell(launch.TellListener, fd)
		b.Await(launch.Go)
		b.Close(fd)
	}
	b.FreeReg(fd)
}

// exec adds the candidates for args[0], as execvp would try them.
func (p *plan) exec(proc *specs.Process) {
	p.note("exec %s", strconv.Quote(proc.Args[0]))
	p.b.Exec(candidates(proc.Args[0], proc.Env), proc.Args, proc.Env)
}

// lookAhead has create fail, rather than start, when there is nothing to execute: callers know the error there, and clean up after it. It is a courtesy; execve decides.
func (p *plan) lookAhead(proc *specs.Process) {
	b := p.b
	list := candidates(proc.Args[0], proc.Env)
	p.note("exec %s", strconv.Quote(proc.Args[0]))
	found := b.NewLabel()
	for _, c := range list {
		if !path.IsAbs(c) {
			b.Jump(found) // relative to a directory that is not entered yet
			b.Mark(found)
			return
		}
		next, isFile := b.NewLabel(), b.NewLabel()
		access := b.Sys(unix.SYS_FACCESSAT, launch.AtCwd(), b.Str(c), launch.Imm(unix.X_OK))
		if len(list) > 1 {
			access.On(0, next)
		}
		b.Sys(unix.SYS_OPENAT, launch.AtCwd(), b.Str(c), launch.Imm(dirOnly|closeExec)).On(0, isFile)
		if len(list) == 1 {
			b.Fail(unix.EISDIR)
		}
		b.Jump(next)
		b.Mark(isFile)
		b.Jump(found)
		b.Mark(next)
	}
	b.Fail(unix.ENOENT)
	b.Mark(found)
}

func candidates(name string, env []string) []string {
	if strings.ContainsRune(name, '/') {
		return []string{name}
	}
	var list []string
	for _, e := range env {
		if dirs, ok := strings.CutPrefix(e, "PATH="); ok {
			list = nil // the last one counts
			for _, dir := range strings.Split(dirs, ":") {
				if dir == "" {
					dir = "."
				}
				list = append(list, path.Join(dir, name))
			}
		}
	}
	if len(list) == 0 || name == "" {
		return []string{"/nonexistent/" + name}
	}
	return list
}

// label has the next execve change the security label.
func (p *plan) label(proc *specs.Process) {
	if l := proc.ApparmorProfile; l != "" && l != "unconfined" {
		if !apparmorEnabled() {
			p.fail(errs.New(errs.Unavailable, "apparmor profile %q: the kernel runs without AppArmor", l))
			return
		}
		if !apparmorLoaded(l) {
			p.fail(errs.New(errs.Unavailable, "AppArmor profile %q is not loaded on this host (apparmor_parser -r loads one)", l))
			return
		}
		p.note("set AppArmor profile %s", l)
		name := "self/attr/exec"
		if exists("/proc/self/attr/apparmor/exec") {
			name = "self/attr/apparmor/exec"
		}
		p.writeProc(name, "exec "+l)
	}
	if l := proc.SelinuxLabel; l != "" {
		if !selinuxEnabled() {
			p.fail(errs.New(errs.Unavailable, "selinux label %q: the kernel runs without SELinux", l))
			return
		}
		p.note("set selinux label %s", l)
		p.writeProc("self/attr/exec", l)
	}
}

func compileSeccomp(s *specs.LinuxSeccomp) (*seccomp.Filter, error) {
	if s == nil {
		return nil, nil
	}
	f, err := seccomp.Compile(s)
	if err != nil {
		return nil, err
	}
	if f.Notify && s.ListenerPath == "" {
		return nil, errs.New(errs.Invalid, "seccomp: SCMP_ACT_NOTIFY needs a listenerPath")
	}
	return &f, nil
}
