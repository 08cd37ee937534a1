// Package joined puts the parts of the build room together, over the rooms of the engine, and gives the service.
//
// It owns nothing. It holds no logic but the seams: what one part calls otherwise than another gives it. It promises: what was opened is closed in the reverse order; a part that does not open
// leaves the others closed.
//
//	source ─┐
//	ops ────┼─▶ solver ─▶ service ─▶ doors
//	step ───┤     │
//	cache ──┘     └─▶ export
package joined

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/cache"
	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/build/export"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/build/ops"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/build/source"
	"corten.dev/corten/internal/build/source/base"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/build/travel"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
)

// Rooms are what builds stand on.
type Rooms struct {
	// Root is <data-root>/builds.
	Root string
	// Snapshots is the folder of Trees.
	Snapshots    string
	Trees        snapshot.Store
	Images       Images
	Bases        base.Images
	Executor     step.Executor
	Registry     export.Registry // nil: nothing is pushed
	Places       travel.Places   // nil: caches are neither imported nor exported
	Entitlements []string
	Parallelism  int
	Mirrors      *mirror.Mirrors // of contexts that come from elsewhere; nil: none do
	Collection   builds.Collection
	Events       *events.Bus
	Log          *slog.Logger
}

// Images is what builds need of the image room.
type Images interface {
	export.Images
	cache.Images
}

// Joined is the service, and what it stands on.
type Joined struct {
	*builds.Service
	closers []func() error
}

// Open opens the parts.
func Open(ctx context.Context, rooms Rooms) (_ *Joined, err error) {
	j := &Joined{}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.Close())
		}
	}()
	if err := os.MkdirAll(rooms.Root, 0o700); err != nil {
		return nil, err
	}
	kept, err := cache.Open(ctx, cache.Options{Root: filepath.Join(rooms.Root, "cache"), Layers: rooms.Trees, Images: rooms.Images, Trees: rooms.Snapshots, Log: rooms.Log})
	if err != nil {
		return nil, err
	}
	j.closers = append(j.closers, kept.Close)
	sums, err := checksum.New(checksum.Options{Dir: filepath.Join(rooms.Root, "checksums"), Trees: rooms.Trees, Log: rooms.Log})
	if err != nil {
		return nil, err
	}
	j.closers = append(j.closers, func() error { return sums.Close() })
	files, err := ops.New(ctx, ops.Options{Trees: rooms.Trees, Sums: sums, Log: rooms.Log})
	if err != nil {
		return nil, err
	}
	steps, err := step.New(ctx, step.Options{
		Executor: rooms.Executor, Trees: rooms.Trees, Caches: kept, Checksums: files, Layers: layers(files), Cache: kept, Hold: kept.Pin, Log: rooms.Log,
	})
	if err != nil {
		return nil, err
	}
	sources, err := source.New(source.Options{Root: filepath.Join(rooms.Root, "sources"), Images: rooms.Bases, Layers: rooms.Trees, Cache: kept, Log: rooms.Log})
	if err != nil {
		return nil, err
	}
	j.closers = append(j.closers, sources.Close)
	kept.Join(repositories{sources})
	if rooms.Mirrors != nil {
		kept.Join(copies{rooms.Mirrors})
	}
	solver := solve.New(solve.Options{
		Cache: kept, Trees: rooms.Trees, Hold: kept.Pin, Parallelism: rooms.Parallelism, Log: rooms.Log,
		Make: solve.Makers{Source: sources.Make, Exec: steps.Make, File: files.File, Merge: files.Merge, Diff: files.Diff},
	})
	host := step.Platforms()[0]
	exporter := &export.Exporter{
		Log:    rooms.Log,
		Images: rooms.Images, Trees: rooms.Trees, Registry: rooms.Registry, Records: kept, Platform: manifest.Platform{OS: host.OS, Arch: host.Architecture, Variant: host.Variant},
	}
	opts := builds.Options{
		Root: rooms.Root, Solver: solver, Trees: rooms.Trees, Export: exporter, Records: records{kept}, Steps: programs{steps},
		Sources:   func(sessions builds.Sessions) frontend.Sources { return sources.For(sessions) },
		Platforms: step.Platforms, Entitlements: rooms.Entitlements, Collection: rooms.Collection, Events: rooms.Events, Log: rooms.Log,
	}
	if rooms.Places != nil {
		opts.Caches = travel.New(travel.Options{Places: rooms.Places, Images: rooms.Images, Trees: rooms.Trees, Cache: kept, Mounts: kept, Log: rooms.Log})
	}
	j.Service, err = builds.New(opts)
	if err != nil {
		return nil, err
	}
	j.closers = append(j.closers, j.Service.Close)
	return j, nil
}

// records gives the service's words to the cache.
type records struct{ *cache.Cache }

func (r records) Usage(ctx context.Context, filters filter.Args) ([]builds.UsageRecord, error) {
	all, err := r.Cache.Usage(ctx, filters)
	list := make([]builds.UsageRecord, len(all))
	for i, u := range all {
		list[i] = builds.UsageRecord(u)
	}
	return list, err
}

func (r records) Prune(ctx context.Context, opts builds.PruneOptions, each func(builds.UsageRecord)) (int64, error) {
	return r.Cache.Prune(ctx, cache.PruneOptions(opts), func(u cache.Usage) {
		if each != nil {
			each(builds.UsageRecord(u))
		}
	})
}

// Close closes the parts.
func (j *Joined) Close() error {
	var all []error
	for i := len(j.closers) - 1; i >= 0; i-- {
		all = append(all, j.closers[i]())
	}
	j.closers = nil
	return errors.Join(all...)
}

// layers makes layers of a part of a build context that is to be mounted.
func layers(files *ops.Ops) func(context.Context, build.Env, build.Output, string) (snapshot.ChainID, error) {
	return func(ctx context.Context, _ build.Env, in build.Output, path string) (snapshot.ChainID, error) {
		out, _, err := files.Tree(ctx, in.Files, pick.Selection{Path: path, Follow: true})
		return out.Chain, err
	}
}
