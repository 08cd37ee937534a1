package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/build"
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
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	return strings.EqualFold(strings.TrimSpace(line), "y"), nil
}

// pruneVerb is a prune command: warn says what will go, by the flags.
func pruneVerb(o *pruneOptions, short, long string, warn func() string, do func(context.Context, *app, *engineapi.Client) (uint64, error)) *verb {
	o.filter = filters{}
	return &verb{
		use: "[OPTIONS]", short: short, long: long, example: "",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.force, "force", "f", false, "do not ask")
			f.Var(o.filter, "filter", "only what fits name=value")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if err := o.settle(a); err != nil {
				return err
			}
			if ok, err := a.confirm(o.force, warn()); err != nil || !ok {
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

// settle adds the filters that docker's config.json has for prune (pruneFilters); for volumes of all kinds and with both forms of a label it is the flag that counts.
func (o *pruneOptions) settle(a *app) error {
	for _, f := range a.config().PruneFilters {
		key, value, _ := strings.Cut(f, "=")
		if key != "label" && key != "label!" {
			return invalid("pruneFilters in config.json: %q: only label and label! are known", f)
		}
		if other := map[string]string{"label": "label!", "label!": "label"}[key]; o.filter[other][value] {
			continue
		}
		if err := o.filter.Set(f); err != nil {
			return err
		}
	}
	if o.volumes && o.filter["until"] != nil {
		return &exitError{code: 1, text: `ERROR: The "until" filter is not supported with "--volumes"`}
	}
	return nil
}

// list names the filters, sorted.
func (f filters) list() (all []string) {
	for name, values := range f {
		for v := range values {
			all = append(all, name+"="+v)
		}
	}
	slices.Sort(all)
	return all
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

func pruneBuilds(ctx context.Context, a *app, api *engineapi.Client, all bool, f filters) (uint64, error) {
	var r build.CachePruneReport
	err := api.Post(ctx, "/build/prune", f.into(query("all", flag1(all))), nil, &r)
	section(a, "Deleted build cache objects", r.CachesDeleted)
	return r.SpaceReclaimed, err
}

func newContainerPrune() *verb {
	o := &pruneOptions{}
	const what = "This will remove all stopped containers."
	return pruneVerb(o, "Remove all stopped containers", what, func() string { return what },
		func(ctx context.Context, a *app, api *engineapi.Client) (uint64, error) {
			return pruneContainers(ctx, a, api, o.filter)
		})
}

func newImagePrune() *verb {
	o := &pruneOptions{}
	v := pruneVerb(o, "Remove images that nobody uses", "Removes images without a name, or with --all, all images that no container stands on, and what is left of broken downloads.",
		func() string {
			if o.all {
				return "This will remove all images without at least one container associated to them."
			}
			return "This will remove all dangling images."
		},
		func(ctx context.Context, a *app, api *engineapi.Client) (uint64, error) {
			return pruneImages(ctx, a, api, o.filter.with("dangling", fmt.Sprint(!o.all)))
		})
	return withAll(v, &o.all, "not only those without a name")
}

func newVolumePrune() *verb {
	o := &pruneOptions{}
	v := pruneVerb(o, "Remove volumes that nobody uses", "Removes volumes without a name of a person's that no container has, or with --all, all that no container has.",
		func() string {
			if o.all {
				return "This will remove all local volumes not used by at least one container."
			}
			return "This will remove anonymous local volumes not used by at least one container."
		},
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
			if err := o.settle(a); err != nil {
				return err
			}
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

// systemWarning lists what `system prune` will remove, in docker's words.
func (o *pruneOptions) systemWarning() string {
	what := []string{"all stopped containers", "all networks not used by at least one container"}
	if o.volumes {
		what = append(what, "all anonymous volumes not used by at least one container")
	}
	if o.all {
		what = append(what, "all images without at least one container associated to them", "all build cache")
	} else {
		what = append(what, "all dangling images", "unused build cache")
	}
	text := "This will remove:\n  - " + strings.Join(what, "\n  - ") + "\n"
	if list := o.filter.list(); len(list) > 0 {
		text += "\n  Items to be pruned will be filtered with:\n  - " + strings.Join(list, "\n  - ") + "\n"
	}
	return text
}

func newSystemPrune() *verb {
	o := &pruneOptions{}
	v := pruneVerb(o, "Remove everything that nobody uses",
		"Removes stopped containers, networks without containers, images without a name (with --all: those without a container), the\nbuild cache, and with --volumes anonymous volumes without containers.",
		o.systemWarning,
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
			if total += n; err != nil {
				return total, err
			}
			n, err = pruneBuilds(ctx, a, api, o.all, o.filter)
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
