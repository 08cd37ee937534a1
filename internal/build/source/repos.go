package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// Repository is a git repository that is kept.
type Repository struct {
	ID       string
	URL      string // without user and password
	Bytes    int64
	LastUsed time.Time
	InUse    bool
}

// sizes remembers how large what was used last at a time was: counting takes long.
type sizes struct {
	mu  sync.Mutex
	all map[string]counting
}

type counting struct {
	used  time.Time
	bytes int64
}

func (s *sizes) of(id string, used time.Time, count func() int64) int64 {
	s.mu.Lock()
	have, ok := s.all[id]
	s.mu.Unlock()
	if ok && have.used.Equal(used) {
		return have.bytes
	}
	have = counting{used, count()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil || len(s.all) > maxSizes {
		s.all = map[string]counting{}
	}
	s.all[id] = have
	return have.bytes
}

// maxSizes bounds it: what went is still in it.
const maxSizes = 10_000

// Repositories lists the git repositories that are kept, those used last in front.
func (s *Sources) Repositories(context.Context) ([]Repository, error) {
	all, err := s.repositories()
	for i, r := range all {
		dir := filepath.Join(s.opts.Root, "git", r.ID)
		all[i].InUse = s.busy.taken("git " + r.ID)
		all[i].Bytes = s.sizes.of(r.ID, r.LastUsed, func() int64 { return treeBytes(dir) })
		if raw, err := os.ReadFile(filepath.Join(dir, "description")); err == nil {
			all[i].URL = strings.TrimSpace(string(raw))
		}
	}
	return all, err
}

func (s *Sources) repositories() ([]Repository, error) {
	entries, err := os.ReadDir(filepath.Join(s.opts.Root, "git"))
	if err != nil {
		return nil, err
	}
	var all []Repository
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else it was removed meanwhile
			all = append(all, Repository{ID: e.Name(), LastUsed: info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b Repository) int { return b.LastUsed.Compare(a.LastUsed) })
	return all, nil
}

// RemoveRepository removes one; errs.NotFound when it is not there, errs.Conflict while a build uses it.
func (s *Sources) RemoveRepository(_ context.Context, id string) error {
	all, err := s.repositories()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(r Repository) bool { return r.ID == id }) {
		return errs.New(errs.NotFound, "no git repository %s", id)
	}
	give, ok := s.busy.try("git " + id)
	if !ok {
		return errs.New(errs.Conflict, "git repository %s is in use", id)
	}
	defer give()
	return os.RemoveAll(filepath.Join(s.opts.Root, "git", id))
}

// Collect removes what nobody asked for in a long time, and the oldest of what is too much: git repositories, and what is known of downloads whose layers are gone.
func (s *Sources) Collect(ctx context.Context) error {
	if err := s.collectRepositories(ctx); err != nil {
		return err
	}
	files, err := s.files.All()
	if err != nil {
		return err
	}
	for name, f := range files {
		if _, have, err := s.kept(ctx, f.Key); err != nil {
			return err
		} else if have {
			continue
		}
		if err := s.forget(ctx, name, f); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sources) collectRepositories(ctx context.Context) error {
	all, err := s.repositories()
	if err != nil {
		return err
	}
	for i, r := range all {
		if i < s.opts.MaxKept && time.Since(r.LastUsed) < s.opts.MaxAge {
			continue
		}
		if err := s.RemoveRepository(ctx, r.ID); err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Conflict) {
			return fmt.Errorf("collect git repositories: %w", err)
		}
	}
	return nil
}

// forget removes the record of a download, unless it has come again meanwhile.
func (s *Sources) forget(ctx context.Context, name string, old file) error {
	give, err := s.busy.take(ctx, "http "+name)
	if err != nil {
		return err
	}
	defer give()
	if now, err := s.files.Get(name); err != nil || now.Chain != old.Chain {
		return nil // it went, or is another one
	}
	if _, have, err := s.kept(ctx, old.Key); err != nil || have {
		return err
	}
	return s.files.Delete(name, false)
}
