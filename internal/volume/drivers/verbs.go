package drivers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/driver"
)

// Create makes a volume in the store or driver that was named, or returns the one that is there. Without a driver's name an existing volume of any driver serves.
func (s *Store) Create(ctx context.Context, opts volume.CreateOptions) (volume.Volume, error) {
	if opts.Driver != "" && opts.Driver != volume.LocalDriver {
		return s.createRemote(ctx, opts)
	}
	if opts.Name == "" {
		return s.opts.Local.Create(ctx, opts)
	}
	if _, rec := s.entry(opts.Name); rec != nil && opts.Driver == "" {
		opts.Driver = rec.Driver
		return s.createRemote(ctx, opts)
	}
	unlock, err := s.names.Lock(ctx, opts.Name) // a driver may be asked for the same name
	if err != nil {
		return volume.Volume{}, fmt.Errorf("create %s: %w", opts.Name, err)
	}
	defer unlock()
	opts.Driver = volume.LocalDriver
	if err := s.checkClash(ctx, opts); err != nil {
		return volume.Volume{}, err
	}
	return s.opts.Local.Create(ctx, opts)
}

// checkClash refuses a name that another driver has. If that one has it no more, its record goes.
func (s *Store) checkClash(ctx context.Context, opts volume.CreateOptions) error {
	_, rec := s.entry(opts.Name)
	if rec == nil || rec.Driver == opts.Driver {
		return nil
	}
	if s.gone(ctx, rec) {
		return s.forget(rec.Name)
	}
	return clash(opts.Name, rec.Driver)
}

func clash(name, owner string) error {
	return errs.New(errs.Conflict, "create %s: driver '%s' already has volume '%s': volume name must be unique", name, owner, name)
}

// gone tells whether a volume that nobody uses is no longer in its driver, as the driver says itself.
func (s *Store) gone(ctx context.Context, rec *stored) bool {
	if len(s.Users(rec.Name)) > 0 || len(rec.Mounts) > 0 {
		return false
	}
	d, err := s.driver(rec.Driver)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	_, err = d.Get(ctx, rec.Name)
	return err != nil && !away(err) && s.opts.Plugins.Ready(ctx, rec.Driver) == nil // not for want of a driver
}

func (s *Store) createRemote(ctx context.Context, opts volume.CreateOptions) (volume.Volume, error) {
	rec := &stored{Name: opts.Name, Driver: opts.Driver, Created: time.Now().UTC(), Labels: maps.Clone(opts.Labels), Options: maps.Clone(opts.Options)}
	if rec.Name == "" {
		var err error
		if rec.Name, err = volume.RandomName(); err != nil {
			return volume.Volume{}, err
		}
		if rec.Labels == nil {
			rec.Labels = map[string]string{}
		}
		rec.Anonymous, rec.Labels[volume.AnonymousLabel] = true, ""
	}
	if err := driver.CheckName(rec.Name); err != nil {
		return volume.Volume{}, err
	}
	d, err := s.driver(rec.Driver)
	if err != nil {
		return volume.Volume{}, fmt.Errorf("create %s: %w", rec.Name, err)
	}
	unlock, err := s.names.Lock(ctx, rec.Name)
	if err != nil {
		return volume.Volume{}, fmt.Errorf("create %s: %w", rec.Name, err)
	}
	defer unlock()
	if _, err := s.opts.Local.Get(ctx, rec.Name); err == nil {
		return volume.Volume{}, clash(rec.Name, volume.LocalDriver)
	}
	if err := s.checkClash(ctx, opts); err != nil {
		return volume.Volume{}, err
	}
	if _, old := s.entry(rec.Name); old != nil {
		if vol, there, err := s.existing(ctx, d, old, opts); there || err != nil {
			return vol, err
		}
	}
	vol, err := s.make(ctx, d, rec)
	if err != nil {
		return volume.Volume{}, fmt.Errorf("create %s: %w", rec.Name, err)
	}
	return vol, nil
}

// existing answers a Create with the volume that there is. One that is gone from its driver is none, and its record goes.
func (s *Store) existing(ctx context.Context, d driver.Driver, old *stored, opts volume.CreateOptions) (vol volume.Volume, there bool, err error) {
	if s.gone(ctx, old) {
		return volume.Volume{}, false, s.forget(old.Name)
	}
	if len(opts.Options) > 0 && len(old.Options) > 0 && !maps.Equal(opts.Options, old.Options) { // of one that others made, nobody knows the options
		return volume.Volume{}, true, errs.New(errs.Conflict, "create %s: conflict: volume name must be unique: it exists with other options", old.Name)
	}
	s.learn(ctx, d)
	return s.view(old, driver.Volume{}), true, nil
}

// make asks the driver. The record is there before: what a crash leaves is a record of a volume that the driver does not have, which the next Create finds out.
func (s *Store) make(ctx context.Context, d driver.Driver, rec *stored) (volume.Volume, error) {
	ask, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var told driver.Volume
	err := s.opts.Plugins.Ready(ask, rec.Driver)
	if errors.Is(err, errs.Invalid) {
		return volume.Volume{}, lookup(rec.Driver, err)
	}
	if err == nil { // else Create waits for it
		told, err = d.Get(ask, rec.Name)
	}
	made := err != nil
	if err := s.put(rec, true); err != nil {
		return volume.Volume{}, err
	}
	if made {
		if err := d.Create(ctx, rec.Name, rec.Options); err != nil {
			if missing(err) {
				err = lookup(rec.Driver, err)
			}
			return volume.Volume{}, errors.Join(err, s.forget(rec.Name))
		}
		again, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		if told, err = d.Get(again, rec.Name); err != nil {
			s.log.Debug("a volume plugin tells nothing of a volume that it just made", "plugin", rec.Driver, "volume", rec.Name, "error", err)
		}
	}
	s.learn(ctx, d)
	vol := s.view(rec, told)
	vol.Made = made
	return vol, nil
}

// Get returns a volume. One that is not known is looked for in all drivers that answer.
func (s *Store) Get(ctx context.Context, name string) (volume.Volume, error) {
	if _, rec := s.entry(name); rec != nil {
		return s.ask(ctx, rec)
	}
	vol, err := s.opts.Local.Get(ctx, name)
	if err == nil || !errors.Is(err, errs.NotFound) || driver.CheckName(name) != nil {
		return vol, err
	}
	owner, told := s.probe(ctx, name)
	if owner == "" {
		return vol, err
	}
	return s.view(&stored{Name: name, Driver: owner}, told), nil
}

// ask asks the driver of a volume that has a record.
func (s *Store) ask(ctx context.Context, rec *stored) (volume.Volume, error) {
	d, err := s.driver(rec.Driver)
	if err != nil {
		return s.view(rec, driver.Volume{}), errs.As(errs.Unavailable, fmt.Errorf("get %s: %w", rec.Name, err))
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	told, err := d.Get(ctx, rec.Name)
	switch {
	case away(err):
		return s.view(rec, driver.Volume{}), errs.As(errs.Unavailable, fmt.Errorf("get %s: %w", rec.Name, err))
	case err != nil:
		if rerr := s.opts.Plugins.Ready(ctx, rec.Driver); rerr != nil { // it is the driver that is missing
			return s.view(rec, driver.Volume{}), errs.As(errs.Unavailable, fmt.Errorf("get %s: %w", rec.Name, lookup(rec.Driver, rerr)))
		}
		return volume.Volume{}, errs.New(errs.NotFound, "get %s: no such volume: driver %s: %v", rec.Name, rec.Driver, err)
	}
	s.learn(ctx, d)
	return s.view(rec, told), nil
}

// probe looks for a volume in all drivers, side by side. The first one by name wins.
func (s *Store) probe(ctx context.Context, name string) (owner string, told driver.Volume) {
	found := map[string]driver.Volume{}
	for owner, ans := range s.all(ctx, whoHas(name)) {
		if ans.err == nil {
			found[owner] = ans.list[0]
		}
	}
	if len(found) == 0 {
		return "", told
	}
	owner = slices.Min(slices.Collect(maps.Keys(found)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vols[name] == nil {
		s.seen[name] = owner
	}
	return owner, found[owner]
}

// Remove unmakes a volume that nobody uses. With force, one that is not there is no error, and one whose driver is away is forgotten.
func (s *Store) Remove(ctx context.Context, name string, force bool) error {
	if e, _ := s.entry(name); e == nil {
		_, err := s.opts.Local.Get(ctx, name)
		if err == nil || driver.CheckName(name) != nil {
			return s.opts.Local.Remove(ctx, name, force)
		}
		if owner, _ := s.probe(ctx, name); owner == "" {
			return s.opts.Local.Remove(ctx, name, force)
		}
		if err := s.adopt(ctx, name); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	unlock, err := s.names.Lock(ctx, name)
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	defer unlock()
	rec, err := s.setGoing(name)
	if err == nil {
		err = s.removeRemote(ctx, rec, force)
	}
	if err != nil {
		s.mu.Lock()
		if e := s.vols[name]; e != nil {
			e.going = false
		}
		s.mu.Unlock()
	}
	if force && errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// setGoing keeps new users off a volume that has none.
func (s *Store) setGoing(name string) (*stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.vols[name]
	if e == nil {
		return nil, notFound(name)
	}
	if len(e.users) > 0 {
		return nil, errs.New(errs.Conflict, "remove %s: volume is in use - [%s]", name, strings.Join(slices.Sorted(maps.Keys(e.users)), ", "))
	}
	e.going = true
	return e.rec, nil
}

func (s *Store) removeRemote(ctx context.Context, rec *stored, force bool) error {
	d, err := s.driver(rec.Driver)
	unreachable := err != nil
	for user := range rec.Mounts { // what is owed, and what nobody asked to be unmounted
		if err == nil {
			if err = d.Unmount(ctx, rec.Name, user); err != nil && !away(err) && !missing(err) {
				s.log.Warn("a volume plugin refuses an unmount", "plugin", rec.Driver, "volume", rec.Name, "id", user, "error", err)
				err = nil
			}
		}
	}
	if err == nil {
		err = d.Remove(ctx, rec.Name)
	}
	unreachable = unreachable || away(err) || errors.Is(err, errs.NotFound)
	switch {
	case err == nil:
	case unreachable && force:
		s.log.Warn("a volume is forgotten whose plugin does not answer; what is in it stays with the plugin", "volume", rec.Name, "plugin", rec.Driver, "error", err)
	case unreachable:
		return errs.As(errs.Unavailable, fmt.Errorf("remove %s: %w (rm -f forgets the volume without asking its driver)", rec.Name, err))
	default:
		if _, gerr := d.Get(ctx, rec.Name); gerr != nil && !away(gerr) { // it was removed behind our back
			return errors.Join(errs.New(errs.NotFound, "remove %s: no such volume: driver %s: %v", rec.Name, rec.Driver, err), s.forget(rec.Name))
		}
		return fmt.Errorf("remove %s: %w", rec.Name, err)
	}
	if err := s.forget(rec.Name); err != nil {
		return fmt.Errorf("remove %s: %w", rec.Name, err)
	}
	return nil
}
