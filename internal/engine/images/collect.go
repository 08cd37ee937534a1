package images

import (
	"context"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/task"
)

// Collector is the part of the image room that takes away what nobody uses. It logs each removal.
type Collector interface {
	Collect(ctx context.Context, p image.Policy, space func() (free, total int64), inUse func(digest.Digest) bool) ([]image.Collected, error)
}

// Collection says when images go by themselves. Without a Collector they do not.
type Collection struct {
	Collector Collector
	Policy    image.Policy
	// Space tells the free and total bytes of the file system that images are on.
	Space func() (free, total int64)
	// Every is the time between two looks, 10 minutes when 0. A pull, a load or an import makes the next look come at once, when the disk is above the high mark then.
	Every time.Duration
}

// collecting looks again and again, until Close.
func (s *Service) collecting(ctx context.Context) {
	every := s.Collection.Every
	if every == 0 {
		every = 10 * time.Minute
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.grown:
			if !s.full() {
				continue
			}
		}
		s.collect(ctx)
	}
}

// full tells whether the disk is above the high mark.
func (s *Service) full() bool {
	free, total := s.Collection.Space()
	return s.Collection.Policy.High > 0 && total > 0 && (total-free)*100 >= total*int64(s.Collection.Policy.High)
}

// grow tells the collection that images took more space.
func (s *Service) grow() {
	select {
	case s.grown <- struct{}{}:
	default: // it has been told
	}
}

// collect is one look. A bug in it must not end the engine, nor the looks that follow.
func (s *Service) collect(ctx context.Context) {
	defer task.Contain(s.Log, "collection of images", nil)
	gone, err := s.Collection.Collector.Collect(ctx, s.Collection.Policy, s.Collection.Space, s.inUse)
	s.tellCollected(gone)
	if err != nil && ctx.Err() == nil {
		s.Log.Error("collection of images is not complete", "err", err)
	}
}

func (s *Service) inUse(id digest.Digest) bool {
	stopped, running := s.Containers.ImageUsers(id)
	return len(stopped)+len(running) > 0
}

// tellCollected publishes what went, in the words of `rmi`.
func (s *Service) tellCollected(gone []image.Collected) {
	bytes := int64(0)
	for _, it := range gone {
		bytes += it.Bytes
		if it.Image == "" {
			continue
		}
		for _, name := range it.Names {
			s.emit("untag", it.Image.String(), name, map[string]string{"reason": it.Why})
		}
		s.emit("delete", it.Image.String(), it.Image.String(), map[string]string{"reason": it.Why})
	}
	if len(gone) > 0 {
		s.Events.Publish(events.Event{Type: "image", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(bytes, 10), "reason": "collection"}})
	}
}

// leftovers is how long what nobody refers to stays when people prune: a pull that is just about to use it must find it.
const leftovers = time.Minute

// pruneLeftovers removes downloads that were broken off, and blobs of no image.
func (s *Service) pruneLeftovers(ctx context.Context) (bytes int64, err error) {
	if s.Collection.Collector == nil {
		return 0, nil
	}
	gone, err := s.Collection.Collector.Collect(ctx, image.Policy{Garbage: leftovers}, s.Collection.Space, s.inUse)
	for _, it := range gone {
		bytes += it.Bytes
	}
	return bytes, err
}
