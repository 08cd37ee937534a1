package server

import (
	"os"

	wire "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
)

// mountBody is Docker's mount with what is ours besides: the ids that the mount maps ("auto", or "uids=FS-MOUNT-LENGTH;gids=…"), and whether its content is given to the
// container's user.
type mountBody struct {
	mount.Mount
	IDMap string `json:",omitempty"`
	Chown bool   `json:",omitempty"`
}

// toMounts converts HostConfig.Mounts and refuses options that belong to another type of mount.
func toMounts(list []mountBody, version int) ([]container.MountRequest, error) {
	var out []container.MountRequest
	for _, m := range list {
		if err := checkMount(m.Mount, version); err != nil {
			return nil, err
		}
		req := toMount(m.Mount, version)
		req.IDMap, req.Chown = m.IDMap, m.Chown
		out = append(out, req)
	}
	return out, nil
}

// checkMount checks what only a door can see: fields that are there although the type has no use for them, and what a version did not have yet.
func checkMount(m mount.Mount, version int) error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "invalid mount config for type %q: "+format, append([]any{string(m.Type)}, args...)...)
	}
	if m.Type == mount.TypeImage && version < 48 {
		return errs.New(errs.Invalid, `Mount type "Image" needs API v1.48 or newer`)
	}
	for _, o := range []struct {
		name  string
		given bool
		of    mount.Type
	}{
		{"BindOptions", m.BindOptions != nil, mount.TypeBind}, {"VolumeOptions", m.VolumeOptions != nil, mount.TypeVolume},
		{"ImageOptions", m.ImageOptions != nil, mount.TypeImage}, {"TmpfsOptions", m.TmpfsOptions != nil, mount.TypeTmpfs},
		{"ClusterOptions", m.ClusterOptions != nil, mount.TypeCluster},
	} {
		if o.given && o.of != m.Type && version >= 42 { // older versions looked away
			return bad("field %s must not be specified", o.name)
		}
	}
	switch {
	case m.VolumeOptions != nil && m.VolumeOptions.Subpath != "" && version < 45:
		return bad("VolumeOptions.Subpath needs API v1.45 or newer")
	case m.Type == mount.TypeBind && m.BindOptions != nil && version >= 44:
		b := m.BindOptions
		switch {
		case b.ReadOnlyNonRecursive && b.ReadOnlyForceRecursive:
			return bad("ReadOnlyNonRecursive and ReadOnlyForceRecursive must not be specified together")
		case (b.ReadOnlyNonRecursive || b.ReadOnlyForceRecursive) && !m.ReadOnly:
			return bad("ReadOnlyNonRecursive and ReadOnlyForceRecursive need a mount that is read-only")
		case b.NonRecursive && b.ReadOnlyForceRecursive:
			return bad("ReadOnlyForceRecursive and NonRecursive must not be specified together")
		case b.ReadOnlyForceRecursive && b.Propagation != "" && b.Propagation != mount.PropagationRPrivate:
			return bad("ReadOnlyForceRecursive needs the propagation rprivate")
		}
	case m.Type == mount.TypeBind && m.BindOptions != nil && m.BindOptions.ReadOnlyForceRecursive && version < 44:
		return errs.New(errs.Invalid, "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
	case m.TmpfsOptions != nil && m.TmpfsOptions.SizeBytes < 0:
		return bad("size of the tmpfs must not be negative")
	}
	return nil
}

func toMount(m mount.Mount, version int) container.MountRequest {
	req := container.MountRequest{
		Type: string(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, Consistency: string(m.Consistency),
	}
	if b := m.BindOptions; b != nil && m.Type == mount.TypeBind {
		req.Propagation = string(b.Propagation)
		req.NonRecursive = b.NonRecursive && version >= 40
		req.CreateMountpoint = b.CreateMountpoint && version >= 42
		req.ReadOnlyNonRecursive, req.ReadOnlyForceRecursive = b.ReadOnlyNonRecursive, b.ReadOnlyForceRecursive
	}
	// Before 1.44 a read-only bind did not reach into the mounts below it.
	if m.Type == mount.TypeBind && version < 44 {
		req.ReadOnlyNonRecursive = true
	}
	if v := m.VolumeOptions; v != nil && m.Type == mount.TypeVolume {
		req.NoCopy, req.Labels, req.Subpath = v.NoCopy, v.Labels, v.Subpath
		if v.DriverConfig != nil {
			req.Driver, req.DriverOptions = v.DriverConfig.Name, v.DriverConfig.Options
		}
	}
	if i := m.ImageOptions; i != nil && m.Type == mount.TypeImage {
		req.Subpath = i.Subpath
	}
	if t := m.TmpfsOptions; t != nil && m.Type == mount.TypeTmpfs {
		req.TmpfsSize, req.TmpfsMode = t.SizeBytes, uint32(t.Mode)
		if version >= 46 {
			req.TmpfsOptions = t.Options
		}
	}
	return req
}

// fromMounts is the way back, for inspect.
func fromMounts(list []container.MountRequest) []mountBody {
	var out []mountBody
	for _, r := range list {
		m := mount.Mount{Type: mount.Type(r.Type), Source: r.Source, Target: r.Target, ReadOnly: r.ReadOnly, Consistency: mount.Consistency(r.Consistency)}
		switch m.Type {
		case mount.TypeBind:
			b := mount.BindOptions{
				Propagation: mount.Propagation(r.Propagation), NonRecursive: r.NonRecursive, CreateMountpoint: r.CreateMountpoint,
				ReadOnlyNonRecursive: r.ReadOnlyNonRecursive, ReadOnlyForceRecursive: r.ReadOnlyForceRecursive,
			}
			if b != (mount.BindOptions{}) {
				m.BindOptions = &b
			}
		case mount.TypeVolume:
			if r.NoCopy || len(r.Labels) > 0 || r.Subpath != "" || r.Driver != "" || len(r.DriverOptions) > 0 {
				m.VolumeOptions = &mount.VolumeOptions{NoCopy: r.NoCopy, Labels: r.Labels, Subpath: r.Subpath}
			}
			if r.Driver != "" || len(r.DriverOptions) > 0 {
				m.VolumeOptions.DriverConfig = &mount.Driver{Name: r.Driver, Options: r.DriverOptions}
			}
		case mount.TypeImage:
			if r.Subpath != "" {
				m.ImageOptions = &mount.ImageOptions{Subpath: r.Subpath}
			}
		case mount.TypeTmpfs:
			if r.TmpfsSize != 0 || r.TmpfsMode != 0 || len(r.TmpfsOptions) > 0 {
				m.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: r.TmpfsSize, Mode: os.FileMode(r.TmpfsMode), Options: r.TmpfsOptions}
			}
		}
		out = append(out, mountBody{Mount: m, IDMap: r.IDMap, Chown: r.Chown})
	}
	return out
}

// mountPoints are the resolved mounts, as ps and inspect list them.
func mountPoints(list []container.Mount) []wire.MountPoint {
	out := make([]wire.MountPoint, 0, len(list))
	for _, m := range list {
		out = append(out, wire.MountPoint{
			Type: mount.Type(m.Type), Name: m.Name, Source: m.Source, Destination: m.Target,
			Driver: m.Driver, Mode: m.Mode, RW: m.RW, Propagation: mount.Propagation(m.Propagation),
		})
	}
	return out
}
