package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Fill copies an image's content into a new and empty volume.
//
// Nothing that a container wrote is ever lost by it, and no half of it is ever seen as whole after a crash:
//
//	copy to _fill, flushed ─▶ rename to _filled ─▶ move entry by entry into _data, never over a taken name ─▶ record "filled", flushed
//	(dropped at start)         (moved in at start)
func (s *LocalStore) Fill(ctx context.Context, name string, src *os.File) error {
	e, err := s.enter(ctx, name)
	if err != nil {
		return err
	}
	defer e.leave()
	s.mu.Lock()
	rec := *e.rec
	s.mu.Unlock()
	if rec.Filled {
		return nil
	}
	if rec.isMount() {
		err = s.fillMounted(ctx, e, &rec, src)
	} else {
		err = s.fillPlain(ctx, e, &rec, src)
	}
	if err != nil {
		return fmt.Errorf("fill volume %s: %w", name, err)
	}
	return nil
}

// target opens source and destination; fill tells whether anything is to be copied. An empty source gives the volume its owner and mode only.
func target(src *os.File, data string) (from, to *os.File, fill bool, err error) {
	if from, err = openDir(int(src.Fd()), ".", 0); err != nil { // src may be a mere O_PATH
		return nil, nil, false, err
	}
	if to, err = openDir(unix.AT_FDCWD, data, 0); err != nil {
		return nil, nil, false, errors.Join(err, from.Close())
	}
	var taken, nothing bool
	if taken, err = isEmpty(to); err == nil && taken {
		if nothing, err = isEmpty(from); err == nil && nothing {
			err = copyAttributes(from, to)
		}
		fill = !nothing
	}
	if err != nil || !fill {
		err = errors.Join(err, from.Close(), to.Close())
	}
	return from, to, fill && err == nil, err
}

func (s *LocalStore) fillPlain(ctx context.Context, e *entry, rec *stored, src *os.File) error {
	// An earlier attempt may have got to the moving, and failed there.
	if _, err := os.Lstat(filepath.Join(s.dir(rec.Name), filledDir)); err == nil {
		if err := s.recoverFill(rec); err != nil {
			return err
		}
		s.adopt(e, rec)
		return nil
	}
	from, to, fill, err := target(src, s.data(rec.Name))
	if err != nil || !fill {
		return err
	}
	defer from.Close() //nolint:errcheck // read only
	defer to.Close()   //nolint:errcheck // a directory
	aside := filepath.Join(s.dir(rec.Name), fillDir)
	dir, err := gather(ctx, rec, from, aside)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // a directory
	done := filepath.Join(s.dir(rec.Name), filledDir)
	if err := os.Rename(aside, done); err != nil {
		return errors.Join(err, removeTree(aside))
	}
	if err := syncDir(s.dir(rec.Name)); err != nil {
		return err
	}
	if err := s.moveIn(rec, dir, done); err != nil {
		return err
	}
	s.adopt(e, rec)
	return nil
}

// adopt makes a record that is on disk already the entry's.
func (s *LocalStore) adopt(e *entry, rec *stored) {
	s.mu.Lock()
	e.rec = rec
	s.mu.Unlock()
}

// fillMounted fills a volume whose file system is mounted or gets mounted for the while. It is filled whenever it is empty, since a tmpfs is new every time; only an image knows that it was filled.
func (s *LocalStore) fillMounted(ctx context.Context, e *entry, rec *stored, src *os.File) (err error) {
	mounted, err := isMountpoint(s.data(rec.Name))
	if err != nil {
		return err
	}
	if !mounted {
		if err := s.mount(ctx, rec); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.unmount(rec)) }()
	}
	if err := FillDirectory(ctx, src, s.data(rec.Name)); err != nil || !rec.Image {
		return err
	}
	to, err := openDir(unix.AT_FDCWD, s.data(rec.Name), 0)
	if err != nil {
		return err
	}
	empty, err := isEmpty(to)
	if err = errors.Join(err, to.Close()); err != nil || empty {
		return err
	}
	rec.Filled = true
	return s.save(e, rec, true)
}

// FillDirectory copies the tree below src into a directory that is empty, on whatever file system it is; one that is not empty stays as it is. It is what Fill does, with both stages
// inside of the directory: what an earlier attempt did not move to the end is moved first.
func FillDirectory(ctx context.Context, src *os.File, data string) error {
	aside, done := filepath.Join(data, inMountFill), filepath.Join(data, inMountFilled)
	dir, err := openDir(unix.AT_FDCWD, done, 0)
	if errors.Is(err, os.ErrNotExist) {
		from, to, fill, err := target(src, data)
		if err != nil || !fill {
			return errors.Join(err, removeTree(aside))
		}
		dir, err = gather(ctx, &stored{}, from, aside)
		if err = errors.Join(err, from.Close(), to.Close()); err != nil {
			return err
		}
		if err := os.Rename(aside, done); err != nil {
			return errors.Join(err, dir.Close(), removeTree(aside))
		}
		if err := syncDir(data); err != nil {
			return errors.Join(err, dir.Close())
		}
	} else if err != nil {
		return err
	}
	defer dir.Close()  //nolint:errcheck // a directory
	var st unix.Stat_t // as it was before moving changes its times
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: done, Err: err}
	}
	to, err := openDir(unix.AT_FDCWD, data, 0)
	if err != nil {
		return err
	}
	defer to.Close() //nolint:errcheck // a directory
	if err := moveEntries(dir, to); err != nil {
		return err
	}
	if err := setAttributes(dir, to, &st); err != nil {
		return err
	}
	return removeTree(done)
}

// gather copies the tree to a new directory. On an error nothing is left of it.
func gather(ctx context.Context, rec *stored, from *os.File, at string) (*os.File, error) {
	if err := removeTree(at); err != nil {
		return nil, err
	}
	if err := aside(rec, at); err != nil {
		return nil, err
	}
	dir, err := openDir(unix.AT_FDCWD, at, 0)
	if err == nil {
		if err = copyTree(ctx, from, dir); err != nil {
			err = errors.Join(err, dir.Close())
		}
	}
	if err != nil {
		return nil, errors.Join(err, removeTree(at))
	}
	return dir, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // a file system without flushes of folders
	}
	return errors.Join(err, d.Close())
}
