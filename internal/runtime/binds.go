package runtime

import (
	"fmt"
	"os"
	"path"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bindMount attaches a clone of a host's mount.
func (p *plan) bindMount(m *specs.Mount, o *mount.Options) {
	b := p.b
	fd, isDir, ok := p.takeMade(m)
	if !ok {
		fd, isDir = p.source(m, o)
	}
	if p.err != nil {
		return
	}
	if p.making {
		p.keepMade(m, fd, isDir)
		p.keeps = p.keeps || p.mayKeep(m, o, isDir)
		return
	}
	p.note("mount %s on %s", m.Source, m.Destination)
	// Options for a file system (mode=…) mean nothing to a bind mount; the kernel ignores them since ever, and specs in the wild have them.
	make := launch.MakeFile
	if isDir {
		make = launch.MakeDir
	}
	target := p.target(m.Destination, make, "")
	switch {
	case !isProc(m.Destination):
		p.notProc(m, target)
	case p.procSource(m):
		p.note("mount %s on /proc: it is not of type proc", m.Source)
		b.CheckFS(fd, magicProc)
		p.note("mount %s on %s", m.Source, m.Destination)
	default:
		p.fail(notOfProc(m))
		return
	}
	if o.Rec && o.Set&attrRdonly != 0 && path.Clean(m.Source) == "/sys" {
		// Someone who shares the host's network has to share its /sys, and believes it read-only; the cgroups mounted below it must be too.
		o.RecSet |= attrRdonly
	}
	attrs := func() {
		if o.Set|o.Clear != 0 {
			clear := o.Clear
			p.setattr(fd, o.Set, clear, 0, false)
		}
		prop := uint32(unix.MS_SLAVE | unix.MS_REC)
		if p.prop&(unix.MS_SHARED) != 0 {
			prop = 0
		} else if p.prop&unix.MS_PRIVATE != 0 {
			prop = unix.MS_PRIVATE | unix.MS_REC
		}
		if prop != 0 && len(o.Propagation) == 0 {
			p.propagate(fd, prop)
		}
		p.finish(fd, o)
	}
	// Read-only before anybody can see it, where the kernel knows how.
	if !p.legacy {
		attrs()
	}
	if p.nested && p.mayKeep(m, o, isDir) {
		p.attachKept(m, o, fd, target, attrs)
	} else {
		p.attach(fd, target)
	}
	if p.legacy {
		attrs()
	}
	b.Close(target)
	b.FreeReg(target)
	b.Close(fd)
	if fd.IsReg() {
		b.FreeReg(fd)
	}
	if path.Clean(m.Destination) == "/dev" {
		p.bindDev = true
	}
}

// procSource tells whether a bind mount brings a whole procfs, which alone may stand on /proc: what the container, and whoever enters it, reads and writes there must be the kernel's.
func (p *plan) procSource(m *specs.Mount) bool {
	var fs unix.Statfs_t
	return p.dry || unix.Statfs(m.Source, &fs) == nil && int64(fs.Type) == magicProc
}

func isProc(dest string) bool { return path.Clean("/"+dest) == "/proc" }

func notOfProc(m *specs.Mount) error {
	return errs.New(errs.Invalid, "mount %s on %s: it cannot be mounted because it is not of type proc", mountSource(m), m.Destination)
}

// maxSources bounds how many sources the child opens itself: it has a register for each.
const maxSources = 64

// openSources has the child open the sources of bind mounts while it sees the host's tree and nothing else; each is cloned when its turn comes, so that the kernel numbers
// (and lists) mounts in the order of the spec. What the child could not reach or map is left to the runtime, see source.
func (p *plan) openSources() {
	if p.userns {
		return
	}
	p.sources = map[string]launch.Arg{}
	open := func(src string) {
		if _, ok := p.sources[src]; ok || len(p.sources) >= maxSources {
			return
		}
		p.note("open %s", src)
		p.sources[src] = p.open(src, oPath)
	}
	for i := range p.spec.Mounts {
		m := &p.spec.Mounts[i]
		o, err := mount.Parse(m.Options)
		switch {
		case err != nil:
			return // told when its turn comes
		case m.Type == "cgroup":
			for ctrl, dir := range p.cgroup.paths {
				if ctrl == "" && len(p.cgroup.paths) == 1 && !p.has(unix.CLONE_NEWCGROUP) {
					dir = p.cgroup.top
				}
				open(dir)
			}
		case (m.Type == "bind" || o.Bind) && !mapped(m, &o) && p.opts.Sources[m.Source] == nil:
			if src := p.opts.sourcePath(m); exists(src) {
				open(src)
			}
		}
	}
}

func mapped(m *specs.Mount, o *mount.Options) bool {
	return o.IDMap != 0 || len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0
}

func (o *RunOptions) sourcePath(m *specs.Mount) string {
	if path.IsAbs(m.Source) {
		return path.Clean(m.Source)
	}
	return path.Join(o.Bundle, m.Source)
}

// source clones the source of a bind mount, with its ids mapped if asked for.
func (p *plan) source(m *specs.Mount, o *mount.Options) (fd launch.Arg, isDir bool) {
	if f := p.opts.Sources[m.Source]; f != nil {
		st, err := f.Stat()
		if err != nil {
			p.fail(fmt.Errorf("mount %s: %w", m.Destination, err))
			return
		}
		if mapped(m, o) {
			p.fail(p.mapSource(m, o, f))
		}
		return p.file(f), st.IsDir()
	}
	src := p.opts.sourcePath(m)
	if p.dry {
		return p.take(nothing()), true
	}
	flags := cloneTree
	if o.Rec {
		flags |= unix.AT_RECURSIVE
	}
	at, open := p.sources[src]
	clone := func() launch.Arg {
		if p.nested {
			return p.treeOf(src, flags)
		}
		return p.cloneOf(at, m, flags)
	}
	if (open || p.nested) && m.Type == "cgroup" {
		return clone(), true // made at the same time as the program, by systemd when the process exists; in any case before the child opens it
	}
	st, err := os.Stat(src)
	if err != nil {
		p.fail(fmt.Errorf("mount %s: %w", m.Destination, err))
		return
	}
	if (open || p.nested) && !mapped(m, o) {
		return clone(), st.IsDir()
	}
	if p.opts.Rootless && p.newFlags&unix.CLONE_NEWUSER != 0 {
		r := p.b.NewReg()
		p.note("mount %s on %s", src, m.Destination)
		p.b.Sys(unix.SYS_OPEN_TREE, launch.AtCwd(), p.b.Str(src), launch.Imm(flags)).To(r)
		return r, st.IsDir()
	}
	tree, err := mount.Tree(src, o.Rec)
	if err != nil {
		p.fail(fmt.Errorf("mount %s: %w", m.Destination, err))
		return
	}
	slot := p.take(tree)
	if mapped(m, o) {
		p.fail(p.mapSource(m, o, tree))
	}
	return slot, st.IsDir()
}

// cloneOf clones what the child has opened.
func (p *plan) cloneOf(at launch.Arg, m *specs.Mount, flags int) launch.Arg {
	r := p.b.NewReg()
	p.note("mount %s on %s", m.Source, m.Destination)
	p.b.Sys(unix.SYS_OPEN_TREE, at, p.b.Str(""), launch.Imm(flags|emptyPath)).To(r)
	return r
}
