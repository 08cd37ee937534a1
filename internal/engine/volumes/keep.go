package volumes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/volume"
)

// Containers knows who runs with a volume, and holds them.
type Containers interface {
	// RunningWith names the containers that run, or are about to, with a volume.
	RunningWith(volume string) []string
	// HoldWriters freezes the running containers that may write to a volume, until resume is called. One that ends meanwhile is no error.
	HoldWriters(ctx context.Context, volume string) (resume func(), err error)
}

// keeper is the store's part that copies volumes, and the source for it. Volumes of plugins are not ours to copy.
func (s *Service) keeper(ctx context.Context, from Source) (volume.Keeper, volume.CopySource, error) {
	src := volume.CopySource{Name: from.Volume, Snapshot: from.Snapshot}
	vol, err := s.Store.Get(ctx, from.Volume)
	if err != nil {
		return nil, src, err
	}
	keep, ok := volume.LocalOf(s.Store).(volume.Keeper)
	if !ok || vol.Driver != volume.LocalDriver {
		return nil, src, errs.New(errs.NotImplemented, "volume %s is kept by the driver %s: only local volumes are copied", vol.Name, vol.Driver)
	}
	if !from.Live && from.Snapshot == "" && len(s.Containers.RunningWith(vol.Name)) > 0 {
		src.Quiesce = func(ctx context.Context) (func(), error) { return s.Containers.HoldWriters(ctx, vol.Name) }
	}
	return keep, src, nil
}

// free tells whether a name can be given to a volume, also among those that plugins keep. The local store has the last word about its own.
func (s *Service) free(ctx context.Context, opts *volume.CreateOptions) error {
	if opts.Driver != "" && opts.Driver != volume.LocalDriver {
		return errs.New(errs.NotImplemented, "create %s: only local volumes are made of a copy", opts.Name)
	}
	opts.Driver = volume.LocalDriver
	if opts.Name == "" {
		return nil
	}
	vol, err := s.Store.Get(ctx, opts.Name)
	switch {
	case errors.Is(err, errs.NotFound):
		return nil
	case err != nil:
		return err
	}
	return errs.New(errs.Conflict, "create %s: conflict: volume name must be unique: driver %s has one of that name", opts.Name, vol.Driver)
}

// Snapshot implements [API].
func (s *Service) Snapshot(ctx context.Context, from Source, name string) (volume.Snapshot, error) {
	keep, src, err := s.keeper(ctx, from)
	if err != nil {
		return volume.Snapshot{}, err
	}
	snap, err := keep.Snapshot(ctx, src, name)
	if err == nil {
		s.emit("snapshot", from.Volume, volume.LocalDriver)
	}
	return snap, err
}

// Snapshots implements [API].
func (s *Service) Snapshots(ctx context.Context, name string) ([]volume.Snapshot, error) {
	keep, _, err := s.keeper(ctx, Source{Volume: name})
	if err != nil {
		return nil, err
	}
	return keep.Snapshots(ctx, name)
}

// RemoveSnapshot implements [API].
func (s *Service) RemoveSnapshot(ctx context.Context, name, snapshot string) error {
	keep, _, err := s.keeper(ctx, Source{Volume: name})
	if err != nil {
		return err
	}
	return keep.RemoveSnapshot(ctx, name, snapshot)
}

// Restore implements [API].
func (s *Service) Restore(ctx context.Context, name, snapshot string) error {
	keep, _, err := s.keeper(ctx, Source{Volume: name})
	if err != nil {
		return err
	}
	err = keep.Restore(ctx, name, snapshot, func() error {
		if ids := s.Containers.RunningWith(name); len(ids) > 0 {
			return errs.New(errs.Conflict, "volume is in use by running containers - [%s]: stop them first", strings.Join(ids, ", "))
		}
		return nil
	})
	if err == nil {
		s.emit("restore", name, volume.LocalDriver)
	}
	return err
}

// Clone implements [API].
func (s *Service) Clone(ctx context.Context, from Source, opts volume.CreateOptions) (volume.Volume, error) {
	keep, src, err := s.keeper(ctx, from)
	if err == nil {
		err = s.free(ctx, &opts)
	}
	if err != nil {
		return volume.Volume{}, err
	}
	vol, err := keep.Clone(ctx, src, opts)
	if err != nil {
		return vol, fmt.Errorf("clone volume %s: %w", from.Volume, err)
	}
	s.emit("create", vol.Name, vol.Driver)
	return vol, nil
}

// Rename implements [API].
func (s *Service) Rename(ctx context.Context, name, to string) (volume.Volume, error) {
	keep, _, err := s.keeper(ctx, Source{Volume: name})
	if err == nil {
		err = s.free(ctx, &volume.CreateOptions{Name: to})
	}
	if err != nil {
		return volume.Volume{}, err
	}
	vol, err := keep.Rename(ctx, name, to)
	if err == nil {
		s.emit("rename", vol.Name, vol.Driver)
	}
	return vol, err
}

// Export implements [API].
func (s *Service) Export(ctx context.Context, from Source, w io.Writer) error {
	keep, src, err := s.keeper(ctx, from)
	if err != nil {
		return err
	}
	return keep.Export(ctx, src, w)
}

// Import implements [API].
func (s *Service) Import(ctx context.Context, opts volume.CreateOptions, r io.Reader) (volume.Volume, error) {
	keep, ok := volume.LocalOf(s.Store).(volume.Keeper)
	if !ok {
		return volume.Volume{}, errs.New(errs.NotImplemented, "this store imports no volumes")
	}
	if err := s.free(ctx, &opts); err != nil {
		return volume.Volume{}, err
	}
	vol, err := keep.Import(ctx, opts, r)
	if err == nil {
		s.emit("create", vol.Name, vol.Driver)
	}
	return vol, err
}
