package system

import (
	"context"
	"time"
)

// How long an answer waits for counts that are under way, how often it looks, and from what age on a tree's count is about to be renewed.
const (
	sizePatience = 500 * time.Millisecond
	sizeLook     = 5 * time.Millisecond
	treeFresh    = time.Minute
)

// TreeSizes implements [API].
func (s *Service) TreeSizes(ctx context.Context, containers []string) []int64 {
	return sizes(ctx, containers, func(id string) (int64, bool) {
		bytes, counted := s.Trees.LastUsage(id)
		if counted.IsZero() {
			bytes = Unknown
		}
		return bytes, time.Since(counted) > treeFresh
	})
}

// VolumeSizes implements [API].
func (s *Service) VolumeSizes(ctx context.Context, names []string) []int64 {
	return sizes(ctx, names, func(name string) (int64, bool) {
		bytes, _, counting := s.Volumes.LastUsage(name)
		return bytes, counting
	})
}

// sizes asks for all at once, so that they are counted in one go, then again for those that have something newer coming.
func sizes(ctx context.Context, names []string, last func(name string) (bytes int64, counting bool)) []int64 {
	ctx, cancel := context.WithTimeout(ctx, sizePatience)
	defer cancel()
	list := make([]int64, len(names))
	left := make([]int, len(names))
	for i := range left {
		left[i] = i
	}
	for {
		waiting := left[:0]
		for _, i := range left {
			var counting bool
			if list[i], counting = last(names[i]); counting {
				waiting = append(waiting, i)
			}
		}
		if left = waiting; len(left) == 0 {
			return list
		}
		select {
		case <-ctx.Done():
			return list
		case <-time.After(sizeLook):
		}
	}
}
