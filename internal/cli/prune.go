package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
)

// pruneOptions are the flags of all prune verbs; each uses what it registers.
type pruneOptions struct {
	force, all, volumes bool
	filter              filters
}

// confirm asks on the terminal. Anything but y is no.
func (a *app) confirm(force bool, warning string) (bool, error) {
	if force {
		return true, nil
	}
	fmt.Fprintf(a.Out, "WARNING! %s\nAre you sure you want to continue? [y/N] ", warning)
	line, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && line == "" {
		return false, &exitError{code: 1, text: "Error: prompt terminated"}
	}
	return strings.EqualFold(strings.TrimSpace(line), "y"), nil
}

func pruneVerb(o *pruneOptions, short, warning string, do func(context.Context, *app, *engineapi.Client) (uint64, error)) *verb {
	o.filter = filters{}
	return &verb{
		use: "[OPTIONS]", short: short, long: warning, example: "",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.force, "force", "f", false, "do not ask")
			f.Var(o.filter, "filter", "only what fits name=value")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if ok, err := a.confirm(o.force, warning); err != nil || !ok {
				return err
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			freed, err := do(ctx, a, api)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, "Total reclaimed space:", units.HumanSize(float64(freed)))
			return nil
		},
	}
}

// section prints what was removed under a heading.
func section(a *app, heading string, names []string) {
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(a.Out, "%s:\n%s\n\n", heading, strings.Join(names, "\n"))
}

func pruneContainers(ctx context.Context, a *app, api *engineapi.Client, f filters) (uint64, error) {
	var r container.PruneReport
	err := api.Post(ctx, "/containers/prune", f.into(query()), nil, &r)
	section(a, "Deleted Containers", r.ContainersDeleted)
	return r.SpaceReclaimed, err
}

func pruneVolumes(ctx context.Context, a *app, api *engineapi.Client, f filters) (uint64, error) {
	var r volume.PruneReport
	err := api.Post(ctx, "/volumes/prune", f.into(query()), nil, &r)
	section(a, "Deleted Volumes", r.VolumesDeleted)
	return r.SpaceReclaimed, err
}

func pruneNetworks(ctx context.Context, a *app, api *engineapi.Client, f filters) error {
	var r network.PruneReport
	err := api.Post(ctx, "/networks/prune", f.into(query()), nil, &r)
	section(a, "Deleted Networks", r.NetworksDeleted)
	return err
}

func pruneImages(ctx context.Context, a *app, api *engineapi.Client, f filters) (uint64, error) {
	var r image.PruneReport
	err := api.Post(ctx, "/images/prune", f.into(query()), nil, &r)
	var lines []string
	for _, d := range r.ImagesDeleted {
		if d.Untagged != "" {
			lines = append(lines, "untagged: "+d.Untagged)
		} else {
			lines = append(lines, "deleted: "+d.Deleted)
		}
	}
	section(a, "Deleted Images", lines)
	return r.SpaceReclaimed, err
}

// with adds a filter to a copy, unless the user set it.
func (f filters) with(name, value string) filters {
	out := filters{}
	for k, v := range f {
		out[k] = v
	}
	if out[name] == nil {
		out[name] = map[string]bool{value: true}
	}
	return out
}

func newContainerPrune() *verb {
	o := &pruneOptions{}
	return pruneVerb(o, "Remove all stopped containers", "This will remove all stopped containers.",
		func(ctx context.Context, a *app, api *engineapi.Client) (uint64, error) {
			return pruneContainers(ctx, a, api, o.filter)
		})
}

func newImagePrune() *verb {
	o := &pruneOptions{}
	v := pruneVerb(o, "Remove images that nobody uses", "This will remove all dangling images.",
		func(ctx context.Context, a *app, api *engineapi.Client) (uint64, error) {
			return pruneImages(ctx, a, api, o.filter.with("dangling", fmt.Sprint(!o.all)))
		})
	return withAll(v, &o.all, "not only those without a name")
}

func newVolumePrune() *verb {
	o := &pruneOptions{}
	v := pruneVerb(o, "Remove volumes that nobody uses", "This will remove anonymous local volumes not used by at least one container.",
		func(ctx context.Context, a *app, api *engineapi.Client) (uint64, error) {
			f := o.filter
			if o.all {
				f = f.with("all", "1")
			}
			return pruneVolumes(ctx, a, api, f)
		})
	return withAll(v, &o.all, "named ones, too")
}

func withAll(v *verb, all *bool, usage string) *verb {
	flags := v.flags
	v.flags = func(f *pflag.FlagSet) {
		flags(f)
		f.BoolVarP(all, "all", "a", false, usage)
	}
	return v
}

func newNetworkPrune() *verb {
	o := &pruneOptions{filter: filters{}}
	return &verb{
		use: "[OPTIONS]", short: "Remove networks that nobody uses", long: "Removes all networks of yours that no container is part of.",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.force, "force", "f", false, "do not ask")
			f.Var(o.filter, "filter", "only what fits name=value")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			ok, err := a.confirm(o.force, "This will remove all custom networks not used by at least one container.")
			if err != nil || !ok {
				return err
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			return pruneNetworks(ctx, a, api, o.filter)
		},
	}
}

func newSystemPrune() *verb {
	o := &pruneOptions{}
	v := pruneVerb(o, "Remove everything that nobody uses", "This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n  - all dangling images (with --all: all images without a container)\n  - with --volumes: all anonymous volumes not used by at least one container\n",
		func(ctx context.Context, a *app, api *engineapi.Client) (uint64, error) {
			total, err := pruneContainers(ctx, a, api, o.filter)
			if err != nil {
				return 0, err
			}
			if err := pruneNetworks(ctx, a, api, o.filter); err != nil {
				return 0, err
			}
			if o.volumes {
				n, err := pruneVolumes(ctx, a, api, o.filter)
				if err != nil {
					return 0, err
				}
				total += n
			}
			n, err := pruneImages(ctx, a, api, o.filter.with("dangling", fmt.Sprint(!o.all)))
			return total + n, err
		})
	flags := v.flags
	v.flags = func(f *pflag.FlagSet) {
		flags(f)
		f.BoolVarP(&o.all, "all", "a", false, "all images without a container, not only those without a name")
		f.BoolVar(&o.volumes, "volumes", false, "anonymous volumes, too")
	}
	return v
}
