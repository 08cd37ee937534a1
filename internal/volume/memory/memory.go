// Package memory is a driver of the volume room without a disk, for tests of the engine.
//
// It owns nothing outside the process. It promises the contract of volume.Store, except that its mount points lead nowhere and that Fill only notes
// who was copied in.
package memory

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/volume"
)

// Store keeps volumes in memory. The zero value is not ready; use New.
type Store struct {
	mu   sync.Mutex // guards vols and what they hold
	vols map[string]*vol
}

type vol struct {
	volume.Volume
	users, mounters map[string]struct{}
	filled          string
}

var _ volume.Store = (*Store)(nil)

// New makes an empty store.
func New() *Store { return &Store{vols: make(map[string]*vol)} }

func missing(name string) error { return errs.New(errs.NotFound, "get %s: no such volume", name) }

func (v *vol) copy() volume.Volume {
	out := v.Volume
	out.Labels, out.Options = maps.Clone(v.Labels), maps.Clone(v.Options)
	return out
}

// with calls fn with a volume, under the lock.
func (s *Store) with(name string, fn func(v *vol) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.vols[name]
	if !ok {
		return missing(name)
	}
	return fn(v)
}

// Create makes a volume.
func (s *Store) Create(_ context.Context, opts volume.CreateOptions) (volume.Volume, error) {
	if opts.Driver != "" && opts.Driver != volume.LocalDriver {
		return volume.Volume{}, errs.New(errs.NotFound, "create %s: error looking up volume plugin %s: plugin %q not found", opts.Name, opts.Driver, opts.Driver)
	}
	v := &vol{
		Volume:   volume.Volume{Name: opts.Name, Driver: volume.LocalDriver, Created: time.Now(), Labels: maps.Clone(opts.Labels), Options: maps.Clone(opts.Options)},
		users:    make(map[string]struct{}),
		mounters: make(map[string]struct{}),
	}
	if v.Name == "" {
		var id [32]byte
		if _, err := rand.Read(id[:]); err != nil {
			return volume.Volume{}, err
		}
		v.Name, v.Anonymous = hex.EncodeToString(id[:]), true
		if v.Labels == nil {
			v.Labels = make(map[string]string)
		}
		v.Labels["com.docker.volume.anonymous"] = ""
	}
	if err := volume.CheckName(v.Name); err != nil {
		return volume.Volume{}, err
	}
	v.Mountpoint = "/memory/" + v.Name
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.vols[v.Name]; ok {
		if len(opts.Options) > 0 && !maps.Equal(opts.Options, old.Options) {
			return volume.Volume{}, errs.New(errs.Conflict, "create %s: conflict: volume name must be unique: it exists with other options", v.Name)
		}
		return old.copy(), nil
	}
	s.vols[v.Name] = v
	out := v.copy()
	out.Made = true
	return out, nil
}

// Get returns a volume.
func (s *Store) Get(_ context.Context, name string) (out volume.Volume, err error) {
	err = s.with(name, func(v *vol) error { out = v.copy(); return nil })
	return out, err
}

// List returns all volumes by name.
func (s *Store) List(context.Context) ([]volume.Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]volume.Volume, 0, len(s.vols))
	for _, v := range s.vols {
		list = append(list, v.copy())
	}
	slices.SortFunc(list, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Remove deletes a volume without users.
func (s *Store) Remove(_ context.Context, name string, force bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.vols[name]
	if !ok && force {
		return nil
	}
	if !ok {
		return missing(name)
	}
	if len(v.users) > 0 {
		return errs.New(errs.Conflict, "remove %s: volume is in use - [%s]", name, strings.Join(slices.Sorted(maps.Keys(v.users)), ", "))
	}
	delete(s.vols, name)
	return nil
}

// Acquire notes a user.
func (s *Store) Acquire(_ context.Context, name, user string) error {
	return s.with(name, func(v *vol) error { v.users[user] = struct{}{}; return nil })
}

// Release forgets a user.
func (s *Store) Release(_ context.Context, name, user string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.vols[name]; ok {
		delete(v.users, user)
	}
	return nil
}

// Users lists who uses a volume.
func (s *Store) Users(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.vols[name]; ok {
		return slices.Sorted(maps.Keys(v.users))
	}
	return nil
}

// Mount notes a mount and returns a path that leads nowhere.
func (s *Store) Mount(_ context.Context, name, user string) (path string, err error) {
	err = s.with(name, func(v *vol) error {
		v.mounters[user] = struct{}{}
		path = v.Mountpoint
		return nil
	})
	return path, err
}

// Unmount forgets a mount.
func (s *Store) Unmount(_ context.Context, name, user string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.vols[name]; ok {
		delete(v.mounters, user)
	}
	return nil
}

// Mounters lists for whom a volume is mounted; tests ask it.
func (s *Store) Mounters(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.vols[name]; ok {
		return slices.Sorted(maps.Keys(v.mounters))
	}
	return nil
}

// Fill notes the first source.
func (s *Store) Fill(_ context.Context, name string, src *os.File) error {
	return s.with(name, func(v *vol) error {
		if v.filled == "" {
			v.filled = src.Name()
		}
		return nil
	})
}

// Filled is the name of what a volume was filled from; tests ask it.
func (s *Store) Filled(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.vols[name]; ok {
		return v.filled
	}
	return ""
}

// LastUsage is zero, at any time.
func (s *Store) LastUsage(name string) (bytes int64, counted time.Time, counting bool) {
	if _, err := s.Usage(context.Background(), name); err != nil {
		return -1, time.Time{}, false
	}
	return 0, time.Now(), false
}

// Usage is zero: there is nothing inside.
func (s *Store) Usage(_ context.Context, name string) (int64, error) {
	return 0, s.with(name, func(*vol) error { return nil })
}
