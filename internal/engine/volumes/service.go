package volumes

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/volume"
)

// Options join the service with its rooms; all are needed.
type Options struct {
	Store      volume.Store
	Containers Containers
	Events     *events.Bus
}

// Service implements [API].
type Service struct{ Options }

var _ API = (*Service)(nil)

// New makes the service.
func New(opts Options) *Service { return &Service{opts} }

func (s *Service) emit(action, name, driver string) {
	s.Events.Publish(events.Event{Type: "volume", Action: action, ID: name, Attributes: map[string]string{"driver": driver}})
}

// Create implements [API]. An existing volume of that name is the answer when it agrees.
func (s *Service) Create(ctx context.Context, opts volume.CreateOptions) (volume.Volume, error) {
	if opts.Driver == "" {
		opts.Driver = "local"
	}
	vol, err := s.Store.Create(ctx, opts)
	if err == nil && vol.Made {
		s.emit("create", vol.Name, vol.Driver)
	}
	return vol, err
}

// List implements [API].
func (s *Service) List(ctx context.Context, filters filter.Args) (list []volume.Volume, warnings []string, err error) {
	if err := filters.Accept("dangling", "driver", "label", "name"); err != nil {
		return nil, nil, err
	}
	dangling, err := filters.Bool("dangling", false)
	if err != nil {
		return nil, nil, err
	}
	store := s.Store
	if slices.Equal(filters["driver"], []string{volume.LocalDriver}) {
		store = volume.LocalOf(store) // without asking any plugin
	}
	all, warnings, err := volume.List(ctx, store)
	if err != nil {
		return nil, nil, err
	}
	list = slices.DeleteFunc(all, func(vol volume.Volume) bool {
		return !filters.Exact("driver", vol.Driver) || !filters.Labels("label", vol.Labels) || !filters.Match("name", vol.Name) ||
			filters.Has("dangling") && dangling != (len(s.Store.Users(vol.Name)) == 0)
	})
	slices.SortFunc(list, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	return list, warnings, nil
}

// Known implements [API].
func (s *Service) Known(ctx context.Context) ([]volume.Volume, error) {
	return volume.Known(ctx, s.Store)
}

// Inspect implements [API].
func (s *Service) Inspect(ctx context.Context, name string) (volume.Volume, error) {
	return s.Store.Get(ctx, name)
}

// Remove implements [API]. Force forgives a volume that is not there, and forgets one whose driver is away.
func (s *Service) Remove(ctx context.Context, name string, force bool) error {
	vol, err := s.Store.Get(ctx, name)
	if err != nil {
		if force && errors.Is(err, errs.NotFound) {
			return nil
		}
		if !errors.Is(err, errs.Unavailable) { // then the store has the last word
			return err
		}
	}
	if err := s.Store.Remove(ctx, name, force); err != nil {
		return err
	}
	s.emit("destroy", vol.Name, vol.Driver)
	return nil
}

// Prune implements [API]. As with Docker, volumes that plugins keep stay.
func (s *Service) Prune(ctx context.Context, filters filter.Args) (Pruned, error) {
	var pruned Pruned
	if err := filters.Accept("all", "label", "label!"); err != nil {
		return pruned, err
	}
	named, err := filters.Bool("all", false)
	if err != nil {
		return pruned, err
	}
	all, err := volume.LocalOf(s.Store).List(ctx)
	if err != nil {
		return pruned, err
	}
	for _, vol := range all {
		unwanted := slices.ContainsFunc(filters["label!"], func(w string) bool { return (filter.Args{"l": {w}}).Labels("l", vol.Labels) })
		if !named && !vol.Anonymous || unwanted || !filters.Labels("label", vol.Labels) || len(s.Store.Users(vol.Name)) > 0 {
			continue
		}
		size, err := s.Store.Usage(ctx, vol.Name)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return pruned, err
		}
		err = s.Store.Remove(ctx, vol.Name, false)
		if errors.Is(err, errs.Conflict) || errors.Is(err, errs.NotFound) {
			continue // someone took or removed it meanwhile
		}
		if err != nil {
			return pruned, err
		}
		s.emit("destroy", vol.Name, vol.Driver)
		pruned.Deleted, pruned.Space = append(pruned.Deleted, vol.Name), pruned.Space+max(size, 0) // one that is not mounted has no size to tell
	}
	s.Events.Publish(events.Event{Type: "volume", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(pruned.Space, 10)}})
	return pruned, nil
}

// Users implements [API].
func (s *Service) Users(name string) int { return len(s.Store.Users(name)) }
