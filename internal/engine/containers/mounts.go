package containers

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
	"corten.dev/corten/internal/volume"
)

// resolveMounts turns --volumes-from, -v, --mount and the image's volumes into one list; a later kind gives way to an earlier one at the same place, except that
// -v and --mount may not both name it, and replace what --volumes-from brought.
func (s *Service) resolveMounts(rec *container.Record) error {
	byTarget := map[string]container.Mount{}
	for _, spec := range rec.Host.VolumesFrom {
		if err := s.mountsFrom(spec, byTarget); err != nil {
			return err
		}
	}
	asked := map[string]bool{}
	ask := func(mnt container.Mount) error {
		if asked[mnt.Target] {
			return errs.New(errs.Invalid, "Duplicate mount point: %s", mnt.Target)
		}
		asked[mnt.Target] = true
		byTarget[mnt.Target] = mnt
		return nil
	}
	for _, bind := range rec.Host.Binds {
		mnt, err := ParseBind(bind)
		if err != nil {
			return err
		}
		if err := ask(mnt); err != nil {
			return err
		}
	}
	for _, req := range rec.Host.Mounts {
		mnt, err := resolveRequest(req)
		if err != nil {
			return err
		}
		if err := ask(mnt); err != nil {
			return err
		}
	}
	for target := range rec.Host.Tmpfs {
		clean := path.Clean(target)
		if err := checkTarget(clean); err != nil {
			return err
		}
		if asked[clean] {
			return errs.New(errs.Invalid, "Duplicate mount point: %s", clean)
		}
		delete(byTarget, clean)
		asked[clean] = true
	}
	for target := range rec.Config.Volumes {
		clean := path.Clean(target)
		if err := checkTarget(clean); err != nil {
			return err
		}
		if _, ok := byTarget[clean]; ok || asked[clean] {
			continue
		}
		byTarget[clean] = container.Mount{Type: "volume", Target: clean, Driver: "local", RW: true, Anonymous: true}
	}
	rec.Mounts = make([]container.Mount, 0, len(byTarget))
	for _, mnt := range byTarget {
		rec.Mounts = append(rec.Mounts, mnt)
	}
	slices.SortFunc(rec.Mounts, func(a, b container.Mount) int { return strings.Compare(a.Target, b.Target) })
	return nil
}

func checkTarget(target string) error {
	if !path.IsAbs(target) {
		return errs.New(errs.Invalid, "invalid mount path: '%s' mount path must be absolute", target)
	}
	if target == "/" {
		return errs.New(errs.Invalid, "invalid specification: destination can't be '/'")
	}
	return nil
}

func (s *Service) mountsFrom(spec string, byTarget map[string]container.Mount) error {
	ref, mode, _ := strings.Cut(spec, ":")
	if ref == "" || mode != "" && mode != "ro" && mode != "rw" && mode != "z" && mode != "Z" {
		return errs.New(errs.Invalid, "invalid volumes-from specification: '%s'", spec)
	}
	ctr, err := s.find(ref)
	if err != nil {
		return noOther(err)
	}
	for _, mnt := range ctr.record().Mounts {
		mnt.RW = mnt.RW && mode != "ro"
		if mode != "" {
			mnt.Mode = mode
		}
		mnt.Anonymous = false // it goes with the container that made it
		byTarget[mnt.Target] = mnt
	}
	return nil
}

// noOther: a create that names another container which does not exist is a wrong request. With "not found", clients would pull the image and try again.
func noOther(err error) error { return errs.New(errs.Invalid, "%v", err) }

// ParseBind reads one -v: source:target[:options], or a target alone.
func ParseBind(bind string) (container.Mount, error) {
	bad := func() (container.Mount, error) {
		return container.Mount{}, errs.New(errs.Invalid, "invalid volume specification: '%s'", bind)
	}
	parts := strings.Split(bind, ":")
	var mnt container.Mount
	switch len(parts) {
	case 1:
		mnt.Target = parts[0]
	case 2:
		mnt.Source, mnt.Target = parts[0], parts[1]
	case 3:
		mnt.Source, mnt.Target, mnt.Mode = parts[0], parts[1], parts[2]
	default:
		return bad()
	}
	if mnt.Target == "" || len(parts) > 1 && mnt.Source == "" || strings.ContainsRune(bind, 0) {
		return bad()
	}
	mnt.Target = path.Clean(mnt.Target)
	if err := checkTarget(mnt.Target); err != nil {
		return mnt, err
	}
	switch {
	case mnt.Source == "":
		mnt.Type, mnt.Driver, mnt.Anonymous = "volume", "local", true
	case path.IsAbs(mnt.Source):
		mnt.Type, mnt.Propagation = "bind", "rprivate"
		mnt.Source = path.Clean(mnt.Source)
		mnt.Request.CreateMountpoint = true
	default:
		if err := volume.CheckName(mnt.Source); err != nil {
			return mnt, err
		}
		mnt.Type, mnt.Driver, mnt.Name, mnt.Source = "volume", "local", mnt.Source, ""
	}
	return mnt, bindMode(&mnt)
}

func bindMode(mnt *container.Mount) error {
	mnt.RW = true
	if mnt.Mode == "" {
		if mnt.Type == "volume" {
			mnt.Mode = "z"
		}
		return nil
	}
	seen := map[string]bool{}
	for _, opt := range strings.Split(mnt.Mode, ",") {
		kind := opt
		switch opt {
		case "rw", "ro":
			kind, mnt.RW = "rw", opt == "rw"
		case "z", "Z": // SELinux relabelling is for hosts that have it
			kind = "label"
		case "shared", "slave", "private", "rshared", "rslave", "rprivate":
			if mnt.Type != "bind" {
				return errs.New(errs.Invalid, "invalid mode: %s", mnt.Mode)
			}
			kind, mnt.Propagation = "propagation", opt
		case "nocopy":
			if mnt.Type != "volume" {
				return errs.New(errs.Invalid, "invalid mode: %s", mnt.Mode)
			}
			mnt.Request.NoCopy = true
		case "cached", "delegated", "consistent":
			kind = "consistency" // all three mean the same on Linux
		default:
			return errs.New(errs.Invalid, "invalid mode: %s", mnt.Mode)
		}
		if seen[kind] {
			return errs.New(errs.Invalid, "invalid mode: %s", mnt.Mode)
		}
		seen[kind] = true
	}
	return nil
}

// resolveRequest checks one --mount.
func resolveRequest(req container.MountRequest) (container.Mount, error) {
	bad := func(format string, args ...any) (container.Mount, error) {
		return container.Mount{}, errs.New(errs.Invalid, "invalid mount config for type %q: %w", req.Type, fmt.Errorf(format, args...))
	}
	if req.Target == "" {
		return bad("field Target must not be empty")
	}
	target := path.Clean(req.Target)
	if err := checkTarget(target); err != nil {
		return bad("%w", err)
	}
	mnt := container.Mount{Type: req.Type, Target: target, RW: !req.ReadOnly, Request: req}
	if req.ReadOnly {
		mnt.Mode = "ro"
	}
	switch req.Type {
	case "bind":
		switch {
		case req.Source == "":
			return bad("field Source must not be empty")
		case !path.IsAbs(req.Source):
			return bad("invalid mount path: '%s' mount path must be absolute", req.Source)
		case !slices.Contains([]string{"", "private", "rprivate", "shared", "rshared", "slave", "rslave"}, req.Propagation):
			return bad("invalid propagation mode: %s", req.Propagation)
		}
		mnt.Source, mnt.Propagation = path.Clean(req.Source), req.Propagation
		if mnt.Propagation == "" {
			mnt.Propagation = "rprivate"
		}
		if !req.CreateMountpoint {
			if _, err := os.Stat(mnt.Source); err != nil {
				return bad("bind source path does not exist: %s", mnt.Source)
			}
		}
	case "volume":
		if req.Source != "" {
			if err := volume.CheckName(req.Source); err != nil {
				return container.Mount{}, err
			}
		}
		if req.Driver != "" && req.Driver != "local" {
			return container.Mount{}, errs.New(errs.NotFound, "error looking up volume plugin %s: plugin %q not found", req.Driver, req.Driver)
		}
		if req.Subpath != "" && !filepath.IsLocal(req.Subpath) {
			return bad("volume subpath %q must stay inside the volume", req.Subpath)
		}
		mnt.Name, mnt.Driver, mnt.Anonymous = req.Source, "local", req.Source == ""
		if mnt.Mode == "" {
			mnt.Mode = "z"
		}
	case "tmpfs":
		if req.Source != "" {
			return bad("field Source must not be specified")
		}
	case "image", "npipe", "cluster":
		return container.Mount{}, errs.New(errs.NotImplemented, "mounts of type %q are not supported by this engine", req.Type)
	default:
		return container.Mount{}, errs.New(errs.Invalid, "mount type unknown: %q", req.Type)
	}
	return mnt, nil
}

// claimVolumes makes the volumes that do not exist and notes the container as the user of all.
func (s *Service) claimVolumes(ctx context.Context, ctr *live, undo *task.Undo) error {
	mounts := slices.Clone(ctr.record().Mounts)
	for i := range mounts {
		mnt := &mounts[i]
		if mnt.Type != "volume" {
			continue
		}
		made, vol, err := s.volumeFor(ctx, *mnt)
		if err != nil {
			return err
		}
		if made {
			undo.Push(func(ctx context.Context) error { return s.Volumes.Remove(ctx, vol.Name, true) })
		}
		if err := s.Volumes.Acquire(ctx, vol.Name, ctr.id); err != nil {
			return err
		}
		undo.Push(func(ctx context.Context) error { return s.Volumes.Release(ctx, vol.Name, ctr.id) })
		mnt.Name, mnt.Source, mnt.Driver = vol.Name, vol.Mountpoint, vol.Driver
	}
	ctr.change(func(rec *container.Record) { rec.Mounts = mounts })
	return nil
}

func (s *Service) volumeFor(ctx context.Context, mnt container.Mount) (made bool, vol volume.Volume, err error) {
	opts := volume.CreateOptions{Name: mnt.Name, Driver: mnt.Driver, Labels: mnt.Request.Labels, Options: mnt.Request.DriverOptions}
	if mnt.Name != "" {
		vol, err = s.Volumes.Get(ctx, mnt.Name)
		if err == nil && len(mnt.Request.DriverOptions) == 0 {
			return false, vol, nil
		}
		if err == nil {
			vol, err = s.Volumes.Create(ctx, opts) // refuses other options
			return false, vol, err
		}
	}
	vol, err = s.Volumes.Create(ctx, opts)
	return err == nil, vol, err
}
