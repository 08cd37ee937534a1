package runtime

import (
	"path"
	"slices"

	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// How a container's small directories share a file system.
//
//	tmpfs of the container's own, attached nowhere     seen by the container at
//	  dev/                                               /dev
//	  cgroup/                                            /sys/fs/cgroup (where hierarchies of v1 are below it)
//	  empty/                                             masked directories
//
// The end of a memory cgroup goes through two lists of every file system there is, under the lock of all cgroups: each that a container does not have saves 0.3 ms of processor time per start where 1,000 run,
// besides what it costs to make one and to take it down. What a container can fill, such as /dev/shm, keeps one of its own, and no two containers share one.

// makeGround makes the tmpfs, if something will stand on it.
func (p *plan) makeGround() {
	p.grounded = p.grounded && slices.ContainsFunc(p.spec.Mounts, func(m specs.Mount) bool {
		o, err := mount.Parse(m.Options)
		return err == nil && p.onGround(&m, &o)
	})
	if !p.grounded {
		return
	}
	b := p.b
	p.note("make the file system of small directories")
	p.ground = p.makeFS(&specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/dev"}, &mount.Options{Data: slices.Clone(devOptions)}, 0)
	for _, name := range []string{"dev", "cgroup"} {
		b.Sys(unix.SYS_MKDIRAT, p.ground, b.Str(name), launch.Imm(dirMode))
	}
	b.Sys(unix.SYS_MKDIRAT, p.ground, b.Str("empty"), launch.Imm(0o555))
	p.empty = p.groundDir("empty", attrRdonly|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// leaveGround lets go of it; what stands on it stays.
func (p *plan) leaveGround() {
	if !p.grounded {
		return
	}
	p.b.Close(p.ground)
	p.b.FreeReg(p.ground)
}

// groundDir is one of its directories as a mount.
func (p *plan) groundDir(name string, set uint64) launch.Arg {
	fd := p.b.NewReg()
	p.b.Sys(unix.SYS_OPEN_TREE, p.ground, p.b.Str(name), launch.Imm(cloneTree)).To(fd)
	clear := uint64(0)
	if set&unix.MOUNT_ATTR__ATIME != 0 {
		clear = unix.MOUNT_ATTR__ATIME
	}
	p.setattr(fd, set, clear, 0, false)
	return fd
}

// devOptions are those of /dev as engines ask for it.
var devOptions = []string{"mode=755", "size=65536k"}

// onGround tells whether a mount of the spec is a /dev without wishes.
func (p *plan) onGround(m *specs.Mount, o *mount.Options) bool {
	return p.grounded && p.making && m.Type == "tmpfs" && m.Source == "tmpfs" && path.Clean(m.Destination) == "/dev" && len(o.Super)+len(m.UIDMappings)+len(m.GIDMappings) == 0 &&
		slices.Equal(slices.Sorted(slices.Values(o.Data)), devOptions)
}
