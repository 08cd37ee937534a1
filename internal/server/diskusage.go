package server

import (
	"context"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/build"
	wirec "github.com/moby/moby/api/types/container"
	wirei "github.com/moby/moby/api/types/image"
	wire "github.com/moby/moby/api/types/system"
	wirev "github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/engine/system"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/volume"
)

// usageView is system df: by type since 1.52, flat lists until 1.52.
type usageView struct {
	LayersSize  *int64              `json:",omitempty"`
	Images      []imageSummary      `json:",omitzero"`
	Containers  []wirec.Summary     `json:",omitzero"`
	Volumes     []wirev.Volume      `json:",omitzero"`
	BuildCache  []build.CacheRecord `json:",omitzero"`
	BuilderSize *int64              `json:",omitempty"`
	wire.DiskUsage
}

func (s *Server) diskUsage(w http.ResponseWriter, r *request) error {
	want := map[wire.DiskUsageObject]bool{}
	if r.version >= 42 {
		for _, name := range r.query["type"] {
			want[wire.DiskUsageObject(name)] = true
		}
	}
	known := []wire.DiskUsageObject{wire.ContainerObject, wire.ImageObject, wire.VolumeObject, wire.BuildCacheObject}
	if len(want) == 0 {
		for _, object := range known {
			want[object] = true
		}
	}
	n := 0
	for _, object := range known {
		if want[object] {
			n++
		}
	}
	if n != len(want) {
		return errs.New(errs.Invalid, "unknown object type: %v", r.query["type"])
	}
	verbose := r.query.flag("verbose")
	u := usageOf{s: s, version: r.version, items: verbose, flat: r.version < 52 || r.version == 52 && !verbose, typed: r.version >= 52}
	for object, add := range map[wire.DiskUsageObject]func(context.Context, *usageView) error{
		wire.ContainerObject: u.containers, wire.ImageObject: u.images, wire.VolumeObject: u.volumes, wire.BuildCacheObject: u.buildCache,
	} {
		if !want[object] {
			continue
		}
		if err := add(r.Context(), &u.view); err != nil {
			return err
		}
	}
	return ok(w, u.view)
}

// usageOf gathers the parts of one answer.
type usageOf struct {
	s                  *Server
	version            int
	items, flat, typed bool
	view               usageView
}

func (u *usageOf) containers(ctx context.Context, out *usageView) error {
	list, err := u.s.Containers.List(ctx, containers.ListOptions{All: true})
	if err != nil {
		return err
	}
	now := time.Now()
	lines := make([]wirec.Summary, len(list))
	usage := &wirec.DiskUsage{TotalCount: int64(len(list))}
	ids := make([]string, len(list))
	for i, view := range list {
		ids[i] = view.ID
	}
	disk, err := u.s.System.ImageUsage(ctx)
	if err != nil {
		return err
	}
	layers := make(map[digest.Digest]int64, len(disk.Images))
	for _, img := range disk.Images {
		layers[img.ID] = img.Size
	}
	sizes := u.s.System.TreeSizes(ctx, ids)
	for i, view := range list {
		size := max(sizes[i], 0)
		all := size + layers[view.Image]
		view.SizeRw, view.SizeRootFs = &sizes[i], &all
		lines[i] = summary(view, u.version, now)
		usage.TotalSize += size
		if view.State.Status.Live() || view.State.Status == container.Restarting {
			usage.ActiveCount++
		} else {
			usage.Reclaimable += size
		}
	}
	if u.items {
		usage.Items = lines
	}
	if u.flat {
		out.Containers = lines
	}
	if u.typed {
		out.ContainerUsage = usage
	}
	return nil
}

func (u *usageOf) images(ctx context.Context, out *usageView) error {
	list, err := u.s.Images.List(ctx, images.ListOptions{All: true})
	if err != nil {
		return err
	}
	disk, err := u.s.System.ImageUsage(ctx)
	if err != nil {
		return err
	}
	shared := make(map[string]int64, len(disk.Images))
	for _, img := range disk.Images {
		shared[img.ID.String()] = img.Shared
	}
	all, reclaimable := system.ImageBytes(disk)
	lines := make([]imageSummary, len(list))
	usage := &wirei.DiskUsage{TotalCount: int64(len(list)), TotalSize: all, Reclaimable: reclaimable}
	for i, img := range list {
		lines[i] = imageLine(img, shared, u.version)
		lines[i].Containers = int64(img.Containers)
		if img.Containers > 0 {
			usage.ActiveCount++
		}
		if u.items {
			usage.Items = append(usage.Items, lines[i].Summary)
		}
	}
	if u.flat {
		out.Images, out.LayersSize = lines, &all
	}
	if u.typed {
		out.ImageUsage = usage
	}
	return nil
}

func (u *usageOf) volumes(ctx context.Context, out *usageView) error {
	list, _, err := u.s.Volumes.List(ctx, filter.Args{"driver": {volume.LocalDriver}}) // as Docker does: what plugins keep takes no room here
	if err != nil {
		return err
	}
	lines := make([]wirev.Volume, len(list))
	usage := &wirev.DiskUsage{TotalCount: int64(len(list))}
	names := make([]string, len(list))
	for i, vol := range list {
		names[i] = vol.Name
	}
	sizes := u.s.System.VolumeSizes(ctx, names)
	for i, vol := range list {
		size, users := sizes[i], u.s.Volumes.Users(vol.Name)
		lines[i] = fromVolume(vol)
		lines[i].UsageData = &wirev.UsageData{Size: size, RefCount: int64(users)}
		usage.TotalSize += max(size, 0)
		if users > 0 {
			usage.ActiveCount++
		} else {
			usage.Reclaimable += max(size, 0)
		}
	}
	if u.items {
		usage.Items = lines
	}
	if u.flat {
		out.Volumes = lines
	}
	if u.typed {
		out.VolumeUsage = usage
	}
	return nil
}

// buildCache is what builds keep.
func (u *usageOf) buildCache(ctx context.Context, out *usageView) error {
	var list []builds.UsageRecord
	if u.s.Builds != nil {
		var err error
		if list, err = u.s.Builds.DiskUsage(ctx, nil); err != nil {
			return err
		}
	}
	items := make([]build.CacheRecord, 0, len(list))
	sum := build.DiskUsage{TotalCount: int64(len(list))}
	for i := range list {
		rec := &list[i]
		items = append(items, build.CacheRecord{
			ID: rec.ID, Parents: rec.Parents, Type: rec.Kind, Description: rec.Description, InUse: rec.InUse, Shared: rec.Shared, Size: rec.Size,
			CreatedAt: rec.Created, LastUsedAt: rec.LastUsed, UsageCount: rec.UsageCount,
		})
		sum.TotalSize += rec.Size
		if rec.InUse {
			sum.ActiveCount++
		} else if !rec.Shared {
			sum.Reclaimable += rec.Size
		}
	}
	if u.flat {
		out.BuildCache = items
	}
	if u.version < 42 {
		out.BuilderSize = &sum.TotalSize
	}
	if u.typed {
		if u.items {
			sum.Items = items
		}
		out.BuildCacheUsage = &sum
	}
	return nil
}
