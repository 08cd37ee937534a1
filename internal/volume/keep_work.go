package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
)

// workMark begins the names of users that are no container but a copy under way. They are not listed; they keep the volume from being removed and its file system mounted.
const workMark = "@"

// Requests to a file system, of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// source is what a copy reads, open while it does.
type source struct {
	dir  *os.File
	done []func() error // backwards
}

func (src *source) close() error {
	var all []error
	for i := len(src.done) - 1; i >= 0; i-- {
		all = append(all, src.done[i]())
	}
	src.done = nil
	return errors.Join(all...)
}

// work begins a copy that reads a volume: until the source is closed the volume stays, and its file system is mounted.
func (s *LocalStore) work(ctx context.Context, name string) (src *source, err error) {
	user := workMark + strconv.FormatUint(s.works.Add(1), 10)
	src = &source{}
	defer func() {
		if err != nil {
			err = errors.Join(err, src.close())
			src = nil
		}
	}()
	if err := s.Acquire(ctx, name, user); err != nil {
		return src, err
	}
	clean := context.WithoutCancel(ctx)
	src.done = append(src.done, func() error { return s.Release(clean, name, user) })
	path, err := s.Mount(ctx, name, user)
	if err != nil {
		return src, err
	}
	src.done = append(src.done, func() error { return s.Unmount(clean, name, user) })
	return src, src.open(path)
}

func (src *source) open(path string) (err error) {
	if src.dir, err = openDir(unix.AT_FDCWD, path, 0); err == nil {
		src.done = append(src.done, src.dir.Close)
	}
	return err
}

// again opens the directory anew, once nobody writes: of one that was open before, btrfs does not list what came since.
func (src *source) again() error {
	dir, err := safefs.Reopen(src.dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	src.dir = dir
	src.done = append(src.done, dir.Close)
	return nil
}

// from opens what a copy is made from: a snapshot, or what the volume holds now.
func (s *LocalStore) from(ctx context.Context, what CopySource) (*source, error) {
	src, err := s.work(ctx, what.Name)
	if err != nil || what.Snapshot == "" {
		return src, err
	}
	// Who reads a snapshot has it alone, so that it is not removed meanwhile.
	unlock, err := s.keeping.Lock(ctx, what.Name+"/"+what.Snapshot)
	if err != nil {
		return nil, errors.Join(err, src.close())
	}
	src.done = append(src.done, func() error { unlock(); return nil })
	s.mu.Lock()
	rec := s.vols[what.Name].rec
	s.mu.Unlock()
	err = errs.New(errs.NotFound, "get %s: volume %s has no such snapshot", what.Snapshot, what.Name)
	if rec != nil && rec.snapshot(what.Snapshot) >= 0 {
		err = src.open(s.snapshotPath(what.Name, what.Snapshot))
	}
	if err != nil {
		return nil, errors.Join(err, src.close())
	}
	return src, nil
}

// still copies while nobody writes: a file system of the volume's own is frozen, of another the writers are held.
func (s *LocalStore) still(ctx context.Context, what CopySource, src *source, copy func() error) (err error) {
	if what.Snapshot != "" || what.Quiesce == nil {
		return copy()
	}
	thaw, err := s.freeze(ctx, what.Name, src.dir)
	if err != nil {
		return err
	}
	if thaw != nil {
		defer func() { err = errors.Join(err, thaw()) }()
	} else {
		resume, err := what.Quiesce(ctx)
		if err != nil {
			return err
		}
		defer resume()
	}
	if err := src.again(); err != nil {
		return err
	}
	return copy()
}

// freeze freezes the file system of a volume that is its own. It gives nothing where there is none, or where it cannot be frozen. The record tells of it before, so that an engine that follows on one
// that was killed lets the file system go on.
func (s *LocalStore) freeze(ctx context.Context, name string, dir *os.File) (thaw func() error, err error) {
	e, err := s.enter(ctx, name)
	if err != nil {
		return nil, err
	}
	defer e.leave()
	s.mu.Lock()
	rec := *e.rec
	s.mu.Unlock()
	var own, home unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &own); err != nil {
		return nil, err
	}
	if err := unix.Stat(s.root, &home); err != nil {
		return nil, err
	}
	mo, err := parseOptions(rec.Options)
	if err != nil || !rec.isMount() || mo.flags&unix.MS_BIND != 0 || own.Dev == home.Dev {
		return nil, err
	}
	rec.Frozen, rec.Boot = true, s.boot
	if err := s.save(e, &rec, false); err != nil {
		return nil, err
	}
	melt := rec
	melt.Frozen = false
	if err := ioctl(dir, fiFreeze); err != nil { // tmpfs, nfs; or somebody else froze it
		return nil, s.save(e, &melt, false)
	}
	return func() error {
		if err := ioctl(dir, fiThaw); err != nil {
			return fmt.Errorf("let the file system of volume %s go on: %w", name, err)
		}
		e, err := s.enter(context.WithoutCancel(ctx), name)
		if err != nil {
			return err
		}
		defer e.leave()
		s.mu.Lock()
		rec := *e.rec
		s.mu.Unlock()
		rec.Frozen = false
		return s.save(e, &rec, false)
	}, nil
}

func ioctl(f *os.File, req uint) error {
	return retry(func() error { return unix.IoctlSetInt(int(f.Fd()), req, 0) })
}

// recoverWork undoes what copies of a killed engine left in a volume: a frozen file system, mounts for nobody, half a copy.
func (s *LocalStore) recoverWork(rec *stored) error {
	if rec.Frozen {
		rec.Frozen = false
		dir, err := openDir(unix.AT_FDCWD, s.data(rec.Name), 0)
		if err != nil {
			return err
		}
		if err := ioctl(dir, fiThaw); err == nil {
			s.log.Warn("let the file system of a volume go on that a killed engine had frozen", "volume", rec.Name)
		}
		if err := dir.Close(); err != nil {
			return err
		}
	}
	var left []string
	for _, user := range rec.Mounters {
		if !strings.HasPrefix(user, workMark) {
			left = append(left, user)
		}
	}
	if len(left) < len(rec.Mounters) {
		if rec.Mounters = left; len(left) == 0 {
			if err := s.unmount(rec); err != nil {
				return err
			}
		}
	}
	if err := s.recoverNext(rec); err != nil {
		return err
	}
	return s.recoverSnapshots(rec)
}

// madeUpName is the name of a snapshot that nobody named.
func madeUpName(now time.Time) string { return now.UTC().Format("20060102-150405.000") }

// makingName is the folder of a volume that is made with content.
func (s *LocalStore) makingName(name string) string {
	return filepath.Join(s.root, makingDir, fmt.Sprintf("%s@%d", name, time.Now().UnixNano()))
}
