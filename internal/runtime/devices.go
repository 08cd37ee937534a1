package runtime

import (
	"fmt"
	"io/fs"
	"os"
	"path"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are those that every container has.
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

var devLinks = [][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
}

// makeDev fills /dev, unless it is a bind mount.
func (p *plan) makeDev() {
	if p.bindDev || p.err != nil {
		return
	}
	b := p.b
	p.note("open /dev")
	p.dev = p.target("/dev", launch.MakeDir, "")
	seen := map[string]bool{}
	for _, d := range p.spec.Linux.Devices {
		seen[path.Clean(d.Path)] = true
		p.device(&d)
	}
	for _, d := range defaultDevices {
		if !seen[d.Path] {
			mode := os.FileMode(0o666)
			d.FileMode = &mode
			p.device(&d)
		}
	}
	for _, l := range devLinks {
		p.note("link /dev/%s", l[1])
		if l[1] == "ptmx" {
			b.Sys(unix.SYS_UNLINKAT, p.dev, b.Str("ptmx"), null).Ignore(unix.ENOENT).Ignore(unix.EROFS)
		}
		b.Sys(unix.SYS_SYMLINKAT, b.Str(l[0]), p.dev, b.Str(l[1])).Ignore(unix.EEXIST)
	}
}

func deviceType(t string) (uint32, error) {
	switch t {
	case "c", "u":
		return unix.S_IFCHR, nil
	case "b":
		return unix.S_IFBLK, nil
	case "p":
		return unix.S_IFIFO, nil
	}
	return 0, errs.New(errs.Invalid, "device type %q is unknown", t)
}

// device makes a device node, or binds the host's where nodes cannot be made.
func (p *plan) device(d *specs.LinuxDevice) {
	b := p.b
	typ, err := deviceType(d.Type)
	if err != nil {
		p.fail(err)
		return
	}
	p.note("make device %s", d.Path)
	dir, name := p.dev, path.Base(d.Path)
	own := path.Dir(path.Clean(d.Path)) != "/dev"
	if own {
		dir = p.target(path.Dir(d.Path), launch.MakeDir, "")
	}
	if p.userns {
		p.bindDevice(d, typ, dir, name)
	} else {
		mode := uint32(0o666)
		if d.FileMode != nil {
			mode = uint32(d.FileMode.Perm()) | specialBits(*d.FileMode)
		}
		done, exists := b.NewLabel(), b.NewLabel()
		b.Sys(unix.SYS_MKNODAT, dir, b.Str(name), launch.Imm(typ|mode), launch.Imm(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))).On(unix.EEXIST, exists)
		if d.UID != nil && *d.UID != 0 || d.GID != nil && *d.GID != 0 {
			b.Sys(unix.SYS_FCHOWNAT, dir, b.Str(name), idOr0(d.UID), idOr0(d.GID), launch.Imm(unix.AT_SYMLINK_NOFOLLOW))
		}
		b.Jump(done)
		b.Mark(exists)
		fd := b.NewReg()
		b.Sys(unix.SYS_OPENAT, dir, b.Str(name), launch.Imm(oPath|noFollow|closeExec)).To(fd)
		b.CheckNode(fd, typ, uint32(d.Major), uint32(d.Minor))
		b.Close(fd)
		b.FreeReg(fd)
		b.Mark(done)
	}
	if own {
		b.Close(dir)
		b.FreeReg(dir)
	}
}

func specialBits(m fs.FileMode) (bits uint32) {
	if m&fs.ModeSetuid != 0 {
		bits |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	return bits
}

func idOr0(id *uint32) launch.Arg {
	if id == nil {
		return null
	}
	return launch.Imm(*id)
}

// bindDevice mounts the host's node, checked to be the device that was asked for.
func (p *plan) bindDevice(d *specs.LinuxDevice, typ uint32, dir launch.Arg, name string) {
	b := p.b
	fd, clone := b.NewReg(), launch.Arg{}
	if p.opts.Rootless {
		clone = b.NewReg()
		b.Sys(unix.SYS_OPEN_TREE, launch.AtCwd(), b.Str(d.Path), launch.Imm(cloneTree|unix.AT_SYMLINK_NOFOLLOW)).To(clone)
	} else {
		tree, err := nothing(), error(nil)
		if !p.dry {
			tree, err = mount.Tree(d.Path, false)
		}
		if err != nil {
			p.fail(fmt.Errorf("device %s: %w", d.Path, err))
			return
		}
		clone = p.take(tree)
	}
	b.CheckNode(clone, typ, uint32(d.Major), uint32(d.Minor))
	b.OpenIn(dir, name, oPath|noFollow, launch.MakeFile, 0o666).To(fd)
	p.fileOrNode(fd, typ, uint32(d.Major), uint32(d.Minor))
	p.attach(clone, fd)
	b.Close(fd)
	b.FreeReg(fd)
}

// fileOrNode demands that a mount point is a plain file or the very device: never a link, which would have the mount land elsewhere.
func (p *plan) fileOrNode(fd launch.Arg, typ, major, minor uint32) {
	ok, other := p.b.NewLabel(), p.b.NewLabel()
	p.b.CheckNode(fd, unix.S_IFREG, 0, 0).On(unix.EPROTO, other)
	p.b.Jump(ok)
	p.b.Mark(other)
	p.b.CheckNode(fd, typ, major, minor)
	p.b.Mark(ok)
}

// terminal opens a terminal of the container's own devpts, shows it as /dev/console and sends the master away.
func (p *plan) terminal(proc *specs.Process, console bool) {
	b := p.b
	p.note("open terminal")
	master, slave := b.NewReg(), b.NewReg()
	if p.hasPts {
		b.Sys(unix.SYS_OPENAT, p.pts, b.Str("ptmx"), launch.Imm(unix.O_RDWR|unix.O_NOCTTY|noFollow|closeExec)).To(master)
	} else {
		b.OpenIn(p.root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, launch.MakeNothing, 0).To(master)
	}
	b.CheckFS(master, magicPts)
	b.CheckNode(master, sIfChr, 5, 2)
	b.Sys(unix.SYS_IOCTL, master, launch.Imm(unix.TIOCSPTLCK), b.Space(8))
	b.Sys(unix.SYS_IOCTL, master, launch.Imm(unix.TIOCGPTPEER), launch.Imm(unix.O_RDWR|unix.O_NOCTTY|closeExec)).To(slave)
	if size := proc.ConsoleSize; size != nil {
		b.Sys(unix.SYS_IOCTL, master, launch.Imm(unix.TIOCSWINSZ), b.Words(uint64(size.Height&0xffff)|uint64(size.Width&0xffff)<<16))
	}
	b.Sys(unix.SYS_FCHOWN, slave, launch.Imm(proc.User.UID), launch.Imm(-1)).Ignore(unix.EINVAL).Ignore(unix.EPERM) // an id without a mapping owns nothing
	if console && !p.bindDev {
		p.note("mount /dev/console")
		cons, clone := b.NewReg(), b.NewReg()
		b.OpenIn(p.dev, "console", oPath|noFollow, launch.MakeFile, 0o620).To(cons)
		p.fileOrNode(cons, unix.S_IFCHR, 5, 1)
		// The clone is of the terminal that the kernel just gave us, not of a name.
		b.Sys(unix.SYS_OPEN_TREE, slave, b.Str(""), launch.Imm(cloneTree|emptyPath)).To(clone)
		p.attach(clone, cons)
		b.Close(cons)
		b.Close(clone)
		b.FreeReg(cons)
		b.FreeReg(clone)
	}
	p.note("send terminal")
	p.sendFD(launch.Slot(launch.SlotConsole), master)
	b.Close(master)
	b.FreeReg(master)
	p.slave = slave
}

// sendFD sends a descriptor over a unix socket. The message is built in the arena: struct msghdr, struct iovec, struct cmsghdr.
func (p *plan) sendFD(socket, fd launch.Arg) {
	b := p.b
	text := b.Str("/dev/ptmx")
	iov := b.Words(0, 9)
	b.Poke(iov, text, 8)
	cmsg := b.Words(uint64(unix.CmsgLen(4)), unix.SOL_SOCKET|unix.SCM_RIGHTS<<32, 0)
	b.Poke(cmsg.Plus(16), fd, 4)
	msg := b.Words(0, 0, 0, 1, 0, uint64(unix.CmsgSpace(4)), 0)
	b.Poke(msg.Plus(16), iov, 8)
	b.Poke(msg.Plus(32), cmsg, 8)
	b.Sys(unix.SYS_SENDMSG, socket, msg, launch.Imm(unix.MSG_NOSIGNAL))
}
