package runtime

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/safefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	emptyPath  = unix.AT_EMPTY_PATH
	moveEmpty  = unix.MOVE_MOUNT_F_EMPTY_PATH
	moveBoth   = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	cloneTree  = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	oPath      = unix.O_PATH
	dirOnly    = unix.O_PATH | unix.O_DIRECTORY
	noFollow   = unix.O_NOFOLLOW
	dirMode    = 0o755
	setString  = 1 // FSCONFIG_SET_STRING
	setFlag    = 0 // FSCONFIG_SET_FLAG
	createFS   = 6 // FSCONFIG_CMD_CREATE
	magicPts   = unix.DEVPTS_SUPER_MAGIC
	magicProc  = unix.PROC_SUPER_MAGIC
	sIfChr     = unix.S_IFCHR
	attrRdonly = unix.MOUNT_ATTR_RDONLY
)

// rootFS builds the container's file system and stops short of entering it.
//
// The root is a detached mount that is attached where the host's tree has a mount point for sure; everything else is attached below it by descriptor.
func (p *plan) rootFS() {
	b := p.b
	p.note("unmask")
	b.Sys(unix.SYS_UMASK, null)
	p.prop = unix.MS_SLAVE | unix.MS_REC
	if s := p.spec.Linux.RootfsPropagation; s != "" {
		prop, err := mount.Propagation(s)
		p.fail(err)
		p.prop = prop
	}
	if !p.nested {
		p.note("set propagation of /")
		b.Sys(unix.SYS_MOUNT, null, b.Str("/"), null, launch.Imm(p.building()|unix.MS_REC), null)
	}
	p.note("open /dev/null")
	if p.nested {
		p.makeMounts()
		p.note("open /dev/null")
		p.null = b.NewReg()
		b.Sys(unix.SYS_OPEN_TREE, launch.AtCwd(), b.Str("/dev/null"), launch.Imm(cloneTree|unix.AT_SYMLINK_NOFOLLOW)).To(p.null)
	} else {
		p.null = p.open("/dev/null", oPath|noFollow)
	}
	b.CheckNode(p.null, sIfChr, 1, 3)
	if p.nested {
		p.enterBare()
	} else {
		p.openSources()
	}
	p.attachRoot()
	for i := range p.spec.Mounts {
		p.mount(&p.spec.Mounts[i])
	}
	if p.keeps {
		b.Close(p.host)
		b.FreeReg(p.host)
	}
	p.makeDev()
	if cwd := p.spec.Process.Cwd; cwd != "/" {
		p.note("make working directory %s", cwd)
		fd, none := b.NewReg(), b.NewLabel()
		b.OpenIn(p.root, cwd, oPath, launch.MakeDir, dirMode).To(fd).On(0, none) // chdir will tell, in the words for it
		b.Close(fd)
		b.Mark(none)
		b.FreeReg(fd)
	}
}

// building is the propagation while mounts are still made of others: of unbindable ones there can be none, so that comes last.
func (p *plan) building() uint32 {
	if p.prop&unix.MS_UNBINDABLE != 0 {
		return unix.MS_PRIVATE | unix.MS_REC
	}
	return p.prop
}

// attachRoot attaches the detached root. A bundle's root goes to its own path, where hooks look for it; one handed over as a descriptor goes over /proc.
func (p *plan) attachRoot() {
	b := p.b
	at := "/proc"
	if p.opts.Root == nil || !p.opts.RootDetached {
		at = p.opts.rootPath()
	}
	if p.prop&unix.MS_SHARED != 0 && !p.dry {
		point, err := mountPoint(at)
		p.fail(err)
		p.note("make %s private", point)
		b.Sys(unix.SYS_MOUNT, null, b.Str(point), null, launch.Imm(unix.MS_PRIVATE), null)
		b.Sys(unix.SYS_MOUNT, null, b.Str("/proc"), null, launch.Imm(unix.MS_PRIVATE), null)
	}
	p.root = p.take(p.rootTree(at))
	if p.nested {
		at = "/"
	}
	p.note("attach root file system at %s", at)
	if at == "/proc" || p.nested {
		b.Sys(unix.SYS_MOVE_MOUNT, p.root, b.Str(""), launch.AtCwd(), b.Str(at), launch.Imm(moveEmpty))
	} else {
		// The root of a user namespace may not reach the bundle's folder; it needs no name there, but /proc is always in reach.
		done, unreachable := b.NewLabel(), b.NewLabel()
		b.Sys(unix.SYS_MOVE_MOUNT, p.root, b.Str(""), launch.AtCwd(), b.Str(at), launch.Imm(moveEmpty)).On(unix.EACCES, unreachable)
		b.Jump(done)
		b.Mark(unreachable)
		b.Sys(unix.SYS_MOVE_MOUNT, p.root, b.Str(""), launch.AtCwd(), b.Str("/proc"), launch.Imm(moveEmpty))
		b.Mark(done)
	}
	p.note("set propagation of the root file system")
	prop := p.building()
	if prop&unix.MS_SHARED != 0 {
		prop = unix.MS_PRIVATE | unix.MS_REC // pivot_root demands it; made shared once inside
	}
	p.propagate(p.root, prop|unix.MS_REC)
}

// rootTree is the root as a detached mount.
func (p *plan) rootTree(at string) *os.File {
	var f *os.File
	var err error
	switch {
	case p.dry:
		f = nothing()
	case p.opts.Root != nil && p.opts.RootDetached:
		fd, derr := unix.FcntlInt(p.opts.Root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		f, err = os.NewFile(uintptr(fd), "root"), derr
	case p.opts.Root != nil:
		f, err = mount.TreeAt(p.opts.Root, true)
	default:
		f, err = mount.Tree(at, true)
	}
	if err != nil {
		p.fail(fmt.Errorf("root file system %s: %w", at, err))
		return os.NewFile(^uintptr(0), "none")
	}
	return f
}

// mountPoint is the mount that path stands on.
func mountPoint(at string) (string, error) {
	for {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, at, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
			return "", fmt.Errorf("stat %s: %w", at, err)
		}
		if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 || at == "/" {
			return at, nil
		}
		at = path.Dir(at)
	}
}

// setattr changes the attributes of the mount at fd (or of the tree), or its propagation.
func (p *plan) setattr(fd launch.Arg, set, clear uint64, prop uint32, rec bool) {
	b := p.b
	if set == 0 && clear == 0 && prop == 0 {
		return
	}
	if p.legacy {
		p.legacyAttr(fd, set, prop, rec)
		return
	}
	flags := emptyPath
	if rec {
		flags |= unix.AT_RECURSIVE
	}
	b.Sys(unix.SYS_MOUNT_SETATTR, fd, b.Str(""), launch.Imm(flags), b.Words(set, clear, uint64(prop), 0), launch.Imm(32))
}

func (p *plan) propagate(fd launch.Arg, prop uint32) {
	p.setattr(fd, 0, 0, prop&^unix.MS_REC, prop&unix.MS_REC != 0)
}

// legacyAttr does the same with mount(2) on the descriptor's name in procfs; the mount must be attached by then. Kernels before 5.12 know no recursive attributes.
func (p *plan) legacyAttr(fd launch.Arg, set uint64, prop uint32, rec bool) {
	b := p.b
	if rec && prop == 0 {
		p.fail(errs.New(errs.NotImplemented, "recursive mount attributes need Linux 5.12 or newer"))
		return
	}
	self := b.NewReg()
	b.Sys(unix.SYS_OPENAT, p.proc, b.Str("self/fd"), launch.Imm(dirOnly|closeExec)).To(self)
	b.Sys(unix.SYS_FCHDIR, self)
	b.Close(self)
	b.FreeReg(self)
	name := b.Space(24)
	b.Decimal(name, fd)
	flags := uintptr(prop)
	if prop == 0 {
		flags = unix.MS_REMOUNT | unix.MS_BIND | mount.Legacy(set)
	} else if rec {
		flags |= unix.MS_REC
	}
	b.Sys(unix.SYS_MOUNT, null, name, null, launch.Imm(flags), null)
	b.Sys(unix.SYS_CHDIR, b.Str("/"))
}

// attach moves the detached mount fd onto target and says what it is for on failure.
func (p *plan) attach(fd, target launch.Arg) {
	p.b.Sys(unix.SYS_MOVE_MOUNT, fd, p.b.Str(""), target, p.b.Str(""), launch.Imm(moveBoth))
}

// target opens a mount point in the container's root, and makes it if it is missing. The places of the kernel's own file systems must be real directories: a link there
// would have the program write, and the container read, another file than the one meant.
func (p *plan) target(dest string, make int, fstype string) launch.Arg {
	b := p.b
	fd := b.NewReg()
	flags := oPath
	if fstype == "proc" || fstype == "sysfs" || path.Clean(dest) == "/dev" {
		flags |= noFollow
	}
	b.OpenIn(p.root, path.Clean("/"+dest), flags, make, dirMode).To(fd)
	if flags&noFollow != 0 {
		b.CheckNode(fd, unix.S_IFDIR, 0, 0)
	}
	return fd
}

// overProc are the files of procfs that a mount may cover: what emulates /proc per container needs them.
var overProc = map[string]bool{
	"/proc/cpuinfo": true, "/proc/diskstats": true, "/proc/meminfo": true, "/proc/stat": true, "/proc/swaps": true, "/proc/uptime": true,
	"/proc/loadavg": true, "/proc/slabinfo": true, "/proc/sys/kernel/ns_last_pid": true, "/proc/sys/crypto/fips_enabled": true,
}

// notProc refuses a mount point on procfs, wherever the path led.
func (p *plan) notProc(m *specs.Mount, target launch.Arg) {
	if overProc[path.Clean(m.Destination)] {
		return
	}
	ok := p.b.NewLabel()
	p.note("mount %s on %s: it is inside /proc", mountSource(m), m.Destination)
	p.b.CheckFS(target, magicProc).On(unix.EXDEV, ok)
	p.b.Fail(unix.EPERM)
	p.b.Mark(ok)
	p.note("mount %s on %s", mountSource(m), m.Destination)
}

// mountSource is how messages name what is mounted.
func mountSource(m *specs.Mount) string {
	if m.Type == "bind" || m.Type == "" || m.Type == "none" {
		return m.Source
	}
	return m.Type
}

// mount adds one mount of the spec.
func (p *plan) mount(m *specs.Mount) {
	if p.err != nil {
		return
	}
	o, err := mount.Parse(m.Options)
	if err != nil {
		p.fail(fmt.Errorf("mount %s: %w", m.Destination, err))
		return
	}
	if !path.IsAbs(m.Destination) {
		// runtime-spec: relative destinations are taken as relative to the root, as runtimes did before it demanded absolute ones.
		m.Destination = "/" + m.Destination
	}
	if isProc(m.Destination) && m.Type != "proc" && m.Type != "bind" && !o.Bind {
		p.fail(notOfProc(m))
		return
	}
	if m.Type == "tmpfs" {
		p.coveredMode(m, &o)
	}
	switch {
	case m.Type == "bind" || o.Bind:
		p.bindMount(m, &o)
	case m.Type == "cgroup":
		p.cgroupMount(m, &o)
	case m.Type == "tmpfs" && o.CopyUp:
		if !p.making { // it needs the place that it will cover
			p.copyUpMount(m, &o)
		}
	default:
		p.fsMount(m, &o)
	}
}

// coveredMode gives a tmpfs that names no mode the one of the directory that it covers, as other runtimes do: over / a tmpfs of the kernel's own mode could be written by anybody.
// Where nothing is covered the kernel's own mode stays (1777): users count on writing to a --tmpfs.
func (p *plan) coveredMode(m *specs.Mount, o *mount.Options) {
	if p.dry || slices.ContainsFunc(o.Data, func(d string) bool { return strings.HasPrefix(d, "mode=") }) {
		return
	}
	dir, err := p.covered(m)
	if err != nil {
		return // nothing there; or told where the root is entered
	}
	defer dir.Close()
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) == nil {
		o.Data = append(slices.Clone(o.Data), fmt.Sprintf("mode=%o", st.Mode&0o7777))
	}
}

// covered opens the directory that m will stand on: in the root, or in what is bound over a part of the root before m.
func (p *plan) covered(m *specs.Mount) (*os.File, error) {
	at, below, dest := "", "/", path.Clean(m.Destination)
	for i := range p.spec.Mounts {
		over := &p.spec.Mounts[i]
		if over == m {
			break
		}
		rest, inside := strings.CutPrefix(dest, path.Clean("/"+over.Destination)+"/")
		if !inside {
			continue
		}
		if at, below = over.Source, rest; over.Type != "bind" {
			return nil, fs.ErrNotExist // a new file system has no directories yet
		}
	}
	if at == "" {
		root, err := p.opts.openRoot()
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return safefs.Open(root, dest, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	root, err := os.OpenFile(at, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return safefs.Open(root, below, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// fsMount makes a file system and mounts it.
func (p *plan) fsMount(m *specs.Mount, o *mount.Options) {
	b := p.b
	p.note("mount %s on %s", mountSource(m), m.Destination)
	if mapped(m, o) {
		p.fail(errs.New(errs.NotImplemented, "mount %s: id mappings on a new %s", m.Destination, m.Type))
		return
	}
	readOnlyLater := m.Type == "tmpfs" && o.Set&attrRdonly != 0
	set := o.Set
	if readOnlyLater {
		set &^= attrRdonly
	}
	fd, _, ok := p.takeMade(m)
	switch {
	case ok:
	case p.makesSysfs(m, o):
		fd = p.sysfs(m, set)
	case p.onGround(m, o):
		fd = p.groundDir("dev", set)
	default:
		fd = p.makeFS(m, o, set)
	}
	if p.making {
		p.keepMade(m, fd, true)
		return
	}
	target := p.target(m.Destination, launch.MakeDir, m.Type)
	if m.Type != "proc" {
		p.notProc(m, target)
	}
	p.attach(fd, target)
	p.finish(fd, o)
	b.Close(target)
	b.FreeReg(target)
	if ownProc(m, o) && !p.sysctlled {
		p.sysctls(fd)
	}
	switch {
	case readOnlyLater:
		dest := m.Destination
		p.late = append(p.late, func() {
			p.note("make %s read-only", dest)
			p.setattr(fd, attrRdonly|o.Set, 0, 0, false)
		})
	case m.Type == "devpts" && path.Clean(m.Destination) == "/dev/pts":
		p.pts, p.hasPts = fd, true
	default:
		b.Close(fd)
		if fd.IsReg() {
			b.FreeReg(fd)
		}
	}
}

// virtual are the file systems without a device, whose superblock need not be read-only for the mount to be.
var virtual = map[string]bool{"tmpfs": true, "proc": true, "sysfs": true, "devpts": true, "mqueue": true, "cgroup": true, "cgroup2": true, "overlay": true, "devtmpfs": true, "securityfs": true, "debugfs": true, "tracefs": true, "bpf": true}

func (p *plan) makeFS(m *specs.Mount, o *mount.Options, set uint64) launch.Arg {
	b := p.b
	ctx, fd := b.NewReg(), b.NewReg()
	b.Sys(unix.SYS_FSOPEN, b.Str(m.Type), launch.Imm(unix.FSOPEN_CLOEXEC)).To(ctx)
	config := func(cmd int, key, value string) {
		k, v := null, null
		if key != "" {
			k = b.Str(key)
		}
		if cmd == setString {
			v = b.Str(value)
		}
		b.Sys(unix.SYS_FSCONFIG, ctx, launch.Imm(cmd), k, v, null)
	}
	if m.Source != "" {
		config(setString, "source", m.Source)
	}
	if o.ReadOnly && !virtual[m.Type] {
		config(setFlag, "ro", "")
	}
	data := append(append([]string(nil), o.Super...), o.Data...)
	label := p.spec.Linux.MountLabel
	if label != "" && !selinuxEnabled() {
		label = ""
	}
	if label != "" && (m.Type == "tmpfs" || m.Type == "devpts") {
		data = append(data, "context="+label)
	}
	for _, d := range data {
		p.note("mount %s on %s: option %s", m.Type, m.Destination, d)
		key, value, ok := strings.Cut(d, "=")
		if ok {
			config(setString, key, strings.Trim(value, `"`))
		} else {
			config(setFlag, key, "")
		}
	}
	p.note("mount %s on %s", m.Type, m.Destination)
	config(createFS, "", "")
	b.Sys(unix.SYS_FSMOUNT, ctx, launch.Imm(unix.FSMOUNT_CLOEXEC), launch.Imm(set)).To(fd)
	b.Close(ctx)
	b.FreeReg(ctx)
	if label != "" && m.Type == "mqueue" {
		p.labelRoot(fd, label)
	}
	return fd
}

// labelRoot labels the root of a mount whose file system came with its namespace, so that it takes no context any more when it is mounted.
func (p *plan) labelRoot(fd launch.Arg, label string) {
	b := p.b
	p.note("label %s", label)
	back := b.NewReg()
	b.Sys(unix.SYS_OPENAT, launch.AtCwd(), b.Str("."), launch.Imm(unix.O_PATH|unix.O_CLOEXEC)).To(back)
	b.Sys(unix.SYS_FCHDIR, fd)
	b.Sys(unix.SYS_SETXATTR, b.Str("."), b.Str("security.selinux"), b.Str(label), launch.Imm(len(label)+1), launch.Imm(0))
	b.Sys(unix.SYS_FCHDIR, back)
	b.Close(back)
	b.FreeReg(back)
}

// finish sets what is set after a mount was attached: propagation, recursive attributes.
func (p *plan) finish(fd launch.Arg, o *mount.Options) {
	p.setattr(fd, o.RecSet, o.RecClear, 0, true)
	for _, prop := range o.Propagation {
		p.propagate(fd, prop)
	}
}
