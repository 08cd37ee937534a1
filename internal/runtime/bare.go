package runtime

import (
	"fmt"
	"os"
	"sync"

	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/ns"
	"corten.dev/corten/internal/linux/spread"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// How a container gets its mount namespace.
//
//	usual                                         from the bare namespace
//	clone3(CLONE_NEWNS): a copy of the host's      clone3, still in the host's
//	open the sources of bind mounts                make all mounts, detached
//	attach the root over /proc, mount into it      setns(bare), unshare: a copy of one empty directory
//	pivot_root, detach the host's tree             attach the root over /, the mounts into it, chroot
//
// The usual way costs what grows with the host: the copy and the end of every mount it has, a pivot_root that looks at every thread of the machine (2 ms where 1,000
// containers run), and an unmount that waits for an RCU grace period (0.2 to 0.4 ms). The other way costs none of it. What stays below the container's root is an
// empty read-only directory, as elsewhere it is the kernel's own first root. It is for an engine, which keeps one bare namespace for all containers: see [Runtime.Prepare].

// bare is the bare namespace, made once.
type bare struct {
	once sync.Once
	want bool
	ns   *os.File
	// ground: the kernel can clone mounts that are attached nowhere (6.15).
	ground bool
}

// Prepare makes what all containers of a long-lived caller can share; without it every Create goes the way that needs nothing. It may be called once, before the first Create.
func (rt *Runtime) Prepare() {
	if rt.opts.Root != "" {
		err := os.MkdirAll(rt.opts.Root, 0o700)
		if err != nil {
			rt.log.Warn("the folder of containers cannot be made", "error", err) // nor will the first of them be
		} else if rt.folders, err = spread.Below(rt.opts.Root); err != nil {
			rt.log.Warn("folders of containers are kept near each other, which can be slow", "error", err)
		}
	}
	rt.bare.want = true
	go rt.bareNS()
}

// bareNS is the bare namespace, nil where there is none.
func (rt *Runtime) bareNS() *bare {
	if !rt.bare.want {
		return nil
	}
	rt.bare.once.Do(func() {
		f, err := mount.BareNamespace()
		if err != nil {
			rt.log.Warn("every container gets a copy of the host's mount namespace", "why", err)
			return
		}
		rt.bare.ns, rt.bare.ground = f, mount.ClonesDetached()
	})
	if rt.bare.ns == nil {
		return nil
	}
	return &rt.bare
}

// useBare decides how the mount namespace is made: what needs the host's tree around the container's root, or mounts that both share, goes the usual way.
func (p *plan) useBare(ns *bare) {
	spec, opts := p.spec, p.opts
	if ns == nil || p.dry || p.legacy || p.userns || p.forked || p.newFlags&unix.CLONE_NEWNS == 0 || opts.NoPivot || opts.Rootless ||
		hooksBeforePivot(spec.Hooks) || sharing(spec) || countMounts(p) > maxSources {
		return
	}
	p.bare = p.file(ns.ns)
	p.nested = true
	p.grounded = ns.ground && (spec.Linux.MountLabel == "" || !selinuxEnabled())
}

// sharing tells whether mounts of the container are to be seen by the host.
func sharing(spec *specs.Spec) bool {
	shared := func(s string) bool {
		prop, err := mount.Propagation(s)
		return err == nil && prop&unix.MS_SHARED != 0
	}
	if shared(spec.Linux.RootfsPropagation) {
		return true
	}
	for _, m := range spec.Mounts {
		o, err := mount.Parse(m.Options)
		if err != nil {
			return true // told on the usual way
		}
		for _, prop := range o.Propagation {
			if prop&unix.MS_SHARED != 0 {
				return true
			}
		}
	}
	return false
}

func countMounts(p *plan) int { return len(p.spec.Mounts) + len(p.cgroup.paths) }

// made is a mount that was made before the host's tree was left, and is attached after.
type made struct {
	fd    launch.Arg
	isDir bool
}

// makeMounts makes all mounts without attaching them, in the order of the spec, because the kernel numbers (and lists) them in the order in which they were made.
func (p *plan) makeMounts() {
	p.made, p.making = map[string][]made{}, true
	p.makeGround()
	for i := range p.spec.Mounts {
		p.mount(&p.spec.Mounts[i])
	}
	p.making = false
	p.leaveGround()
}

// keepMade keeps a mount for the time when it is attached.
func (p *plan) keepMade(m *specs.Mount, fd launch.Arg, isDir bool) {
	p.made[m.Destination] = append(p.made[m.Destination], made{fd, isDir})
}

// takeMade is the mount that was made before, if one was.
func (p *plan) takeMade(m *specs.Mount) (fd launch.Arg, isDir, ok bool) {
	list := p.made[m.Destination]
	if p.making || len(list) == 0 {
		return fd, false, false
	}
	p.made[m.Destination] = list[1:]
	return list[0].fd, list[0].isDir, true
}

// treeOf is a clone of the tree at a path of the host, which the child is about to leave.
func (p *plan) treeOf(src string, flags int) launch.Arg {
	fd := p.b.NewReg()
	p.b.Sys(unix.SYS_OPEN_TREE, launch.AtCwd(), p.b.Str(src), launch.Imm(flags)).To(fd)
	return fd
}

// mayKeep tells whether files that keep mount namespaces can be in a bind mount: it is one, or a tree that may have mounts below.
func (p *plan) mayKeep(m *specs.Mount, o *mount.Options, isDir bool) bool {
	if p.opts.Sources[m.Source] != nil {
		return false // no path leads to it a second time
	}
	if isDir {
		return o.Rec && m.Type != "cgroup" && !mapped(m, o)
	}
	var fs unix.Statfs_t
	return unix.Statfs(p.opts.sourcePath(m), &fs) == nil && int64(fs.Type) == unix.NSFS_MAGIC
}

// attachKept is attach for a tree in which the host may keep mount namespaces (as snapd does below /run). The kernel attaches such a file only below namespaces that are older
// than it (ELOOP), but leaves it out of the copy that it makes of the host's mounts: what is refused is cloned again, from such a copy.
func (p *plan) attachKept(m *specs.Mount, o *mount.Options, fd, target launch.Arg, attrs func()) {
	b := p.b
	again, done := b.NewLabel(), b.NewLabel()
	b.Sys(unix.SYS_MOVE_MOUNT, fd, b.Str(""), target, b.Str(""), launch.Imm(moveBoth)).On(unix.ELOOP, again)
	b.Jump(done)
	b.Mark(again)
	own := p.nsFile()
	b.Close(fd)
	b.Sys(unix.SYS_SETNS, p.host, launch.Imm(unix.CLONE_NEWNS))
	b.Sys(unix.SYS_UNSHARE, launch.Imm(unix.CLONE_NEWNS))
	flags := cloneTree
	if o.Rec {
		flags |= unix.AT_RECURSIVE
	}
	b.Sys(unix.SYS_OPEN_TREE, launch.AtCwd(), b.Str(p.opts.sourcePath(m)), launch.Imm(flags)).To(fd)
	b.Sys(unix.SYS_SETNS, own, launch.Imm(unix.CLONE_NEWNS))
	b.Close(own)
	b.FreeReg(own)
	attrs()
	p.attach(fd, target)
	b.Mark(done)
}

// nsFile is the mount namespace that the child is in. It is a magic link: opened by name, below a procfs that was verified.
func (p *plan) nsFile() launch.Arg {
	fd := p.b.NewReg()
	p.b.Sys(unix.SYS_OPENAT, p.proc, p.b.Str("self/ns/mnt"), launch.Imm(unix.O_RDONLY|closeExec)).To(fd)
	return fd
}

// enterBare leaves the host's mounts behind.
func (p *plan) enterBare() {
	p.note("make mount namespace")
	if p.keeps {
		p.host = p.nsFile()
	}
	p.b.Sys(unix.SYS_SETNS, p.bare, launch.Imm(unix.CLONE_NEWNS))
	p.b.Sys(unix.SYS_UNSHARE, launch.Imm(unix.CLONE_NEWNS))
}

// enterRoot makes the container's root, which stands over the bare one, the root.
func (p *plan) enterRoot() {
	p.note("enter root file system")
	p.b.Sys(unix.SYS_FCHDIR, p.root)
	p.b.Sys(unix.SYS_CHROOT, p.b.Str("."))
	p.b.Sys(unix.SYS_CHDIR, p.b.Str("/"))
}

// makesSysfs tells whether the runtime makes the container's sysfs rather than the child. The kernel looks through the sysfs of every network namespace that has one before it
// makes another (1.5 ms where 1,000 containers run), unless it finds one of the same namespace before (see network's Sandbox.Sysfs); this way it does so while the program is
// written and the cgroups are made.
func (p *plan) makesSysfs(m *specs.Mount, o *mount.Options) bool {
	return m.Type == "sysfs" && p.making && p.opts.NetNS != nil && len(o.Data)+len(o.Super) == 0
}

func (p *plan) sysfs(m *specs.Mount, set uint64) launch.Arg {
	netns, source, dest := p.opts.NetNS, m.Source, m.Destination
	return p.beside(func() (f *os.File, err error) {
		err = ns.InNet(netns, func() (err error) {
			f, err = mount.FS("sysfs", source, mount.Options{Set: set})
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", dest, err)
		}
		return f, nil
	})
}
