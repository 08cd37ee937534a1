package cgroup

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
)

// Below is the handle of cgroups below the container's own, for a process that is to join those: each of places is "PATH", for all hierarchies, or "CONTROLLER,…:PATH", for the v1
// hierarchies of these. They must be there; a path with .. stays below the container's.
func (m *Manager) Below(places []string) (*Manager, error) {
	below := *m
	below.v1 = slices.Clone(m.v1)
	for _, place := range places {
		controllers, sub, some := strings.Cut(place, ":")
		var wanted []string
		if some {
			wanted = strings.Split(controllers, ",")
		} else {
			sub = place
		}
		sub = path.Join("/", sub)
		for i, d := range m.v1 {
			if some && !slices.ContainsFunc(d.hier.controllers, func(c string) bool { return slices.Contains(wanted, c) }) {
				continue
			}
			below.v1[i].own = path.Join(m.at(d), sub)
			wanted = slices.DeleteFunc(wanted, func(c string) bool { return slices.Contains(d.hier.controllers, c) })
		}
		if len(wanted) > 0 {
			return nil, errs.New(errs.Invalid, "cgroup %q: the container is in no v1 hierarchy of %s", place, strings.Join(wanted, ", "))
		}
		if !some && m.v2 != "" {
			below.v2 = path.Join(m.v2, sub)
		}
	}
	for _, dir := range below.all() {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
	}
	return &below, nil
}
