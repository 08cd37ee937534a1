package runtime

import (
	"path"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mask hides paths: a file behind the host's /dev/null (verified when it was opened; the container's own could be anything), a directory behind an empty read-only
// one that all of the container share.
func (p *plan) mask() {
	b := p.b
	template := b.NewReg()
	if p.grounded {
		b.Move(template, p.empty)
	} else {
		b.Move(template, launch.Imm(-1))
	}
	for _, masked := range p.spec.Linux.MaskedPaths {
		p.note("mask %s", masked)
		dir, fd, clone := b.NewReg(), b.NewReg(), b.NewReg()
		isFile, attach, done, first := b.NewLabel(), b.NewLabel(), b.NewLabel(), b.NewLabel()
		b.OpenIn(p.root, masked, dirOnly, launch.MakeNothing, 0).To(dir).On(unix.ENOENT, done).On(unix.ENOTDIR, isFile)
		b.Move(fd, dir)
		b.Sys(unix.SYS_OPEN_TREE, template, b.Str(""), launch.Imm(cloneTree|emptyPath)).To(clone).On(unix.EBADF, first)
		b.Jump(attach)
		b.Mark(first)
		if !p.grounded {
			p.emptyDir(template)
		}
		b.Move(clone, template)
		b.Jump(attach)
		b.Mark(isFile)
		b.OpenIn(p.root, masked, oPath, launch.MakeNothing, 0).To(fd).On(unix.ENOTDIR, done).On(unix.ENOENT, done)
		detached := b.NewLabel()
		b.Sys(unix.SYS_OPEN_TREE, p.null, b.Str(""), launch.Imm(cloneTree|emptyPath)).To(clone).On(unix.EINVAL, detached)
		b.Jump(attach)
		b.Mark(detached) // kernels before 6.15 clone only what is attached, which it is from the first use on
		b.Move(clone, p.null)
		b.Mark(attach)
		p.attach(clone, fd)
		b.Close(fd)
		b.Mark(done)
		b.FreeReg(dir)
		b.FreeReg(fd)
		b.FreeReg(clone)
	}
}

// emptyDir makes the tmpfs of masked directories.
func (p *plan) emptyDir(into launch.Arg) {
	b := p.b
	ctx := b.NewReg()
	b.Sys(unix.SYS_FSOPEN, b.Str("tmpfs"), launch.Imm(unix.FSOPEN_CLOEXEC)).To(ctx)
	b.Sys(unix.SYS_FSCONFIG, ctx, launch.Imm(setString), b.Str("size"), b.Str("0"), null).Ignore(unix.EINVAL)
	b.Sys(unix.SYS_FSCONFIG, ctx, launch.Imm(setString), b.Str("mode"), b.Str("555"), null)
	b.Sys(unix.SYS_FSCONFIG, ctx, launch.Imm(createFS), null, null, null)
	b.Sys(unix.SYS_FSMOUNT, ctx, launch.Imm(unix.FSMOUNT_CLOEXEC), launch.Imm(attrRdonly|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)).To(into)
	b.Close(ctx)
	b.FreeReg(ctx)
}

// readOnly makes paths read-only by mounting them onto themselves.
func (p *plan) readOnly() {
	b := p.b
	for _, ro := range p.spec.Linux.ReadonlyPaths {
		p.note("make %s read-only", ro)
		fd, clone := b.NewReg(), b.NewReg()
		done := b.NewLabel()
		b.OpenIn(p.root, ro, oPath, launch.MakeNothing, 0).To(fd).On(unix.ENOENT, done).On(unix.ENOTDIR, done)
		b.Sys(unix.SYS_OPEN_TREE, fd, b.Str(""), launch.Imm(cloneTree|emptyPath|unix.AT_RECURSIVE)).To(clone)
		if !p.legacy {
			p.setattr(clone, attrRdonly, 0, 0, false)
			p.attach(clone, fd)
		} else {
			p.attach(clone, fd)
			p.setattr(clone, attrRdonly|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, 0, 0, false)
		}
		b.Close(clone)
		b.Close(fd)
		b.Mark(done)
		b.FreeReg(fd)
		b.FreeReg(clone)
	}
}

// pivot makes the container's root the root and lets the host's tree go.
func (p *plan) pivot() {
	b := p.b
	switch {
	case p.nested:
		p.enterRoot()
	case p.opts.NoPivot:
		p.note("move root")
		b.Sys(unix.SYS_FCHDIR, p.root)
		b.Sys(unix.SYS_MOUNT, b.Str("."), b.Str("/"), null, launch.Imm(unix.MS_MOVE), null)
		b.Sys(unix.SYS_CHROOT, b.Str("."))
		b.Sys(unix.SYS_CHDIR, b.Str("/"))
	default:
		p.note("pivot root")
		old := p.open("/", dirOnly)
		b.Sys(unix.SYS_FCHDIR, p.root)
		b.Sys(unix.SYS_PIVOT_ROOT, b.Str("."), b.Str("."))
		b.Sys(unix.SYS_FCHDIR, old)
		p.note("leave the host's tree")
		b.Sys(unix.SYS_MOUNT, null, b.Str("."), null, launch.Imm(unix.MS_SLAVE|unix.MS_REC), null)
		b.Sys(unix.SYS_UMOUNT2, b.Str("."), launch.Imm(unix.MNT_DETACH))
		b.Sys(unix.SYS_CHDIR, b.Str("/"))
		b.Close(old)
		b.FreeReg(old)
	}
	for _, f := range p.late {
		f()
	}
	if p.spec.Root != nil && p.spec.Root.Readonly {
		p.note("make the root file system read-only")
		p.setattr(p.root, attrRdonly, 0, 0, false)
	}
	if p.prop&unix.MS_SHARED != 0 || p.prop&unix.MS_UNBINDABLE != 0 {
		p.note("set propagation of the root file system")
		b.Sys(unix.SYS_MOUNT, null, b.Str("/"), null, launch.Imm(p.prop), null)
	}
}

// ownProc tells whether a mount is a procfs of the container's own through which its sysctls can be written.
func ownProc(m *specs.Mount, o *mount.Options) bool {
	return m.Type == "proc" && path.Clean("/"+m.Destination) == "/proc" && o.Set&attrRdonly == 0
}

// ownProc tells whether the container mounts one.
func (p *plan) ownProc() bool {
	if !p.has(unix.CLONE_NEWNS) {
		return false
	}
	for i := range p.spec.Mounts {
		m := &p.spec.Mounts[i]
		if o, err := mount.Parse(m.Options); err == nil && !o.Bind && ownProc(m, &o) {
			return true
		}
	}
	return false
}

// sysctls are written through a procfs, the container's own or the host's: which namespace they act on is the writer's. In the host's every container leaves names of its own
// in one chain of the kernel's name cache, which the next has to walk (2.4 ms where 1,000 run), so that it is for containers without a procfs only.
func (p *plan) sysctls(proc launch.Arg) {
	p.sysctlled = true
	host := p.proc
	p.proc = proc
	defer func() { p.proc = host }()
	for key, value := range p.spec.Linux.Sysctl {
		name, err := sysctlPath(key, p)
		if err != nil {
			p.fail(err)
			continue
		}
		p.note("set sysctl %s", key)
		p.writeProc("sys/"+name, value)
	}
}

var ipcSysctls = map[string]bool{
	"kernel/msgmax": true, "kernel/msgmnb": true, "kernel/msgmni": true, "kernel/sem": true,
	"kernel/shmall": true, "kernel/shmmax": true, "kernel/shmmni": true, "kernel/shm_rmid_forced": true,
}

// has tells whether the container has a namespace of that kind for itself or joined one that is not the host's.
func (p *plan) has(flag uint64) bool {
	_, joined := p.joins[flag]
	return joined && p.hosts&flag == 0 || p.newFlags&flag != 0
}

// sysctlPath checks that a sysctl belongs to a namespace that the container has; any other would change the host.
func sysctlPath(key string, p *plan) (string, error) {
	name := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		// net.ipv4.conf.eth0/1.forwarding: a slash stands for a dot of an interface's name.
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	for _, part := range strings.Split(name, "/") {
		if part == "" || part == "." || part == ".." {
			return "", errs.New(errs.Invalid, "sysctl %q: is not a name", key)
		}
	}
	need := uint64(0)
	switch {
	case ipcSysctls[name], strings.HasPrefix(name, "fs/mqueue/"):
		need = unix.CLONE_NEWIPC
	case strings.HasPrefix(name, "net/"):
		need = unix.CLONE_NEWNET
	case name == "kernel/domainname":
		need = unix.CLONE_NEWUTS
	case name == "kernel/hostname":
		return "", errs.New(errs.Invalid, "sysctl %q: use the hostname field", key)
	case strings.HasPrefix(name, "user/"):
		need = unix.CLONE_NEWUSER
	default:
		return "", errs.New(errs.Invalid, "sysctl %q is not in a separate kernel namespace", key)
	}
	if need == unix.CLONE_NEWIPC && !p.has(need) { // runc's words
		return "", errs.New(errs.Invalid, "sysctl %q is not allowed in the hosts ipc namespace", key)
	}
	if !p.has(need) {
		return "", errs.New(errs.Invalid, "sysctl %q not allowed in host %s namespace", key, map[uint64]string{unix.CLONE_NEWNET: "network", unix.CLONE_NEWUTS: "uts", unix.CLONE_NEWUSER: "user"}[need])
	}
	return name, nil
}

// cgroupMount shows the container its cgroups.
func (p *plan) cgroupMount(m *specs.Mount, o *mount.Options) {
	b := p.b
	dest := strings.TrimRight(m.Destination, "/")
	var unified string
	named := map[string]string{}
	for ctrl, dir := range p.cgroup.paths {
		if ctrl == "" {
			unified = dir
		} else {
			named[ctrl] = dir
		}
	}
	if len(named) == 0 {
		if unified == "" {
			p.fail(errs.New(errs.Unavailable, "mount cgroup on %s: the container has no cgroups", dest))
			return
		}
		p.cgroupTree(unified, dest, o)
		return
	}
	tmp := specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: dest}
	ro := *o
	ro.Data, ro.Propagation, ro.Super = []string{"mode=755"}, nil, nil
	if p.grounded && p.making {
		p.keepMade(&tmp, p.groundDir("cgroup", ro.Set&^attrRdonly), true)
	} else {
		p.fsMount(&tmp, &ro)
	}
	for ctrl, dir := range named {
		name := strings.TrimPrefix(ctrl, "name=")
		p.cgroupBind(dir, dest+"/"+name, o)
		for _, alias := range strings.Split(name, ",") {
			if alias != name && !p.making {
				p.note("link %s/%s", dest, alias)
				at := p.target(dest, launch.MakeNothing, "")
				b.Sys(unix.SYS_SYMLINKAT, b.Str(name), at, b.Str(alias))
				b.Close(at)
				b.FreeReg(at)
			}
		}
	}
	if unified != "" {
		p.cgroupBind(unified, dest+"/unified", o)
	}
}

// cgroupTree shows a v2 tree: a new mount has the cgroup namespace's root as its own, which is also right where systemd makes the cgroup only once the process exists;
// without a namespace the whole tree of the host is seen, as /proc/self/cgroup tells paths in it. It is bound then, because mounting cgroup2 in the host's own namespace
// would take the options (nsdelegate, memory_recursiveprot) off the host's mount.
func (p *plan) cgroupTree(own, dest string, o *mount.Options) {
	switch {
	case p.newFlags&unix.CLONE_NEWCGROUP != 0:
		fs := *o
		fs.Data, fs.Super = nil, nil
		p.fsMount(&specs.Mount{Type: "cgroup2", Source: "cgroup", Destination: dest}, &fs)
	case p.has(unix.CLONE_NEWCGROUP):
		p.cgroupBind(own, dest, o)
	default:
		p.cgroupBind(p.cgroup.top, dest, o)
	}
}

func (p *plan) cgroupBind(dir, dest string, o *mount.Options) {
	bind := *o
	bind.Bind, bind.Rec, bind.Data, bind.Super = true, false, nil, nil
	p.bindMount(&specs.Mount{Type: "cgroup", Source: dir, Destination: dest}, &bind)
}
