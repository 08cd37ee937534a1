package containers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"corten.dev/corten/internal/container"
)

// The folder of one container:
//
//	<root>/<id>/record.json        the record (container.Record) as it was flushed last; with --rm, as it is
//	            state.json         the record since then, not flushed
//	            exit               how the last run ended, written by the monitor
//	            log/               output (room logs)
//	            ship/DRIVER        how far a log driver is in it (logs/ship)
//	            <id>-json.log…     what json-file made of it, where it was asked for by name
//	            hostname, hosts, resolv.conf
//
// A record is written aside and renamed. One that is not durable goes beside the one that is, never in its place: some file systems (XFS, ext4 without its auto_da_alloc) have an empty file after a
// power cut where an unflushed one was renamed over a flushed one, and the container would be gone for the sake of a state that the power cut has ended anyway. The later one that can be read counts.
// A folder without record.json is a container half made or half removed.
const (
	recordFile = "record.json"
	stateFile  = "state.json"
)

// stored is a record on disk.
type stored struct {
	container.Record
	Rev uint64 // of two the higher is the later one
}

func (s *Service) dir(id string) string      { return filepath.Join(s.Root, id) }
func (s *Service) logDir(id string) string   { return filepath.Join(s.Root, id, "log") }
func (s *Service) exitFile(id string) string { return filepath.Join(s.Root, id, "exit") }

// save writes the record as it is now. Containers that vanish with their process are never flushed, and have one file.
func (s *Service) save(ctr *live, durable bool) error {
	ctr.disk.Lock()
	defer ctr.disk.Unlock()
	if ctr.gone {
		return nil
	}
	rec, name := ctr.record(), recordFile
	if !durable && !rec.Host.AutoRemove {
		name = stateFile
	}
	b, err := json.Marshal(stored{*rec, ctr.rev + 1})
	if err != nil {
		return fmt.Errorf("record of container %s: %w", rec.Name, err)
	}
	if err := writeFile(s.dir(ctr.id), name, b, durable && !rec.Host.AutoRemove); err != nil {
		return fmt.Errorf("record of container %s: %w", rec.Name, err)
	}
	ctr.rev++
	return nil
}

// forget removes the record, and only that: from here on the container does not exist.
func (s *Service) forget(ctr *live) error {
	ctr.disk.Lock()
	defer ctr.disk.Unlock()
	ctr.gone = true
	if err := os.Remove(filepath.Join(s.dir(ctr.id), recordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeFile replaces dir/name by b, through a file aside.
func writeFile(dir, name string, b []byte, durable bool) (err error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	if !durable {
		return nil
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// removeDir removes a container's folder. A monitor that is just ending may write the exit into it meanwhile.
func (s *Service) removeDir(id string) (err error) {
	for range 50 {
		if err = os.RemoveAll(s.dir(id)); err == nil {
			// What the monitor writes aside and renames into a folder that is being removed can bring nothing back, but come between its emptying and its end.
			if _, err = os.Lstat(s.dir(id)); errors.Is(err, fs.ErrNotExist) {
				return nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// readRecords reads every record; broken ones are set aside and told to bad, folders without one are told to half.
func readRecords(root string, bad func(id string, err error), half func(id string)) ([]stored, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var recs []stored
	for _, entry := range entries {
		id := entry.Name()
		if !entry.IsDir() || filepath.Ext(id) == ".broken" {
			continue
		}
		rec, damage, err := readRecord(filepath.Join(root, id), id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			half(id)
			continue
		case err != nil:
			return nil, err
		case damage == nil:
			recs = append(recs, rec)
			continue
		}
		bad(id, damage)
		if err := os.Rename(filepath.Join(root, id), filepath.Join(root, id+".broken")); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

// readRecord reads the later of the two files of a container that makes sense; damage is what is wrong with the first where neither does. fs.ErrNotExist: there is no record.
func readRecord(dir, id string) (rec stored, damage, err error) {
	for _, name := range []string{recordFile, stateFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if name == stateFile && errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return rec, nil, err
		}
		var one stored
		bad := json.Unmarshal(b, &one)
		if bad == nil && (one.ID != id || one.Name == "") {
			bad = errors.New("it does not name this container")
		}
		switch {
		case bad == nil && one.Rev >= rec.Rev:
			rec, damage = one, nil
		case bad != nil && name == recordFile:
			damage = bad
		}
	}
	return rec, damage, nil
}
