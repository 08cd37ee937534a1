package network

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"corten.dev/corten/internal/record"
)

// The durable side of the room (package record):
//
//	<root>/networks/<id>.json            a network
//	<root>/networks/plugins/<id>.json    what plugins hold for a network or an endpoint (held.go)
func (l *Local) storeDir() string { return filepath.Join(l.opt.Root, "networks") }

func (l *Local) heldDir() string { return filepath.Join(l.storeDir(), "plugins") }

// stored is a network's record.
type stored struct{ Network }

// Check implements [record.Checked].
func (s *stored) Check(name string) error {
	if s.ID != name || len(s.ID) != 64 || s.Name == "" {
		return errors.New("id or name does not fit")
	}
	for _, p := range s.IPAM.Pools {
		if s.IPAM.Driver != "" && s.IPAM.Driver != ipamDefault {
			break // checked when the plugin gave it
		}
		if err := checkPool(p); err != nil {
			return errors.Join(errors.New("bad address pool"), err)
		}
	}
	return nil
}

// Check implements [record.Checked].
func (h *held) Check(name string) error {
	if h.ID != name || h.Network == "" || h.Owner == "" && h.ID != h.Network {
		return errors.New("the ids do not fit")
	}
	return nil
}

// openStore opens the folders.
func (l *Local) openStore() (err error) {
	if l.records, err = record.Open[stored](l.storeDir(), l.log); err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	if l.ledger, err = record.Open[held](l.heldDir(), l.log); err != nil {
		return fmt.Errorf("what network plugins hold: %w", err)
	}
	return nil
}

func (l *Local) closeStore() (err error) {
	if l.records != nil {
		err = l.records.Close()
	}
	if l.ledger != nil {
		err = errors.Join(err, l.ledger.Close())
	}
	return err
}

func (l *Local) save(nw Network) error {
	if err := l.records.Put(nw.ID, stored{nw}, true); err != nil {
		return fmt.Errorf("store network %s: %w", nw.Name, err)
	}
	return nil
}

func (l *Local) forget(id string) error {
	if err := l.records.Delete(id, true); err != nil {
		return fmt.Errorf("forget network %s: %w", id, err)
	}
	return nil
}

// stored reads the records, in the order of their ids.
func (l *Local) stored() ([]Network, error) {
	recs, err := l.records.All()
	if err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	all := make([]Network, 0, len(recs))
	for _, id := range slices.Sorted(maps.Keys(recs)) {
		all = append(all, recs[id].Network)
	}
	return all, nil
}
