package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/show"
)

// diskUsage is the engine's answer in both its forms: grouped since 1.52, flat before.
type diskUsage struct {
	system.DiskUsage
	LayersSize int64
	Images     []image.Summary
	Containers []container.Summary
	Volumes    []volume.Volume
	BuildCache []build.CacheRecord
}

// group fills the grouped form from the flat one where the engine sent only that.
func (d *diskUsage) group() {
	if d.ImageUsage == nil {
		u := &image.DiskUsage{Items: d.Images, TotalCount: int64(len(d.Images)), TotalSize: d.LayersSize}
		var used int64
		for _, i := range d.Images {
			if i.Containers > 0 {
				u.ActiveCount++
				used += i.Size - max(i.SharedSize, 0)
			}
		}
		if u.ActiveCount < u.TotalCount {
			u.Reclaimable = max(d.LayersSize-used, 0)
		}
		d.ImageUsage = u
	}
	if d.ContainerUsage == nil {
		u := &container.DiskUsage{Items: d.Containers, TotalCount: int64(len(d.Containers))}
		for _, c := range d.Containers {
			u.TotalSize += max(c.SizeRw, 0)
			if c.State == container.StateRunning || c.State == container.StatePaused || c.State == container.StateRestarting {
				u.ActiveCount++
			} else {
				u.Reclaimable += max(c.SizeRw, 0)
			}
		}
		d.ContainerUsage = u
	}
	if d.VolumeUsage == nil {
		u := &volume.DiskUsage{Items: d.Volumes, TotalCount: int64(len(d.Volumes))}
		for _, v := range d.Volumes {
			if v.UsageData == nil {
				continue
			}
			size := max(v.UsageData.Size, 0)
			u.TotalSize += size
			if v.UsageData.RefCount > 0 {
				u.ActiveCount++
			} else {
				u.Reclaimable += size
			}
		}
		d.VolumeUsage = u
	}
	if d.BuildCacheUsage == nil {
		u := &build.DiskUsage{Items: d.BuildCache, TotalCount: int64(len(d.BuildCache))}
		for _, c := range d.BuildCache {
			u.TotalSize += c.Size
			if c.InUse {
				u.ActiveCount++
			} else {
				u.Reclaimable += c.Size
			}
		}
		d.BuildCacheUsage = u
	}
}

func newDf() *verb {
	var verbose bool
	var format string
	return &verb{
		use: "[OPTIONS]", short: "Show how much disk images, containers and volumes use", long: "Shows how much disk is used, and how much of it nobody needs.", example: "corten system df\ncorten system df -v",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&verbose, "verbose", "v", false, "list every image, container and volume")
			f.StringVar(&format, "format", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if verbose && format != "" && format != "json" {
				return invalid("--format TEMPLATE and --verbose cannot be used together")
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			var d diskUsage
			if err := api.Get(ctx, "/system/df", query("verbose", flag1(verbose)), &d); err != nil {
				return err
			}
			d.group()
			if verbose && format == "json" {
				return show.Text(a.Out, "json", d.DiskUsage)
			}
			if verbose {
				return d.details(a)
			}
			rows := []any{
				&dfRow{"Images", d.ImageUsage.TotalCount, d.ImageUsage.ActiveCount, d.ImageUsage.TotalSize, d.ImageUsage.Reclaimable},
				&dfRow{"Containers", d.ContainerUsage.TotalCount, d.ContainerUsage.ActiveCount, d.ContainerUsage.TotalSize, d.ContainerUsage.Reclaimable},
				&dfRow{"Local Volumes", d.VolumeUsage.TotalCount, d.VolumeUsage.ActiveCount, d.VolumeUsage.TotalSize, d.VolumeUsage.Reclaimable},
				&dfRow{"Build Cache", d.BuildCacheUsage.TotalCount, d.BuildCacheUsage.ActiveCount, d.BuildCacheUsage.TotalSize, d.BuildCacheUsage.Reclaimable},
			}
			l := show.List{Format: format, Default: "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
				Raw:     "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\nsize: {{.Size}}\nreclaimable: {{.Reclaimable}}\n",
				Headers: show.Headers{"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}}
			return l.Print(a.Out, rows)
		},
	}
}

// dfRow is one kind of thing.
type dfRow struct {
	kind                string
	total, active       int64
	size, reclaimableIn int64
}

func (r *dfRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }
func (r *dfRow) Type() string                 { return r.kind }
func (r *dfRow) TotalCount() string           { return fmt.Sprint(r.total) }
func (r *dfRow) Active() string               { return fmt.Sprint(r.active) }
func (r *dfRow) Size() string                 { return units.HumanSize(float64(r.size)) }

func (r *dfRow) Reclaimable() string {
	s := units.HumanSize(float64(r.reclaimableIn))
	if r.size > 0 && r.kind != "Build Cache" {
		s += fmt.Sprintf(" (%v%%)", r.reclaimableIn*100/r.size)
	}
	return s
}

// details lists everything, in docker's four tables.
func (d *diskUsage) details(a *app) error {
	now := time.Now()
	fmt.Fprint(a.Out, "Images space usage:\n\n")
	var rows []any
	for i := range d.ImageUsage.Items {
		for _, r := range imageRows(&d.ImageUsage.Items[i], false) {
			r.now = now
			rows = append(rows, r)
		}
	}
	h := imageHeaders()
	l := show.List{Default: "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}", Headers: h}
	if err := l.Print(a.Out, rows); err != nil {
		return err
	}
	fmt.Fprint(a.Out, "\nContainers space usage:\n\n")
	rows = nil
	for i := range d.ContainerUsage.Items {
		c := d.ContainerUsage.Items[i]
		c.SizeRootFs = 0 // the layers were counted above
		rows = append(rows, &ctrRow{c: &c, now: now})
	}
	l = show.List{Default: "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}",
		Headers: show.Headers{"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "LocalVolumes": "LOCAL VOLUMES", "Size": "SIZE", "RunningFor": "CREATED", "Status": "STATUS", "Names": "NAMES"}}
	if err := l.Print(a.Out, rows); err != nil {
		return err
	}
	fmt.Fprint(a.Out, "\nLocal Volumes space usage:\n\n")
	rows = nil
	for i := range d.VolumeUsage.Items {
		rows = append(rows, &volRow{&d.VolumeUsage.Items[i]})
	}
	l = show.List{Default: "table {{.Name}}\t{{.Links}}\t{{.Size}}", Headers: volHeaders()}
	if err := l.Print(a.Out, rows); err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "\nBuild cache usage: %s\n\n", units.HumanSize(float64(d.BuildCacheUsage.TotalSize)))
	lines := []string{"CACHE ID\tCACHE TYPE\tSIZE\tCREATED\tLAST USED\tUSAGE\tSHARED"}
	for _, c := range d.BuildCacheUsage.Items {
		used := "Never"
		if c.LastUsedAt != nil {
			used = units.HumanDuration(now.Sub(*c.LastUsedAt)) + " ago"
		}
		lines = append(lines, fmt.Sprintf("%s\t%s\t%s\t%s ago\t%s\t%d\t%t", show.ShortID(c.ID), c.Type, units.HumanSize(float64(c.Size)),
			units.HumanDuration(now.Sub(c.CreatedAt)), used, c.UsageCount, c.Shared))
	}
	return show.Tabs(a.Out, 10, 3, lines)
}
