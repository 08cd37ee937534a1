package drivers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/driver"
)

// Mount returns the directory of a volume, mounted for a user. Whose mount there is already, also from before this engine started, gets the same directory without a call.
func (s *Store) Mount(ctx context.Context, name, user string) (string, error) {
	if e, _ := s.entry(name); e == nil {
		return s.opts.Local.Mount(ctx, name, user)
	}
	unlock, err := s.names.Lock(ctx, name)
	if err != nil {
		return "", fmt.Errorf("mount volume %s: %w", name, err)
	}
	defer unlock()
	e, rec := s.entry(name)
	if e == nil {
		return "", notFound(name)
	}
	if m := rec.Mounts[user]; m.State == mounted { // also if an Unmount was asked for meanwhile that did not get to it
		s.claim(e, user, true)
		return m.Path, nil
	}
	d, err := s.driver(rec.Driver)
	if err != nil {
		return "", fmt.Errorf("mount volume %s: %w", name, err)
	}
	if rec.Mounts[user].State != "" { // owed from before, or an engine was killed in the middle: the driver may count this user
		err := s.opts.Plugins.Await(ctx, rec.Driver)
		if err == nil {
			err = s.leave(ctx, d, name, user)
		}
		if err != nil {
			return "", fmt.Errorf("mount volume %s: %w", name, err)
		}
	}
	path, err := s.mount(ctx, d, name, user)
	if err != nil {
		return "", fmt.Errorf("mount volume %s: %w", name, err)
	}
	s.claim(e, user, true)
	return path, nil
}

// claim notes whether a user wants the mount that there is.
func (s *Store) claim(e *entry, user string, wants bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if wants {
		e.claimed[user] = true
	} else {
		delete(e.claimed, user)
	}
}

func (s *Store) claims(e *entry, user string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.claimed[user]
}

// mount asks the driver. It needs the volume's name.
func (s *Store) mount(ctx context.Context, d driver.Driver, name, user string) (string, error) {
	if err := s.setMount(name, user, mounting, ""); err != nil {
		return "", err
	}
	path, err := d.Mount(ctx, name, user)
	switch {
	case err == nil:
		if err := s.setMount(name, user, mounted, path); err != nil {
			return "", errors.Join(err, d.Unmount(ctx, name, user))
		}
		return path, nil
	case errors.Is(err, driver.Uncertain):
		err = errors.Join(err, s.setMount(name, user, leaving, ""))
		s.retry()
		return "", err
	case missing(err):
		err = lookup(d.Name(), err)
	}
	return "", errors.Join(err, s.setMount(name, user, "", ""))
}

// setMount writes the state of one mount; an empty one is none. It needs the volume's name.
func (s *Store) setMount(name, user, state, path string) error {
	_, rec := s.entry(name)
	if rec == nil {
		return notFound(name)
	}
	rec = rec.copy()
	switch {
	case state == "":
		delete(rec.Mounts, user)
	case rec.Mounts == nil:
		rec.Mounts = map[string]mount{user: {state, path}}
	default:
		rec.Mounts[user] = mount{state, path}
	}
	return s.put(rec, false) // a crash of the host takes the mounts along
}

// leave has the driver unmount for a user. A driver that refuses has nothing to unmount. It needs the volume's name.
func (s *Store) leave(ctx context.Context, d driver.Driver, name, user string) error {
	err := d.Unmount(ctx, name, user)
	switch {
	case errors.Is(err, errs.NotFound):
		return lookup(d.Name(), err)
	case away(err):
		return err
	}
	s.setSlow(d.Name(), false)
	if err != nil {
		s.log.Warn("a volume plugin refuses an unmount", "plugin", d.Name(), "volume", name, "id", user, "error", err)
	}
	return s.setMount(name, user, "", "")
}

// Unmount lets go of a user's mount. A driver that does not answer within a moment keeps nobody: it is asked again in the background until it did, also by the next engine.
func (s *Store) Unmount(ctx context.Context, name, user string) error {
	e, rec := s.entry(name)
	if e == nil {
		return s.opts.Local.Unmount(ctx, name, user)
	}
	if rec.Mounts[user].State == "" {
		return nil
	}
	s.claim(e, user, false)
	done := make(chan error, 1)
	if !s.background(func(ctx context.Context) { done <- s.unmount(ctx, name, user) }) {
		return errs.New(errs.Unavailable, "unmount volume %s: the engine ends", name)
	}
	s.mu.Lock()
	settled, patience := s.settled, unmountTime
	if s.slow[rec.Driver] {
		patience = 0
	}
	s.mu.Unlock()
	if !settled {
		return nil // an engine that starts waits for no plugin
	}
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("unmount volume %s: %w", name, err)
		}
		return nil
	case <-time.After(patience):
		s.setSlow(rec.Driver, true)
		return errs.New(errs.Unavailable, "unmount volume %s: plugin %s does not answer; it is asked again until it does", name, rec.Driver)
	case <-ctx.Done():
		return fmt.Errorf("unmount volume %s: %w", name, context.Cause(ctx))
	}
}

func (s *Store) setSlow(driver string, slow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slow[driver] = slow
}

func (s *Store) unmount(ctx context.Context, name, user string) (err error) {
	defer task.Contain(s.log, "unmount volume "+name, &err)
	unlock, err := s.names.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	e, rec := s.entry(name)
	if e == nil || rec.Mounts[user].State == "" || s.claims(e, user) { // gone, or mounted again meanwhile
		return nil
	}
	if err := s.setMount(name, user, leaving, ""); err != nil {
		return err
	}
	d, err := s.driver(rec.Driver)
	if err == nil {
		err = s.leave(ctx, d, name, user)
	}
	if err != nil {
		s.retry()
	}
	return err
}

// background runs work that Close waits for; false: the store is closed.
func (s *Store) background(work func(context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.done.Go(func() { work(s.ctx) })
	return true
}

// Settle is told when everybody who still runs has mounted again what is theirs. What is left of the last engine's mounts is owed to the drivers; it waits for none of them.
func (s *Store) Settle(context.Context) error {
	s.mu.Lock()
	s.settled = true
	s.mu.Unlock()
	s.background(func(ctx context.Context) {
		defer task.Contain(s.log, "settle volumes of plugins", nil)
		for name, rec := range s.recs() {
			for user, m := range rec.Mounts {
				if err := s.disown(ctx, name, user, m); err != nil {
					s.log.Error("a mount of the last engine stays with a volume plugin", "volume", name, "id", user, "error", err)
				}
			}
		}
		s.retry()
	})
	return nil
}

// disown lets go of a mount that nobody claimed.
func (s *Store) disown(ctx context.Context, name, user string, m mount) error {
	if m.State == leaving {
		return nil
	}
	unlock, err := s.names.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if e, now := s.entry(name); now == nil || now.Mounts[user] != m || s.claims(e, user) {
		return nil
	}
	return s.setMount(name, user, leaving, "")
}

// retry sees to it that somebody works on what is owed, if there is anything.
func (s *Store) retry() {
	s.mu.Lock()
	busy := s.retries
	s.retries = true
	s.mu.Unlock()
	if !busy && !s.background(s.payOwed) {
		s.mu.Lock()
		s.retries = false
		s.mu.Unlock()
	}
}

// payOwed asks drivers to unmount what is owed until nothing is.
func (s *Store) payOwed(ctx context.Context) {
	defer task.Contain(s.log, "unmount what is owed to volume plugins", nil)
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		owed := s.owed()
		if len(owed) == 0 {
			s.mu.Lock()
			s.retries = false
			s.mu.Unlock()
			if len(s.owed()) > 0 { // meanwhile
				s.retry()
			}
			return
		}
		for _, o := range owed {
			if s.opts.Plugins.Ready(ctx, o.driver) != nil {
				continue // without waiting: others are next
			}
			if err := s.unmount(ctx, o.name, o.user); err == nil {
				s.log.Info("unmounted what was owed to a volume plugin", "plugin", o.driver, "volume", o.name, "id", o.user)
			}
		}
		if len(s.owed()) == 0 {
			continue
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

type owed struct{ name, user, driver string }

func (s *Store) owed() []owed {
	var all []owed
	for name, rec := range s.recs() {
		for user, m := range rec.Mounts {
			if m.State == leaving {
				all = append(all, owed{name, user, rec.Driver})
			}
		}
	}
	return all
}

// Fill copies an image's content into a driver's volume that is mounted and empty, once.
func (s *Store) Fill(ctx context.Context, name string, src *os.File) error {
	if e, _ := s.entry(name); e == nil {
		return s.opts.Local.Fill(ctx, name, src)
	}
	unlock, err := s.names.Lock(ctx, name)
	if err != nil {
		return fmt.Errorf("fill volume %s: %w", name, err)
	}
	defer unlock()
	_, rec := s.entry(name)
	if rec == nil {
		return notFound(name)
	}
	path := rec.mountpoint()
	switch {
	case rec.Filled:
		return nil
	case path == "":
		return errs.New(errs.Conflict, "fill volume %s: it is not mounted", name)
	}
	if err := volume.FillDirectory(ctx, src, path); err != nil {
		return fmt.Errorf("fill volume %s: %w", name, err)
	}
	rec = rec.copy()
	rec.Filled = true
	if err := s.put(rec, true); err != nil {
		return fmt.Errorf("fill volume %s: %w", name, err)
	}
	return nil
}

// Usage is -1 for a driver's volume: counting it may read a file system at the other end of the world.
func (s *Store) Usage(ctx context.Context, name string) (int64, error) {
	if e, _ := s.entry(name); e != nil {
		return -1, nil
	}
	return s.opts.Local.Usage(ctx, name)
}

// LastUsage is that of the local store; a driver's volume is not counted.
func (s *Store) LastUsage(name string) (bytes int64, counted time.Time, counting bool) {
	if e, _ := s.entry(name); e != nil {
		return -1, time.Time{}, false
	}
	return s.opts.Local.LastUsage(name)
}
