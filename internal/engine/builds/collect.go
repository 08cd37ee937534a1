package builds

import (
	"context"
	"strconv"
	"time"

	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
)

// Collection is what the cache of builds may take without being asked: rules, each of which holds by itself, the first the most careful.
type Collection struct {
	Enabled bool
	// Rules gives the rules for a disk of so many bytes.
	Rules func(disk int64) []Rule
	// Every is how often it is looked at beside the ends of builds; 0 is an hour.
	Every time.Duration
}

// Rule says what goes: what Filters choose and nobody used for KeepDuration, the longest unused first, until the bounds hold (see [PruneOptions]).
type Rule struct {
	All                        bool
	Filters                    filter.Args
	KeepDuration               time.Duration
	Reserved, MaxUsed, MinFree int64
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

func (s *Service) collect(ctx context.Context) {
	disk, err := s.Records.Disk()
	if err != nil {
		s.Log.Warn("the size of the disk is not known: the cache of builds is not collected", "err", err)
		return
	}
	for _, r := range s.Collection.Rules(disk) {
		space, err := s.Records.Prune(ctx, PruneOptions{
			All: r.All, Filters: r.Filters, KeepDuration: r.KeepDuration, Reserved: r.Reserved, MaxUsed: r.MaxUsed, MinFree: r.MinFree,
		}, func(UsageRecord) {})
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
