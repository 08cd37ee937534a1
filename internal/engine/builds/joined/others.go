package joined

import (
	"context"

	"corten.dev/corten/internal/build/cache"
	"corten.dev/corten/internal/build/source"
	"corten.dev/corten/internal/build/source/mirror"
)

// repositories are the git repositories that sources keep.
type repositories struct{ sources *source.Sources }

// Kept implements [cache.Other].
func (r repositories) Kept(ctx context.Context) (list []cache.Usage, err error) {
	all, err := r.sources.Repositories(ctx)
	for _, one := range all {
		used := one.LastUsed
		list = append(list, cache.Usage{ID: one.ID, Kind: "source.git.checkout", Description: "git repository " + one.URL, Size: one.Bytes, InUse: one.InUse, Mutable: true, Created: used, LastUsed: &used, UsageCount: 1})
	}
	return list, err
}

// Drop implements [cache.Other].
func (r repositories) Drop(ctx context.Context, id string) error {
	return r.sources.RemoveRepository(ctx, id)
}

// copies are those of contexts that came from elsewhere.
type copies struct{ mirrors *mirror.Mirrors }

// Kept implements [cache.Other].
func (c copies) Kept(ctx context.Context) (list []cache.Usage, err error) {
	all, err := c.mirrors.Usage(ctx)
	for _, one := range all {
		used := one.LastUsed
		list = append(list, cache.Usage{ID: one.ID, Kind: "source.local", Description: "copy of a build context", Size: one.Bytes, InUse: one.InUse, Mutable: true, Created: used, LastUsed: &used, UsageCount: 1})
	}
	return list, err
}

// Drop implements [cache.Other].
func (c copies) Drop(_ context.Context, id string) error { return c.mirrors.Remove(id) }
