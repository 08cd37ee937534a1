package runtime

import (
	"errors"
	"fmt"
	"os"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/host"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/ns"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mapSource maps the ids of a cloned source: by the mount's own mappings, or as the container's user namespace does.
func (p *plan) mapSource(m *specs.Mount, o *mount.Options, tree *os.File) error {
	if p.legacy {
		return errs.New(errs.NotImplemented, "mount %s: mapped ids need Linux 5.12 or newer", m.Destination)
	}
	maps := ns.Maps{UID: m.UIDMappings, GID: m.GIDMappings}
	if len(maps.UID) == 0 && len(maps.GID) == 0 {
		maps = mapsOf(p.spec.Linux)
	}
	if len(maps.UID) == 0 || len(maps.GID) == 0 {
		return errs.New(errs.Invalid, "mount %s: idmap needs uid and gid mappings, its own or the container's", m.Destination)
	}
	userns, err := ns.NewUser(maps)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Destination, err)
	}
	defer userns.Close()
	err = mount.IDMap(tree, userns, o.IDMap == 2 || o.IDMap == 0 && o.Rec)
	if errors.Is(err, unix.EINVAL) {
		kind, kerr := host.FileSystem(fmt.Sprintf("/proc/self/fd/%d", tree.Fd()))
		if kerr != nil {
			return errors.Join(err, kerr)
		}
		return errs.New(errs.NotImplemented, "mount %s: the kernel cannot map ids on this file system (%s), or on one below it", m.Destination, kind)
	}
	return err
}

// copyUpMount makes a tmpfs that already has what it covers.
func (p *plan) copyUpMount(m *specs.Mount, o *mount.Options) {
	if p.dry {
		return
	}
	fs, err := mount.FS("tmpfs", m.Source, mount.Options{Data: o.Data, Super: o.Super, Set: o.Set &^ attrRdonly, ReadOnly: false})
	if err == nil {
		err = p.copyUp(m.Destination, fs)
	}
	if err != nil {
		if fs != nil {
			fs.Close()
		}
		p.fail(fmt.Errorf("mount tmpfs on %s: %w", m.Destination, err))
		return
	}
	slot := p.take(fs)
	p.note("mount tmpfs on %s", m.Destination)
	target := p.target(m.Destination, launch.MakeDir, "")
	p.notProc(m, target)
	p.attach(slot, target)
	p.finish(slot, o)
	p.b.Close(target)
	p.b.FreeReg(target)
	if o.Set&attrRdonly != 0 {
		p.late = append(p.late, func() {
			p.note("make %s read-only", m.Destination)
			p.setattr(slot, o.Set, 0, 0, false)
		})
	}
}
