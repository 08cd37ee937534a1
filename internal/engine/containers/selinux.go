package containers

import (
	"cmp"
	"fmt"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
)

// takeLabels gives a new container its SELinux labels. They are its own for good: files that it wrote carry them. One that joins another's processes or memory is labelled as that one.
func (s *Service) takeLabels(rec *container.Record) (err error) {
	shared := ""
	for _, ref := range joined(rec.Host.IpcMode, rec.Host.PidMode) {
		other, err := s.find(ref)
		if err != nil {
			return err
		}
		shared = cmp.Or(shared, other.record().ProcessLabel)
	}
	rec.ProcessLabel, rec.MountLabel, err = s.maker.Security.Labels(&rec.Host, shared)
	return err
}

// relabel labels what a run mounts of the host, where the host has SELinux: what was asked for, for this container or for all; the files that the engine wrote for it; and volumes, which all containers may share.
func (r *run) relabel() error {
	file := r.rec.MountLabel
	if file == "" {
		return nil
	}
	for _, mnt := range r.rec.Mounts {
		at := r.sources[mnt.Target]
		if tree := r.trees[at]; tree != nil {
			at = procPath(tree)
		}
		var err error
		switch {
		case mnt.Type != "bind" && mnt.Type != "volume":
		case mnt.Relabel != "":
			err = hostspec.Relabel(file, at, mnt.Relabel == "z")
		case mnt.Type == "volume":
			err = hostspec.Share(file, at)
		}
		if err != nil {
			return fmt.Errorf("relabel %s: %w", mnt.Target, err)
		}
	}
	own := []string{r.files.ResolvConf, r.files.Hosts, r.files.Hostname, r.init}
	if r.rec.Host.IpcMode != "host" {
		own = append(own, r.shm)
	}
	for _, path := range own {
		if path == "" {
			continue
		}
		if err := hostspec.Share(file, path); err != nil {
			return fmt.Errorf("label %s: %w", path, err)
		}
	}
	return nil
}
