package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The durable side of the room:
//
//	<root>/networks/<id>.json   one stored Network, written aside, flushed, renamed
//	<root>/networks/<id>.json.bad   one that could not be read, set aside
func (l *Local) storeDir() string { return filepath.Join(l.opt.Root, "networks") }

func (l *Local) save(nw Network) error {
	raw, err := json.MarshalIndent(nw, "", " ")
	if err != nil {
		return fmt.Errorf("store network %s: %w", nw.Name, err)
	}
	if err := l.writeAside(filepath.Join(l.storeDir(), nw.ID+".json"), raw); err != nil {
		return fmt.Errorf("store network %s: %w", nw.Name, err)
	}
	return nil
}

// writeAside writes a file that is there whole, or as it was, after a crash.
func (l *Local) writeAside(path string, raw []byte) error {
	dir, name := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// dropAside removes what a crash in writeAside left, if the file is that.
func (l *Local) dropAside(path string) bool {
	if !strings.HasPrefix(filepath.Base(path), ".") {
		return false
	}
	if err := os.Remove(path); err != nil {
		l.log.Warn("drop an interrupted write", "file", path, "err", err)
	}
	return true
}

func (l *Local) forget(id string) error {
	if err := os.Remove(filepath.Join(l.storeDir(), id+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget network %s: %w", id, err)
	}
	return syncDir(l.storeDir())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// stored reads the records; one that cannot be read is set aside and said so, because the engine must come up.
func (l *Local) stored() ([]Network, error) {
	entries, err := os.ReadDir(l.storeDir())
	if err != nil {
		return nil, fmt.Errorf("read network records: %w", err)
	}
	var all []Network
	for _, e := range entries {
		path := filepath.Join(l.storeDir(), e.Name())
		if l.dropAside(path) {
			continue
		}
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		nw, err := readRecord(path, id)
		if err != nil {
			l.log.Error("network record is unreadable and set aside", "file", path, "err", err)
			if err := os.Rename(path, path+".bad"); err != nil {
				return nil, fmt.Errorf("set network record aside: %w", err)
			}
			continue
		}
		all = append(all, nw)
	}
	return all, nil
}

func readRecord(path, id string) (Network, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Network{}, err
	}
	return parseRecord(raw, id)
}

func parseRecord(raw []byte, id string) (Network, error) {
	var nw Network
	if err := json.Unmarshal(raw, &nw); err != nil {
		return nw, err
	}
	if nw.ID != id || len(nw.ID) != 64 || nw.Name == "" {
		return nw, errors.New("id or name does not fit")
	}
	for _, p := range nw.IPAM.Pools {
		if nw.IPAM.Driver != "" && nw.IPAM.Driver != ipamDefault {
			break // checked when the plugin gave it
		}
		if err := checkPool(p); err != nil {
			return nw, errors.Join(errors.New("bad address pool"), err)
		}
	}
	return nw, nil
}
