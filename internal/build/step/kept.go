package step

import (
	"context"
	"errors"

	"corten.dev/corten/internal/build"
)

// kept is a tree of a failed step.
type kept struct {
	drop func(context.Context) error
	uses int  // shells that have it open
	over bool // Discard was called
}

// keep leaves the writable trees to who wants to look at them, until Discard; it gives their keys in the order of the mounts.
func (set *mounted) keep(ctx context.Context) ([]string, error) {
	err := set.down(ctx)
	keys := make([]string, len(set.parts))
	s := set.steps
	s.mu.Lock()
	for i, p := range set.parts {
		if keys[i] = p.key; p.own {
			s.kept[p.key] = &kept{drop: func(ctx context.Context) error { return s.opts.Trees.Remove(ctx, p.key) }}
		}
	}
	s.mu.Unlock()
	set.remove = nil
	return keys, err
}

// Discard removes what a failed step left. Who runs the build calls it when the build ends; a second call is no harm.
func (s *Steps) Discard(ctx context.Context, failed *build.StepError) error {
	var drops []func(context.Context) error
	s.mu.Lock()
	for _, key := range failed.Mounts {
		if k := s.kept[key]; k != nil {
			if k.over = true; k.uses == 0 {
				delete(s.kept, key)
				drops = append(drops, k.drop)
			}
		}
	}
	s.mu.Unlock()
	var err error
	for _, drop := range drops {
		err = errors.Join(err, drop(ctx))
	}
	return err
}
