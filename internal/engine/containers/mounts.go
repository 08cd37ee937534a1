package containers

import (
	"context"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
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
	ask := func(mnt container.Mount, written string) error {
		if asked[mnt.Target] {
			return errs.New(errs.Invalid, "Duplicate mount point: %s", written)
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
		if mnt.Type == "volume" {
			mnt.Driver = rec.Host.VolumeDriver
		}
		if err := s.settlePropagation(&mnt); err != nil {
			return err
		}
		if err := ask(mnt, mnt.Target); err != nil {
			return err
		}
	}
	for _, req := range rec.Host.Mounts {
		mnt, err := resolveRequest(req)
		if err != nil {
			return err
		}
		if err := s.settlePropagation(&mnt); err != nil {
			return err
		}
		if err := ask(mnt, req.Target); err != nil {
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
		byTarget[clean] = container.Mount{Type: "volume", Target: clean, Driver: rec.Host.VolumeDriver, RW: true, Anonymous: true}
	}
	rec.Mounts = make([]container.Mount, 0, len(byTarget))
	for _, mnt := range byTarget {
		rec.Mounts = append(rec.Mounts, mnt)
	}
	slices.SortFunc(rec.Mounts, func(a, b container.Mount) int { return strings.Compare(a.Target, b.Target) })
	return nil
}

func checkTarget(target string) error {
	if path.Clean(target) == "/" {
		return errs.New(errs.Invalid, "invalid specification: destination can't be '/'")
	}
	return absolute(target)
}

func absolute(name string) error {
	if !path.IsAbs(name) {
		return errs.New(errs.Invalid, "invalid mount path: '%s' mount path must be absolute", name)
	}
	return nil
}

// settlePropagation gives a bind mount its propagation. One that holds the engine's own folder must let go of what is unmounted there: else a container would keep the
// file systems of volumes and other containers alive.
func (s *Service) settlePropagation(mnt *container.Mount) error {
	if mnt.Type != "bind" {
		return nil
	}
	data := filepath.Dir(s.Root)
	if mnt.Source != "/" && mnt.Source != data && !strings.HasPrefix(data, mnt.Source+"/") {
		if mnt.Propagation == "" {
			mnt.Propagation = "rprivate"
		}
		return nil
	}
	switch mnt.Propagation {
	case "":
		mnt.Propagation = "rslave" // where the host shares nothing, it means rprivate
	case "slave", "rslave", "shared", "rshared":
	default:
		return errs.New(errs.Invalid, `invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the daemon root, daemon root: %q, bind mount source: %q, propagation: %q`,
			data, mnt.Source, mnt.Propagation)
	}
	return nil
}

// mountsFrom takes the mounts of another container over. Who made an anonymous volume does not matter: it goes with its last user that is removed with its volumes.
func (s *Service) mountsFrom(spec string, byTarget map[string]container.Mount) error {
	ref, mode, given := strings.Cut(spec, ":")
	switch {
	case spec == "":
		return errs.New(errs.Invalid, "volumes-from specification cannot be an empty string")
	case ref == "":
		return errs.New(errs.Invalid, "malformed volumes-from specification: %s", spec)
	case given && mode != "ro" && mode != "rw" && mode != "z" && mode != "Z" && mode != "ro,z" && mode != "ro,Z" && mode != "rw,z" && mode != "rw,Z":
		return errs.New(errs.Invalid, "invalid mode: %s", mode)
	}
	ctr, err := s.find(ref)
	if err != nil {
		return noOther(err)
	}
	for _, mnt := range ctr.record().Mounts {
		mnt.RW = mnt.RW && !strings.HasPrefix(mode, "ro")
		mnt.Mode = ""
		mnt.Relabel = relabel(mode)
		byTarget[mnt.Target] = mnt
	}
	return nil
}

// noOther: a create that names another container which does not exist is a wrong request. With "not found", clients would pull the image and try again.
func noOther(err error) error { return errs.New(errs.Invalid, "%v", err) }

// maxMounts bounds what a container may mount: each takes a descriptor while it starts, and an image of a few kilobytes can ask for as many volumes as it likes.
const maxMounts = 1000

// claimMounts makes the volumes that do not exist, notes the container as the user of all, and finds the images that it mounts.
func (s *Service) claimMounts(ctx context.Context, ctr *live, undo *task.Undo) error {
	mounts := slices.Clone(ctr.record().Mounts)
	if n := len(mounts); n > maxMounts {
		return errs.New(errs.Invalid, "container has %d mounts, those of its image counted, more than %d", n, maxMounts)
	}
	for i := range mounts {
		if err := s.claimMount(ctx, ctr.record(), &mounts[i], undo); err != nil {
			return err
		}
	}
	ctr.change(func(rec *container.Record) { rec.Mounts = mounts })
	return nil
}

// claimMount does so for one mount.
func (s *Service) claimMount(ctx context.Context, rec *container.Record, mnt *container.Mount, undo *task.Undo) error {
	switch mnt.Type {
	case "volume":
		made, vol, err := s.volumeFor(ctx, *mnt)
		if err != nil {
			return err
		}
		if made {
			s.Events.Publish(events.Event{Type: "volume", Action: "create", ID: vol.Name, Attributes: map[string]string{"driver": vol.Driver}})
			undo.Push(func(ctx context.Context) error { return s.removeVolume(ctx, vol.Name, vol.Driver, true) })
		}
		if err := s.Volumes.Acquire(ctx, vol.Name, rec.ID); err != nil {
			return err
		}
		undo.Push(func(ctx context.Context) error { return s.Volumes.Release(ctx, vol.Name, rec.ID) })
		mnt.Name, mnt.Source, mnt.Driver = vol.Name, vol.Mountpoint, vol.Driver
	case "image":
		return s.claimImage(ctx, rec, mnt, undo)
	}
	return nil
}

// volumeFor finds the volume of a mount, or makes it. One that exists serves if nothing else was asked for.
func (s *Service) volumeFor(ctx context.Context, mnt container.Mount) (made bool, vol volume.Volume, err error) {
	opts := volume.CreateOptions{Name: mnt.Name, Driver: mnt.Driver, Labels: mnt.Request.Labels, Options: mnt.Request.DriverOptions}
	if mnt.Name != "" {
		vol, err = s.Volumes.Get(ctx, mnt.Name)
		if err == nil && len(opts.Options) == 0 && (opts.Driver == "" || opts.Driver == vol.Driver) {
			return false, vol, nil
		}
		if err == nil {
			vol, err = s.Volumes.Create(ctx, opts) // refuses another driver and other options
			return false, vol, err
		}
	}
	vol, err = s.Volumes.Create(ctx, opts) // also when the driver of one that exists is away: mounting it waits for the driver
	return vol.Made, vol, err
}
