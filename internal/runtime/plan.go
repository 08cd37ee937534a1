package runtime

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/ns"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// plan is a program in the making, with the files it will need.
type plan struct {
	b     *launch.Builder
	files []*os.File // of the slots from launch.SlotFirst on
	own   []*os.File // to be closed once the process was launched
	gaps  []gap      // files that come later
	err   error      // the first thing that went wrong

	spec   *specs.Spec
	opts   *RunOptions
	cgroup cgroupPlan

	legacy   bool // no mount_setattr
	userns   bool // a user namespace of its own, new or joined
	joined   bool // the user namespace is joined
	forked   bool
	newFlags uint64                // namespaces to make
	joins    map[uint64]launch.Arg // namespaces to join
	hosts    uint64                // those of them that this process is in itself
	prop     uint32                // propagation of the root

	proc     launch.Arg // the host's procfs, verified
	root     launch.Arg // the container's root
	dev      launch.Arg // its /dev
	pts      launch.Arg // its devpts, if it mounted one
	hasPts   bool
	null     launch.Arg            // the host's /dev/null, verified
	slave    launch.Arg            // the terminal
	sources  map[string]launch.Arg // of bind mounts, opened by the child while it sees the host
	bare     launch.Arg            // the bare mount namespace, if nested
	host     launch.Arg            // the host's, if keeps
	preserve []launch.Arg          // descriptors of ours that the program gets from 3 on
	late     []func()              // what makes mounts read-only once everything is in them
	syncSlot launch.Arg
	sync     *os.File // its file, made at launch
	// handshake: the runtime has something to do once the namespaces exist (id maps, a cgroup of systemd's).
	handshake bool
	dry       bool              // only to see whether it can be written: nothing of the host is touched
	bindDev   bool              // /dev is a bind mount and left alone
	making    bool              // mounts are made, and attached later
	made      map[string][]made // by their destination
	keeps     bool              // a bind mount may have files in it that keep mount namespaces
	nested    bool              // the mount namespace is a copy of the bare one
	grounded  bool              // small directories are made on one file system: see makeGround
	ground    launch.Arg
	empty     launch.Arg // what masked directories are a clone of
	sysctlled bool       // the sysctls were written
}

// cgroupPlan is what a program needs to know of the container's cgroups.
type cgroupPlan struct {
	names []string   // v1 tasks files to join
	v2    bool       // a v2 directory to be born in
	join  []*os.File // the files, open; may come after the program was written
	dir   *os.File
	paths map[string]string
	top   string // the host's mount of the v2 tree
}

func newPlan(spec *specs.Spec, opts *RunOptions) *plan {
	p := &plan{b: launch.NewBuilder(0), spec: spec, opts: opts, joins: map[uint64]launch.Arg{}, legacy: !mount.HasSetattr()}
	p.b.MinFD(3 + opts.PreserveFDs)
	for i := range opts.PreserveFDs {
		fd, err := unix.FcntlInt(uintptr(3+i), unix.F_DUPFD_CLOEXEC, 3+opts.PreserveFDs)
		if err != nil {
			p.fail(errs.New(errs.Invalid, "descriptor %d cannot be preserved: %w", 3+i, err))
			break
		}
		p.preserve = append(p.preserve, p.take(os.NewFile(uintptr(fd), "preserved")))
	}
	return p
}

// close gives back what the program no longer needs; after a launch the child has its own copies.
func (p *plan) close() {
	for _, g := range p.gaps {
		if !g.own {
			continue
		}
		if f, err := g.get(); err == nil {
			f.Close()
		}
	}
	for _, f := range p.own {
		f.Close()
	}
	p.own, p.gaps = nil, nil
}

func (p *plan) fail(err error) {
	if p.err == nil && err != nil {
		p.err = err
	}
}

func (p *plan) note(format string, args ...any) { p.b.Note(fmt.Sprintf(format, args...)) }

// file gives f a slot.
func (p *plan) file(f *os.File) launch.Arg {
	p.files = append(p.files, f)
	return p.b.NewSlot()
}

// gap is a slot for a file that is made while the program is written.
type gap struct {
	at  int // in files
	get func() (*os.File, error)
	own bool // the plan closes the file
}

// later is file for one that the plan has when it is launched.
func (p *plan) later(get func() *os.File) launch.Arg {
	p.gaps = append(p.gaps, gap{at: len(p.files), get: func() (*os.File, error) { return get(), nil }})
	return p.file(nil)
}

// beside is take for a file that is made while the program is written.
func (p *plan) beside(make func() (*os.File, error)) launch.Arg {
	var f *os.File
	var err error
	done := asChannel(func() { f, err = make() })
	p.gaps = append(p.gaps, gap{at: len(p.files), own: true, get: func() (*os.File, error) {
		<-done
		return f, err
	}})
	return p.file(nil)
}

// asChannel runs fn beside everything else; the channel closes when it is done.
func asChannel(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	return done
}

// fill puts the files that came later into their slots.
func (p *plan) fill() (err error) {
	for _, g := range p.gaps {
		f, gerr := g.get()
		if err = errors.Join(err, gerr); gerr != nil {
			continue
		}
		if p.files[g.at] = f; g.own {
			p.own = append(p.own, f)
		}
	}
	p.gaps = nil
	return err
}

// joinCgroups gives the program what [cgroup.Manager] has open.
func (p *plan) joinCgroups(files []*os.File, dir *os.File) {
	p.cgroup.join, p.cgroup.dir = files, dir
	p.own = append(p.own, files...)
	if dir != nil {
		p.own = append(p.own, dir)
	}
}

// take is file for one that the plan closes in the end.
func (p *plan) take(f *os.File) launch.Arg {
	p.own = append(p.own, f)
	return p.file(f)
}

var null = launch.Imm(0)

const closeExec = unix.O_CLOEXEC

// open adds openat for a trusted path of the host.
func (p *plan) open(path string, flags int) launch.Arg {
	fd := p.b.NewReg()
	p.b.Sys(unix.SYS_OPENAT, launch.AtCwd(), p.b.Str(path), launch.Imm(flags|closeExec)).To(fd)
	return fd
}

// procFile opens a file of the host's procfs. Nothing mounted over a part of it, and no link but "self", is followed.
func (p *plan) procFile(path string, flags int) launch.Arg {
	resolve := uint64(unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS)
	if !strings.HasPrefix(path, "self/") {
		resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	fd := p.b.NewReg()
	p.b.Sys(unix.SYS_OPENAT2, p.proc, p.b.Str(path), p.b.Words(uint64(flags|closeExec), 0, resolve), launch.Imm(24)).To(fd)
	return fd
}

// writeProc writes text to a file of procfs.
func (p *plan) writeProc(path, text string) {
	fd := p.procFile(path, unix.O_WRONLY)
	p.b.Sys(unix.SYS_WRITE, fd, p.b.Str(text), launch.Imm(len(text)))
	p.b.Close(fd)
	p.b.FreeReg(fd)
}

// openProc is the first thing a program does: it gets hold of the procfs while nobody could have swapped it.
func (p *plan) openProc() {
	p.note("open /proc")
	p.proc = p.open("/proc", unix.O_PATH|unix.O_DIRECTORY)
	p.b.CheckFS(p.proc, unix.PROC_SUPER_MAGIC)
}

// namespaces sorts the namespaces of the spec into those to make and those to join.
func (p *plan) namespaces() error {
	seen := map[uint64]bool{}
	for _, n := range p.spec.Linux.Namespaces {
		flag, err := ns.Flag(n.Type)
		if err != nil {
			return err
		}
		if seen[flag] {
			return errs.New(errs.Invalid, "namespace %s: given twice", n.Type)
		}
		seen[flag] = true
		if flag == unix.CLONE_NEWNET && p.opts.NetNS != nil {
			continue
		}
		if n.Path == "" {
			p.newFlags |= flag
			continue
		}
		f := nothing()
		if !p.dry {
			var err error
			if f, err = ns.Open(n.Path, flag); err != nil {
				return err
			}
		}
		if ns.IsOwn(f, flag) {
			p.hosts |= flag
		}
		p.joins[flag] = p.take(f)
	}
	if p.opts.NetNS != nil {
		if err := ns.Check(p.opts.NetNS, unix.CLONE_NEWNET); err != nil {
			return err
		}
		p.joins[unix.CLONE_NEWNET] = p.file(p.opts.NetNS)
	}
	_, p.joined = p.joins[unix.CLONE_NEWUSER]
	p.userns = p.joined || p.newFlags&unix.CLONE_NEWUSER != 0
	if err := checkMaps(p.spec, p.newFlags&unix.CLONE_NEWUSER != 0); err != nil {
		return err
	}
	// Whoever makes a user namespace can no longer join what belongs to the host's, and whoever joins one must do so before it makes others: then a
	// process between joins, and clones once more.
	p.forked = p.joined || p.newFlags&unix.CLONE_NEWUSER != 0 && len(p.joins) > 0
	return nil
}

func checkMaps(spec *specs.Spec, made bool) error {
	has := len(spec.Linux.UIDMappings) > 0 || len(spec.Linux.GIDMappings) > 0
	switch {
	case made && (len(spec.Linux.UIDMappings) == 0 || len(spec.Linux.GIDMappings) == 0):
		return errs.New(errs.Invalid, "user namespace: needs uid and gid mappings")
	case !made && has:
		for _, n := range spec.Linux.Namespaces {
			if n.Type == specs.UserNamespace {
				return nil // joined: the mappings describe it
			}
		}
		return errs.New(errs.Invalid, "id mappings are given without a user namespace")
	}
	return nil
}

// later are the namespaces that the process unshares itself: a cgroup namespace must see the cgroup that was joined before, a time namespace wants its offsets.
const later = unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME

// joinOrder is the order of setns: user first, for what it allows; mount last, for what it hides.
var joinOrder = []uint64{
	unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWIPC, unix.CLONE_NEWUTS, unix.CLONE_NEWNET, unix.CLONE_NEWTIME, unix.CLONE_NEWCGROUP, unix.CLONE_NEWNS,
}

// enter joins cgroups and namespaces and makes the new ones.
func (p *plan) enter() {
	b := p.b
	if p.cgroup.v2 {
		b.Cgroup(p.later(func() *os.File { return p.cgroup.dir }))
	}
	for i, name := range p.cgroup.names {
		p.note("join cgroup %s", name)
		b.Sys(unix.SYS_WRITE, p.later(func() *os.File { return p.cgroup.join[i] }), b.Str("0"), launch.Imm(1))
	}
	if pid, ok := p.joins[unix.CLONE_NEWPID]; ok && !p.forked {
		b.PidNS(pid)
	}
	for _, flag := range joinOrder {
		slot, ok := p.joins[flag]
		if !ok || flag == unix.CLONE_NEWPID && !p.forked {
			continue
		}
		p.note("join %s namespace", ns.Name(flag))
		b.Sys(unix.SYS_SETNS, slot, launch.Imm(flag))
		if flag == unix.CLONE_NEWUSER {
			p.becomeRoot()
		}
	}
	if p.forked {
		p.note("make namespaces")
		b.Fork(p.newFlags &^ later)
	} else {
		flags := p.newFlags &^ later
		if p.nested {
			flags &^= unix.CLONE_NEWNS
		}
		b.Flags(flags)
	}
	if p.handshake {
		p.note("wait for the runtime")
		b.Tell(launch.TellNamespaces, null)
		b.Await(launch.Go)
	}
	if p.newFlags&unix.CLONE_NEWUSER != 0 {
		p.becomeRoot()
	}
	if p.newFlags&unix.CLONE_NEWCGROUP != 0 {
		p.note("make cgroup namespace")
		b.Sys(unix.SYS_UNSHARE, launch.Imm(unix.CLONE_NEWCGROUP))
	}
	p.timeNamespace()
}

// becomeRoot takes the ids that the user namespace has for root, if it has any.
func (p *plan) becomeRoot() {
	p.note("become root of the user namespace")
	p.b.Sys(unix.SYS_SETGROUPS, null, null).Ignore(unix.EPERM) // an ordinary user's namespace denies it
	p.b.Sys(unix.SYS_SETRESGID, null, null, null).Ignore(unix.EINVAL)
	p.b.Sys(unix.SYS_SETRESUID, null, null, null).Ignore(unix.EINVAL)
}

func (p *plan) timeNamespace() {
	if p.newFlags&unix.CLONE_NEWTIME == 0 {
		return
	}
	p.note("make time namespace")
	p.b.Sys(unix.SYS_UNSHARE, launch.Imm(unix.CLONE_NEWTIME))
	for clock, off := range p.spec.Linux.TimeOffsets {
		p.note("set time offset of %s", clock)
		p.writeProc("self/timens_offsets", fmt.Sprintf("%s %d %d\n", clock, off.Secs, off.Nanosecs))
	}
	p.note("enter time namespace")
	fd := p.b.NewReg() // a magic link: opened by name, below a procfs that was verified
	p.b.Sys(unix.SYS_OPENAT, p.proc, p.b.Str("self/ns/time_for_children"), launch.Imm(unix.O_RDONLY|closeExec)).To(fd)
	p.b.Sys(unix.SYS_SETNS, fd, launch.Imm(unix.CLONE_NEWTIME))
	p.b.Close(fd)
	p.b.FreeReg(fd)
}

// encode finishes the program.
func (p *plan) encode() ([]byte, error) {
	code, err := p.b.Encode()
	if err = errors.Join(p.err, err); err != nil {
		return nil, err
	}
	return code, nil
}
