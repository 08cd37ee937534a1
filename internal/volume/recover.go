package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names inside the store's folder. None of the first three can be a volume's, since those begin with a letter or digit.
const (
	recordsDir = ".records"
	trashDir   = ".trash"
	makingDir  = ".making"
	dataDir    = "_data"
	fillDir    = "_fill"
	filledDir  = "_filled"
	// imageFile is the file system of a volume with a size, where there are no quotas; newImage the same before there is a record of it.
	imageFile = "_image"
	newImage  = "_image@new"
	// snapshotsDir holds a directory for each snapshot.
	snapshotsDir = "_snapshots"
	// nextDir and nextImage are content that is to take the place of a volume's, or did.
	nextDir   = "_next"
	nextImage = "_image@next"
	// inMountFill is where content gathers inside a mounted volume, to be on its file system.
	inMountFill = ".corten-fill"
	// inMountFilled is the same, complete.
	inMountFilled = ".corten-filled"
)

func (s *LocalStore) trashName(name string) string {
	return filepath.Join(s.root, trashDir, fmt.Sprintf("%s@%d", name, time.Now().UnixNano()))
}

// recover brings folders and records together at start.
func (s *LocalStore) recover() error {
	recs, err := s.records.All()
	if err != nil {
		return err
	}
	if err := s.recoverTrash(recs); err != nil {
		return err
	}
	if err := s.recoverRenames(recs); err != nil {
		return err
	}
	if err := s.recoverMaking(recs); err != nil {
		return err
	}
	if err := s.recoverFolders(recs); err != nil {
		return err
	}
	for name, rec := range recs {
		if CheckName(name) != nil || rec.Name != name {
			s.log.Error("a volume's record has a wrong name and is ignored", "record", name, "name", rec.Name)
			continue
		}
		if rec.Boot != s.boot {
			rec.Mounters, rec.Boot = nil, ""
		}
		if _, err := isMountpoint(s.data(name)); errors.Is(err, fs.ErrNotExist) { // not Lstat, for which a mounted file system would have to answer
			s.log.Error("a volume's directory is missing and is made anew, empty", "volume", name)
			if err := os.MkdirAll(s.data(name), 0o755); err != nil {
				return err
			}
			rec.Filled = false
		} else if err != nil {
			return err
		}
		if err := s.recoverWork(&rec); err != nil {
			s.log.Error("what a copy of a volume left could not be cleared away", "volume", name, "err", err)
		}
		if err := settleImage(&rec, s.dir(name)); err != nil {
			s.log.Error("the image of a volume is missing: it cannot be used", "volume", name, "err", err)
		}
		if err := s.recoverFill(&rec); err != nil {
			// One volume's trouble keeps no other from use.
			s.log.Error("an interrupted fill of a volume could not be finished", "volume", name, "err", err)
		}
		s.vols[name] = newEntry(&rec)
	}
	return nil
}

// recoverTrash finishes removals.
func (s *LocalStore) recoverTrash(recs map[string]stored) error {
	entries, err := os.ReadDir(filepath.Join(s.root, trashDir))
	if err != nil {
		return err
	}
	for _, te := range entries {
		name, _, _ := strings.Cut(te.Name(), "@")
		if _, ok := recs[name]; ok {
			if _, err := os.Lstat(s.dir(name)); errors.Is(err, fs.ErrNotExist) {
				if err := s.records.Delete(name, true); err != nil {
					return err
				}
				delete(recs, name)
				s.log.Info("finished the removal of a volume", "volume", name)
			}
		}
		if err := removeTree(filepath.Join(s.root, trashDir, te.Name())); err != nil {
			s.log.Warn("content of a removed volume is left over", "volume", name, "err", err)
		}
	}
	return nil
}

// recoverFolders looks for folders without a record: an empty one is what an interrupted Create left; one with content is kept and gets a record, because nothing
// that someone wrote is thrown away.
func (s *LocalStore) recoverFolders(recs map[string]stored) error {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return err
	}
	for _, fe := range entries {
		name := fe.Name()
		if _, ok := recs[name]; ok || !fe.IsDir() || CheckName(name) != nil {
			continue
		}
		if err := s.adoptImage(name, recs); err != nil {
			return err
		}
		if _, ok := recs[name]; ok {
			continue
		}
		err := os.Remove(s.data(name)) // removes it only if it is empty
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(s.dir(name)); err == nil {
				s.log.Info("dropped the empty folder of a volume that was not made to the end", "volume", name)
				continue
			}
		}
		if _, err := os.Lstat(s.data(name)); err != nil {
			s.log.Warn("a folder among the volumes is none and is left alone", "path", s.dir(name))
			continue
		}
		info, err := fe.Info()
		if err != nil {
			return err
		}
		rec := stored{Name: name, Created: info.ModTime().UTC(), Filled: true}
		if err := s.records.Put(name, rec, true); err != nil {
			return err
		}
		recs[name] = rec
		s.log.Warn("a volume without a record has content and is kept, with its labels and options lost", "volume", name)
	}
	return nil
}

// adoptImage keeps a volume whose content is an image and whose record is lost. An image that never got its name goes.
func (s *LocalStore) adoptImage(name string, recs map[string]stored) error {
	fi, err := os.Lstat(filepath.Join(s.dir(name), imageFile))
	if errors.Is(err, fs.ErrNotExist) {
		if err := unmountAll(s.data(name)); err != nil { // it was tried
			s.log.Warn("what is mounted on a volume that was not made to the end stays", "volume", name, "err", err)
		}
		if err := os.Remove(filepath.Join(s.dir(name), newImage)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	rec := stored{Name: name, Created: fi.ModTime().UTC(), Filled: true, Image: true, Options: map[string]string{"size": strconv.FormatInt(fi.Size(), 10)}}
	if err := s.records.Put(name, rec, true); err != nil {
		return err
	}
	recs[name] = rec
	s.log.Warn("a volume without a record has an image and is kept, with its labels lost", "volume", name)
	return nil
}

// recoverFill drops content that was not copied to the end, and moves in what was.
func (s *LocalStore) recoverFill(rec *stored) error {
	if err := removeTree(filepath.Join(s.dir(rec.Name), fillDir)); err != nil {
		return err
	}
	from := filepath.Join(s.dir(rec.Name), filledDir)
	dir, err := openDir(unix.AT_FDCWD, from, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = s.moveIn(rec, dir, from)
	return errors.Join(err, dir.Close())
}

// moveIn moves a complete tree's entries into the volume and notes that it is filled. It may be repeated.
func (s *LocalStore) moveIn(rec *stored, from *os.File, path string) error {
	data, err := openDir(unix.AT_FDCWD, s.data(rec.Name), 0)
	if err != nil {
		return err
	}
	defer data.Close() //nolint:errcheck // a directory
	var st unix.Stat_t // as it was before moving changes its times
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	if err := moveEntries(from, data); err != nil {
		return err
	}
	if err := setAttributes(from, data, &st); err != nil {
		return err
	}
	rec.Filled = true
	if err := data.Sync(); err != nil {
		return err
	}
	if err := s.records.Put(rec.Name, *rec, true); err != nil {
		return err
	}
	return removeTree(path)
}
