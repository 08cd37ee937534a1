package containers

import (
	"context"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/container"
)

// bases are the containers that must run before this one can: whose namespaces it joins, and which it is linked to.
func (s *Service) bases(rec *container.Record) (all []*live) {
	refs := []string{}
	for _, text := range rec.Host.Links {
		refs = append(refs, parseLink(text).ref)
	}
	for _, ref := range append(refs, joined(rec.Host.NetworkMode, rec.Host.IpcMode, rec.Host.PidMode)...) {
		// One that is gone is the start's to complain about. Names can be given to others, so that two may stand on each other: then neither has to wait.
		if base, err := s.find(ref); err == nil && !s.standsOn(base, rec.ID, nil) {
			all = append(all, base)
		}
	}
	return all
}

// joined are the containers that modes of namespaces name (container:REF).
func joined(modes ...string) (refs []string) {
	for _, mode := range modes {
		if ref, ok := strings.CutPrefix(mode, "container:"); ok {
			refs = append(refs, ref)
		}
	}
	return refs
}

// standsOn tells whether a container is another one, or needs it, or needs one that does.
func (s *Service) standsOn(ctr *live, id string, seen []string) bool {
	if ctr.id == id {
		return true
	}
	rec := ctr.record()
	seen = append(seen, ctr.id)
	for _, ref := range joined(rec.Host.NetworkMode, rec.Host.IpcMode, rec.Host.PidMode) { // no circle can be made of links alone
		if base, err := s.find(ref); err == nil && !slices.Contains(seen, base.id) && s.standsOn(base, id, seen) {
			return true
		}
	}
	return false
}

// awaitBases waits while a container that this one needs is about to run again.
func (s *Service) awaitBases(ctx context.Context, ctr *live) error {
	bases := s.bases(ctr.record())
	return until(ctx, func() bool {
		return !slices.ContainsFunc(bases, func(base *live) bool {
			status := base.record().State.Status
			return status == container.Restarting || status == container.Starting
		})
	})
}

// until waits for what nobody tells: a start takes a few milliseconds.
func until(ctx context.Context, reached func() bool) error {
	for !reached() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}
