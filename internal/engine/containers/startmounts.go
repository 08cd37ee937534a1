package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/task"
	"corten.dev/corten/internal/volume"
)

func (s *Service) prepareMount(ctx context.Context, r *run, mnt container.Mount, undo *task.Undo) error {
	var err error
	switch mnt.Type {
	case "bind":
		err = s.prepareBind(r, mnt)
	case "volume":
		err = s.prepareVolume(ctx, r, mnt, undo)
	case "image":
		err = s.mountImage(ctx, r, mnt, undo)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	return s.settleOwners(ctx, r, mnt)
}

func (s *Service) prepareBind(r *run, mnt container.Mount) error {
	r.sources[mnt.Target] = mnt.Source
	source, err := os.Stat(mnt.Source)
	if err != nil && errors.Is(err, fs.ErrNotExist) && mnt.Request.CreateMountpoint {
		if err = os.MkdirAll(mnt.Source, 0o755); err == nil {
			source, err = os.Stat(mnt.Source)
		}
	}
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Invalid, `invalid mount config for type "bind": bind source path does not exist: %s`, mnt.Source)
	}
	if err != nil {
		return err
	}
	return checkBind(r, mnt, source)
}

func (s *Service) prepareVolume(ctx context.Context, r *run, mnt container.Mount, undo *task.Undo) error {
	dir, err := s.Volumes.Mount(ctx, mnt.Name, r.ctr.id)
	if err != nil {
		return err // it names the volume
	}
	undo.Push(func(ctx context.Context) error { return s.Volumes.Unmount(ctx, mnt.Name, r.ctr.id) })
	if dir != mnt.Source { // of a plugin's volume it is not known before
		r.ctr.change(func(rec *container.Record) {
			rec.Mounts = slices.Clone(rec.Mounts)
			for i := range rec.Mounts {
				if rec.Mounts[i].Target == mnt.Target {
					rec.Mounts[i].Source = dir
				}
			}
		})
	}
	if mnt.Request.Subpath != "" {
		return r.mountSubpath(mnt, dir)
	}
	r.sources[mnt.Target] = dir
	if mnt.Request.NoCopy {
		return nil
	}
	return s.fill(ctx, r, mnt)
}

// settleOwners sees to it that files belong to the right user on both sides, where that was asked for.
func (s *Service) settleOwners(ctx context.Context, r *run, mnt container.Mount) error {
	req := mnt.Request
	if req.IDMap == "" && !req.Chown {
		return nil
	}
	src := r.trees[r.sources[mnt.Target]]
	if src == nil {
		f, err := os.OpenFile(r.sources[mnt.Target], safefs.Handle, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		src = f
	}
	if req.Chown {
		if err := volume.Own(ctx, src, r.user.UID, r.user.GID); err != nil {
			return fmt.Errorf("give %s to user %d:%d: %w", mnt.Target, r.user.UID, r.user.GID, err)
		}
	}
	if req.IDMap == "" {
		return nil
	}
	m, err := hostspec.ParseIDMap(req.IDMap)
	if err != nil {
		return err
	}
	if req.IDMap == hostspec.AutoIDMap {
		fi, err := src.Stat()
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return errs.New(errs.NotImplemented, "the owner of %s cannot be told", src.Name())
		}
		m = hostspec.OwnerMapping(st.Uid, st.Gid, r.user.UID, r.user.GID)
	}
	r.idmaps[mnt.Target] = m
	return nil
}

// fill copies what the image has at the target into a volume that is new; the room knows whether it is.
func (s *Service) fill(ctx context.Context, r *run, mnt container.Mount) error {
	src, err := safefs.Open(r.mounted.Root, path.Join("/", mnt.Target), syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		if hostspec.Missing(err) || errors.Is(err, syscall.ENOTDIR) {
			return nil // the image has nothing there
		}
		return err
	}
	defer src.Close()
	if err := s.Volumes.Fill(ctx, mnt.Name, src); err != nil {
		return fmt.Errorf("fill volume %s from %s: %w", mnt.Name, mnt.Target, err)
	}
	return nil
}
