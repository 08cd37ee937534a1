package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

func (s *LocalStore) snapshotPath(name, snapshot string) string {
	return filepath.Join(s.dir(name), snapshotsDir, snapshot)
}

// snapshot is the place of a snapshot in the record, or -1.
func (rec *stored) snapshot(name string) int {
	return slices.IndexFunc(rec.Snapshots, func(sn Snapshot) bool { return sn.Name == name })
}

// Snapshot implements [Keeper]. The copy is complete and flushed when the record tells of it; one that no record tells of is dropped at start.
func (s *LocalStore) Snapshot(ctx context.Context, what CopySource, name string) (Snapshot, error) {
	snap := Snapshot{Name: name, Created: time.Now().UTC()}
	if snap.Name == "" {
		snap.Name = madeUpName(snap.Created)
	}
	if err := CheckName(snap.Name); err != nil {
		return snap, errs.New(errs.Invalid, "invalid name of a snapshot: %w", err)
	}
	src, err := s.from(ctx, what)
	if err != nil {
		return snap, err
	}
	err = s.takeSnapshot(ctx, what, src, snap)
	if err = errors.Join(err, src.close()); err != nil {
		return snap, fmt.Errorf("snapshot %s of volume %s: %w", snap.Name, what.Name, err)
	}
	return snap, nil
}

func (s *LocalStore) takeSnapshot(ctx context.Context, what CopySource, src *source, snap Snapshot) error {
	unlock, err := s.keeping.Lock(ctx, what.Name)
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	taken := s.vols[what.Name].rec.snapshot(snap.Name) >= 0
	s.mu.Unlock()
	if taken {
		return errs.New(errs.Conflict, "there is one of that name")
	}
	at := s.snapshotPath(what.Name, snap.Name)
	if err := s.copyAside(ctx, what, src, at); err != nil {
		return err
	}
	err = syncDir(filepath.Dir(at))
	if err == nil {
		err = s.change(ctx, what.Name, func(rec *stored) { rec.Snapshots = append(slices.Clone(rec.Snapshots), snap) })
	}
	if err != nil {
		err = errors.Join(err, removeTree(at))
	}
	return err
}

// copyAside copies a source to a new directory below the volume's folder; on an error nothing is left of it.
func (s *LocalStore) copyAside(ctx context.Context, what CopySource, src *source, at string) error {
	if err := os.Mkdir(filepath.Dir(at), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := removeTree(at); err != nil {
		return err
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	to, err := openDir(unix.AT_FDCWD, at, 0)
	if err == nil {
		err = s.still(ctx, what, src, func() error { return copyVolume(ctx, src.dir, to) })
		err = errors.Join(err, to.Close())
	}
	if err != nil {
		err = errors.Join(err, removeTree(at))
	}
	return err
}

// change writes a volume's record anew, on disk first.
func (s *LocalStore) change(ctx context.Context, name string, fn func(rec *stored)) error {
	e, err := s.enter(ctx, name)
	if err != nil {
		return err
	}
	defer e.leave()
	s.mu.Lock()
	rec := *e.rec
	s.mu.Unlock()
	fn(&rec)
	return s.save(e, &rec, true)
}

// Snapshots implements [Keeper].
func (s *LocalStore) Snapshots(_ context.Context, name string) ([]Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.vols[name]
	if e == nil || e.rec == nil {
		return nil, notFound(name)
	}
	return slices.Clone(e.rec.Snapshots), nil
}

// RemoveSnapshot implements [Keeper]. The record forgets it first; what is left of it after a crash is dropped at start.
func (s *LocalStore) RemoveSnapshot(ctx context.Context, name, snapshot string) (err error) {
	src, err := s.from(ctx, CopySource{Name: name, Snapshot: snapshot})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	unlock, err := s.keeping.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	err = s.change(ctx, name, func(rec *stored) {
		rec.Snapshots = slices.DeleteFunc(slices.Clone(rec.Snapshots), func(sn Snapshot) bool { return sn.Name == snapshot })
	})
	if err != nil {
		return err
	}
	return removeTree(s.snapshotPath(name, snapshot))
}

// recoverSnapshots drops copies that no record tells of, and forgets those that are gone.
func (s *LocalStore) recoverSnapshots(rec *stored) error {
	dir := filepath.Join(s.dir(rec.Name), snapshotsDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if len(rec.Snapshots) > 0 {
			s.log.Error("the snapshots of a volume are missing", "volume", rec.Name)
			rec.Snapshots = nil
		}
		return nil
	}
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range entries {
		if rec.snapshot(e.Name()) >= 0 {
			there[e.Name()] = true
			continue
		}
		s.log.Info("dropped half a snapshot of a volume", "volume", rec.Name, "snapshot", e.Name())
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	rec.Snapshots = slices.DeleteFunc(slices.Clone(rec.Snapshots), func(sn Snapshot) bool { return !there[sn.Name] })
	return nil
}
