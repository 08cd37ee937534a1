package drivers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/driver"
)

// List returns all volumes by name.
func (s *Store) List(ctx context.Context) ([]volume.Volume, error) {
	list, _, err := s.ListWarned(ctx)
	return list, err
}

// ListWarned returns the volumes of the local store and of all drivers. Of a driver that does not answer, those with a record are listed as they were, with a warning; one that never had any and does not answer
// is no news. A name that two have is listed once, for whom it belongs to.
func (s *Store) ListWarned(ctx context.Context) (list []volume.Volume, warnings []string, err error) {
	if list, err = s.opts.Local.List(ctx); err != nil {
		return nil, nil, err
	}
	taken := make(map[string]string, len(list))
	for _, vol := range list {
		taken[vol.Name] = vol.Driver
	}
	answers := s.all(ctx, whatIsThere)
	recs := s.recs()
	warned := map[string]bool{}
	for _, rec := range recs {
		taken[rec.Name] = rec.Driver
		ans, asked := answers[rec.Driver]
		if asked && ans.err == nil {
			continue
		}
		list = append(list, s.view(rec, driver.Volume{}))
		if !warned[rec.Driver] {
			warned[rec.Driver] = true
			why := ans.err
			if !asked {
				why = fmt.Errorf("plugin %q is no volume driver", rec.Driver)
			}
			warnings = append(warnings, fmt.Sprintf("volumes of driver %s are listed from memory: %v", rec.Driver, why))
		}
	}
	for _, owner := range slices.Sorted(maps.Keys(answers)) {
		ans := answers[owner]
		if errors.Is(ans.err, errLate) && !warned[owner] && s.isDriver(owner) {
			warned[owner] = true
			warnings = append(warnings, fmt.Sprintf("volumes of driver %s are listed from memory: %v", owner, ans.err))
		}
		if ans.err != nil && !errors.Is(ans.err, errLate) {
			if !warned[owner] {
				s.log.Debug("a plugin does not tell its volumes", "plugin", owner, "error", ans.err)
			}
			continue
		}
		for _, told := range ans.list {
			other, known := taken[told.Name]
			if known && other != owner {
				warnings = append(warnings, fmt.Sprintf("volume name %s already exists for driver %s, not including volume returned by %s", told.Name, other, owner))
				continue
			}
			rec := recs[told.Name]
			if rec == nil {
				if known {
					continue // told twice
				}
				taken[told.Name] = owner
				rec = &stored{Name: told.Name, Driver: owner}
			}
			if told.Name != "" && (ans.err == nil || recs[told.Name] == nil) { // those with a record are listed already
				list = append(list, s.view(rec, told))
			}
		}
	}
	slices.Sort(warnings)
	slices.SortFunc(list, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(list, func(a, b volume.Volume) bool { return a.Name == b.Name }), warnings, nil
}

// Known lists the volumes of the local store and those with a record, without asking a driver.
func (s *Store) Known(ctx context.Context) ([]volume.Volume, error) {
	list, err := s.opts.Local.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, rec := range s.recs() {
		list = append(list, s.view(rec, driver.Volume{}))
	}
	slices.SortFunc(list, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// recs are the records by name.
func (s *Store) recs() map[string]*stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	recs := make(map[string]*stored, len(s.vols))
	for name, e := range s.vols {
		recs[name] = e.rec
	}
	return recs
}
