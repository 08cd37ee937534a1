package runtime

import (
	"math"
	"path"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/ns"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// rootPath is the root file system's path on the host.
func (o *RunOptions) rootPath() string {
	if path.IsAbs(o.Spec.Root.Path) {
		return path.Clean(o.Spec.Root.Path)
	}
	return path.Join(o.Bundle, o.Spec.Root.Path)
}

// validate refuses what cannot work before anything is made, and fills in what may be left out.
func validate(opts *RunOptions) error {
	spec := opts.Spec
	switch {
	case spec == nil:
		return errs.New(errs.Invalid, "no spec")
	case opts.Launcher == nil:
		return errs.New(errs.Invalid, "nobody to launch the process")
	case !strings.HasPrefix(spec.Version, "1.") && spec.Version != "":
		return errs.New(errs.Invalid, "ociVersion %q: only 1.x is understood", spec.Version)
	case spec.Process == nil:
		return errs.New(errs.Invalid, "process is missing")
	case opts.Root == nil && (spec.Root == nil || spec.Root.Path == ""):
		return errs.New(errs.Invalid, "root.path is missing")
	case opts.PreserveFDs < 0 || opts.PreserveFDs > 64:
		return errs.New(errs.Invalid, "cannot preserve %d descriptors", opts.PreserveFDs)
	}
	copied := *spec // what is filled in is ours alone
	opts.Spec = &copied
	spec = opts.Spec
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if spec.Root == nil {
		spec.Root = &specs.Root{}
	}
	spec.Mounts = append([]specs.Mount(nil), spec.Mounts...)
	if err := validateProcess(spec.Process); err != nil {
		return err
	}
	return validateLinux(spec)
}

func validateLinux(spec *specs.Spec) error {
	l := spec.Linux
	if l.IntelRdt != nil {
		return errs.New(errs.NotImplemented, "intelRdt: resctrl is not supported")
	}
	if l.MemoryPolicy != nil {
		return errs.New(errs.NotImplemented, "memoryPolicy is not supported")
	}
	if len(l.NetDevices) > 0 {
		return errs.New(errs.NotImplemented, "netDevices are not supported")
	}
	if len(l.TimeOffsets) > 0 && !slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.TimeNamespace && n.Path == "" }) {
		return errs.New(errs.Invalid, "timeOffsets: the container has no time namespace of its own")
	}
	for _, list := range [][]string{l.MaskedPaths, l.ReadonlyPaths} {
		for _, p := range list {
			if !path.IsAbs(p) {
				return errs.New(errs.Invalid, "masked or read-only path %q is not absolute", p)
			}
		}
	}
	isRoot := func(p string) bool { return path.Clean(p) == "/" }
	if slices.ContainsFunc(l.MaskedPaths, isRoot) {
		return errs.New(errs.Invalid, "maskedPaths: the root itself cannot be masked")
	}
	if slices.ContainsFunc(l.ReadonlyPaths, isRoot) { // what is mounted on the root is below nobody: it is made so itself
		root := *spec.Root
		root.Readonly = true
		spec.Root = &root
	}
	for _, d := range l.Devices {
		if !path.IsAbs(d.Path) || strings.HasSuffix(d.Path, "/..") {
			return errs.New(errs.Invalid, "device path %q is not absolute", d.Path)
		}
		if _, err := deviceType(d.Type); err != nil {
			return err
		}
	}
	for _, m := range spec.Mounts {
		if m.Destination == "" {
			return errs.New(errs.Invalid, "mount of %s: destination is missing", m.Source)
		}
	}
	for _, h := range allHooks(spec.Hooks) {
		if !path.IsAbs(h.Path) {
			return errs.New(errs.Invalid, "hook %q: path is not absolute", h.Path)
		}
		if h.Timeout != nil && *h.Timeout <= 0 {
			return errs.New(errs.Invalid, "hook %s: timeout must be above zero", h.Path)
		}
	}
	return nil
}

func allHooks(h *specs.Hooks) (all []specs.Hook) {
	if h == nil {
		return nil
	}
	for _, list := range [][]specs.Hook{prestart(h), h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop} {
		all = append(all, list...)
	}
	return all
}

func validateProcess(proc *specs.Process) error {
	switch {
	case proc == nil:
		return errs.New(errs.Invalid, "process is missing")
	case len(proc.Args) == 0:
		return errs.New(errs.Invalid, "process.args is empty")
	case !path.IsAbs(proc.Cwd):
		return errs.New(errs.Invalid, "working directory %q is not absolute", proc.Cwd)
	}
	// To the kernel, the largest number means "leave it as it is", which is root.
	for _, id := range append([]uint32{proc.User.UID, proc.User.GID}, proc.User.AdditionalGids...) {
		if id == math.MaxUint32 {
			return errs.New(errs.Invalid, "process.user: id %d is not one that a process can have", id)
		}
	}
	return nil
}

func mapsOf(l *specs.Linux) ns.Maps { return ns.Maps{UID: l.UIDMappings, GID: l.GIDMappings} }
