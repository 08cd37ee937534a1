package builds

import (
	"context"
	"strconv"
	"time"

	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/task"
)

// Collection is what the cache of builds may take without being asked: rules, each of which holds by itself, the first the most careful.
type Collection struct {
	Enabled bool
	// Rules gives the rules for a disk of so many bytes: what each chooses and nobody used lately goes, the longest unused first, until its bounds hold.
	Rules func(disk int64) []PruneOptions
	// Every is how often it is looked at beside the ends of builds; 0 is an hour.
	Every time.Duration
}

// settle is how long the engine waits after a build before it looks: builds come in rows.
const settle = 10 * time.Second

func (s *Service) collecting(ctx context.Context) {
	every := s.Collection.Every
	if every == 0 {
		every = time.Hour
	}
	for {
		select {
		case <-s.built:
			select {
			case <-time.After(settle):
			case <-ctx.Done():
				return
			}
		case <-time.After(every):
		case <-ctx.Done():
			return
		}
		s.collect(ctx)
	}
}

// collect is one look. A bug in it must not end the engine, nor the looks that follow.
func (s *Service) collect(ctx context.Context) {
	defer task.Contain(s.Log, "collect the cache of builds", nil)
	disk, err := s.Records.Disk()
	if err != nil {
		s.Log.Warn("the size of the disk is not known: the cache of builds is not collected", "err", err)
		return
	}
	for _, r := range s.Collection.Rules(disk) {
		space, err := s.Records.Prune(ctx, r, func(UsageRecord) {})
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("collect the cache of builds", "err", err)
		}
		if space > 0 {
			s.Log.Info("collected from the cache of builds", "bytes", space)
		}
	}
}

// Prune implements [API].
func (s *Service) Prune(ctx context.Context, opts PruneOptions, each func(UsageRecord)) (int64, error) {
	space, err := s.Records.Prune(ctx, opts, each)
	if err != nil {
		return space, err
	}
	s.Events.Publish(events.Event{Type: "builder", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(space, 10)}})
	return space, nil
}

// ended tells the collection that a build is over.
func (s *Service) ended() {
	select {
	case s.built <- struct{}{}:
	default:
	}
}
