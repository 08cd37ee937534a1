package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// Restore implements [Keeper]. The content is copied beside the volume's and takes its place in one step:
//
//	copy to _next, flushed ─▶ _next and _data change places ─▶ _next, which is the old content, goes
//	(dropped at start)         (dropped at start)
//
// The same with the image of a volume that is one.
func (s *LocalStore) Restore(ctx context.Context, name, snapshot string, idle func() error) (err error) {
	src, err := s.from(ctx, CopySource{Name: name, Snapshot: snapshot})
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, src.close()); err != nil {
			err = fmt.Errorf("restore volume %s: %w", name, err)
		}
	}()
	unlock, err := s.keeping.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	// Nobody mounts the volume while the gate is held: not those either who take no gate else.
	if err := src.release(); err != nil {
		return err
	}
	e, err := s.enter(ctx, name)
	if err != nil {
		return err
	}
	defer e.leave()
	s.mu.Lock()
	e.swapping = true
	rec := *e.rec
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		e.swapping = false
		s.mu.Unlock()
	}()
	switch {
	case rec.isMount() && !rec.Image:
		return errs.New(errs.NotImplemented, "its content is a mount (type %s), which cannot be exchanged: clone the snapshot", rec.Options["type"])
	case slices.ContainsFunc(rec.Mounters, func(user string) bool { return !strings.HasPrefix(user, workMark) }):
		return errs.New(errs.Conflict, "volume is in use - [%s]", strings.Join(rec.Mounters, ", "))
	}
	if idle != nil {
		if err := idle(); err != nil {
			return err
		}
	}
	return s.swap(ctx, &rec, src)
}

// release lets go of a volume's mount and keeps what is read, which lies elsewhere, and the volume.
func (src *source) release() error {
	// In the order of work and from: user, mount, directory, snapshot.
	unmount, dir := src.done[1], src.done[2]
	src.done = slices.Delete(src.done, 1, 3)
	return errors.Join(dir(), unmount())
}

func (s *LocalStore) swap(ctx context.Context, rec *stored, src *source) (err error) {
	next := filepath.Join(s.dir(rec.Name), nextDir)
	if err := s.recoverNext(rec); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.recoverNext(rec)) }()
	if err := aside(rec, next); err != nil {
		return err
	}
	image := filepath.Join(s.dir(rec.Name), nextImage)
	if rec.Image {
		size, err := sizeOf(rec.Options)
		if err != nil {
			return err
		}
		if err := makeImage(image, next, size); err != nil {
			return err
		}
		if err := mountImage(image, next); err != nil {
			return err
		}
	}
	if err := into(next, func(data *os.File) error { return copyVolume(ctx, src.dir, data) }); err != nil {
		return err
	}
	if !rec.Image {
		if err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, s.data(rec.Name), unix.RENAME_EXCHANGE); err != nil {
			return fmt.Errorf("exchange the content: %w", err)
		}
		return syncDir(s.dir(rec.Name))
	}
	if err := unmountAll(next); err != nil {
		return err
	}
	if err := os.Rename(image, filepath.Join(s.dir(rec.Name), imageFile)); err != nil {
		return err
	}
	return syncDir(s.dir(rec.Name))
}

// recoverNext drops what a restore left: content that did not get to its place, or that has left it.
func (s *LocalStore) recoverNext(rec *stored) error {
	next := filepath.Join(s.dir(rec.Name), nextDir)
	if err := unmountAll(next); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.dir(rec.Name), nextImage)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeTree(next)
}

// Rename implements [Keeper]. The steps, each finished at start when a crash came between:
//
//	record of the new name, which tells the old one ─▶ folder renamed ─▶ record of the old name deleted ─▶ record of the new name without the old one
func (s *LocalStore) Rename(ctx context.Context, name, to string) (vol Volume, err error) {
	if err := CheckName(to); err != nil {
		return vol, err
	}
	e, err := s.enter(ctx, name)
	if err != nil {
		return vol, err
	}
	defer e.leave()
	target := newEntry(nil)
	target.gate <- struct{}{}
	defer target.leave()
	s.mu.Lock()
	old, users := e.rec, slices.Sorted(maps.Keys(e.users))
	_, there := s.vols[to]
	if len(users) == 0 && !there {
		e.rec, s.vols[to] = nil, target
	}
	s.mu.Unlock()
	switch {
	case there:
		return vol, errs.New(errs.Conflict, "create %s: conflict: volume name must be unique", to)
	case len(users) > 0:
		return vol, errs.New(errs.Conflict, "rename %s: volume is in use - [%s]", name, strings.Join(users, ", "))
	}
	rec := *old
	rec.Name, rec.RenamedFrom, rec.Anonymous = to, name, false
	rec.Labels = maps.Clone(rec.Labels)
	delete(rec.Labels, AnonymousLabel)
	err = s.unmount(old)
	if err == nil {
		err = s.moveFolder(&rec)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		e.rec = old
		delete(s.vols, to)
		return vol, fmt.Errorf("rename volume %s to %s: %w", name, to, err)
	}
	target.rec = &rec
	delete(s.vols, name)
	s.counts.forget(name)
	return s.volume(&rec), nil
}

func (s *LocalStore) moveFolder(rec *stored) error {
	if err := s.records.Put(rec.Name, *rec, true); err != nil {
		return err
	}
	if err := os.Rename(s.dir(rec.RenamedFrom), s.dir(rec.Name)); err != nil {
		return errors.Join(err, s.records.Delete(rec.Name, true))
	}
	// From here on it has its new name, whatever fails: the next start finishes the rest.
	if err := s.finishRename(rec); err != nil {
		s.log.Error("finish the renaming of a volume at the next start", "volume", rec.Name, "from", rec.RenamedFrom, "err", err)
	}
	return nil
}

func (s *LocalStore) finishRename(rec *stored) error {
	if err := syncDir(s.root); err != nil {
		return err
	}
	if err := s.records.Delete(rec.RenamedFrom, true); err != nil {
		return err
	}
	rec.RenamedFrom = ""
	return s.records.Put(rec.Name, *rec, true)
}

// recoverRenames finishes renamings.
func (s *LocalStore) recoverRenames(recs map[string]stored) error {
	for name, rec := range recs {
		if rec.RenamedFrom == "" {
			continue
		}
		from := rec.RenamedFrom
		if _, err := os.Lstat(s.dir(name)); errors.Is(err, fs.ErrNotExist) {
			if err := unmountAll(s.data(from)); err != nil {
				return err
			}
			if err := os.Rename(s.dir(from), s.dir(name)); err != nil {
				return err
			}
		}
		if err := s.finishRename(&rec); err != nil {
			return err
		}
		delete(recs, from)
		recs[name] = rec
		s.log.Info("finished the renaming of a volume", "volume", name, "from", from)
	}
	return nil
}
