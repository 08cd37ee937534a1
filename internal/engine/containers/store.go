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
//	<root>/<id>/record.json        the record (container.Record)
//	            exit               how the last run ended, written by the monitor
//	            log/               output (room logs)
//	            ship/DRIVER        how far a log driver is in it (logs/ship)
//	            <id>-json.log…     what json-file made of it, where it was asked for by name
//	            hostname, hosts, resolv.conf
//
// A record is written aside and renamed; it is flushed, with its folder, only when durable. A folder without record.json is a container half made or half removed.
const recordFile = "record.json"

func (s *Service) dir(id string) string      { return filepath.Join(s.Root, id) }
func (s *Service) logDir(id string) string   { return filepath.Join(s.Root, id, "log") }
func (s *Service) exitFile(id string) string { return filepath.Join(s.Root, id, "exit") }

// save writes the record as it is now. Containers that vanish with their process are never flushed.
func (s *Service) save(ctr *live, durable bool) error {
	ctr.disk.Lock()
	defer ctr.disk.Unlock()
	if ctr.gone {
		return nil
	}
	rec := ctr.record()
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record of container %s: %w", rec.Name, err)
	}
	if err := writeFile(s.dir(ctr.id), recordFile, b, durable && !rec.Host.AutoRemove); err != nil {
		return fmt.Errorf("record of container %s: %w", rec.Name, err)
	}
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
	if err != nil || !durable {
		return err
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
func readRecords(root string, bad func(id string, err error), half func(id string)) ([]container.Record, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var recs []container.Record
	for _, entry := range entries {
		id := entry.Name()
		if !entry.IsDir() || filepath.Ext(id) == ".broken" {
			continue
		}
		path := filepath.Join(root, id, recordFile)
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			half(id)
			continue
		}
		if err != nil {
			return nil, err
		}
		var rec container.Record
		if err := json.Unmarshal(b, &rec); err == nil && rec.ID == id && rec.Name != "" {
			recs = append(recs, rec)
			continue
		} else if err == nil {
			err = errors.New("it does not name this container")
			bad(id, err)
		} else {
			bad(id, err)
		}
		if err := os.Rename(filepath.Join(root, id), filepath.Join(root, id+".broken")); err != nil {
			return nil, err
		}
	}
	return recs, nil
}
