package main

import (
	"log/slog"
	"path/filepath"
	"time"

	"corten.dev/corten/internal/build/cache"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/buildkitapi"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/engine/builds/joined"
	"corten.dev/corten/internal/engine/builds/steps"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/settings"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/version"
)

// building is what builds stand on, of the engine's rooms.
type building struct {
	set     settings.Settings
	trees   snapshot.Store
	store   *image.Images
	images  *images.Service
	nets    *network.Local
	systemd bool
	bus     *events.Bus
	log     *slog.Logger
}

// builders are the service of builds, and its doors' parts.
type builders struct {
	service *joined.Joined
	mirrors *mirror.Mirrors
	door    *buildkitapi.Door
}

// openBuilds joins the build room. What it opens is closed by e.
func (e *engine) openBuilds(b building) (*builders, error) {
	root := filepath.Join(b.set.DataRoot, "builds")
	exec, err := steps.New(background(), steps.Options{
		Root: filepath.Join(b.set.ExecRoot, "steps"), Networks: b.nets, Network: defaultNetwork(b.set), Log: b.log,
		Maker: &hostspec.Maker{Security: hostspec.NewSecurity("", b.log), CgroupParent: b.set.CgroupParent, SystemdCgroup: b.systemd, Ulimits: ulimits(b.set), CDI: hostspec.NewCDI(b.set.CDISpecDirs)},
	})
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, exec.Close)
	out := &builders{}
	if out.mirrors, err = mirror.New(mirror.Options{Root: filepath.Join(root, "mirrors"), Log: b.log}); err != nil {
		return nil, err
	}
	out.service, err = joined.Open(background(), joined.Rooms{
		Root: root, Snapshots: filepath.Join(b.set.DataRoot, "snapshots"), Trees: b.trees, Images: b.store, Bases: images.NewBases(b.images), Executor: exec, Mirrors: out.mirrors,
		Registry: images.NewBuilt(b.images), Places: images.NewCachePlaces(b.images), Entitlements: b.set.Builder.Entitlements.Granted(), Parallelism: b.set.Builder.Parallelism,
		Collection: builds.Collection{Enabled: b.set.Builder.GC.Enabled == nil || *b.set.Builder.GC.Enabled, Rules: buildRules(b.set.Builder.GC)},
		Events:     b.bus, Log: b.log,
	})
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, out.service.Close)
	out.door, err = buildkitapi.New(buildkitapi.Options{Builds: out.service, Mirrors: out.mirrors, Version: version.Version, Logger: b.log})
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, out.door.Close)
	return out, nil
}

// buildRules are the operator's rules, or the usual ones within his bounds, on a disk of some size.
func buildRules(gc settings.BuilderGC) func(disk int64) []builds.PruneOptions {
	return func(disk int64) []builds.PruneOptions {
		var rules []builds.PruneOptions
		for _, r := range gc.Rules() {
			rules = append(rules, builds.PruneOptions{
				All: r.All, Filters: filter.Args(r.Filter), KeepDuration: time.Duration(r.KeepDuration), Reserved: r.Reserved.Of(disk), MaxUsed: r.MaxUsed.Of(disk), MinFree: r.MinFree.Of(disk),
			})
		}
		if len(rules) > 0 {
			return rules
		}
		reserved, used, free := gc.Bounds()
		for i, r := range cache.Rules(disk) {
			rule := builds.PruneOptions(r)
			if i > 0 { // the first is about what is easily made again, with a bound of its own
				for bound, space := range map[*int64]settings.Space{&rule.Reserved: reserved, &rule.MaxUsed: used, &rule.MinFree: free} {
					if space != (settings.Space{}) {
						*bound = space.Of(disk)
					}
				}
			}
			rules = append(rules, rule)
		}
		return rules
	}
}
