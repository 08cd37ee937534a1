package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
)

const usageFormat = "table {{.ID}}\t{{.Reclaimable}}\t{{.Size}}\t{{.LastUsedAt}}"

func usageHeaders() show.Headers {
	return show.Headers{"ID": "ID", "Reclaimable": "RECLAIMABLE", "Size": "SIZE", "LastUsedAt": "LAST ACCESSED", "Parents": "PARENTS", "CreatedAt": "CREATED AT", "Mutable": "MUTABLE",
		"Shared": "SHARED", "Description": "DESCRIPTION", "UsageCount": "USAGE COUNT", "Type": "TYPE"}
}

func newBuildxDu() *verb {
	var o struct {
		filter  filters
		verbose bool
		format  string
	}
	o.filter = filters{}
	var builder string
	return &verb{
		use: "[OPTIONS]", short: "Show what the cache of builds takes",
		long:    "Lists the kept results of steps and the cache mounts. A * after the ID marks what can still change, one after the size what\nothers stand on.",
		example: "corten buildx du\ncorten buildx du --verbose\ncorten buildx du --filter type=exec.cachemount --format json",
		flags: func(f *pflag.FlagSet) {
			f.Var(o.filter, "filter", "show only what fits name=value: id, type, parent, description, inuse, mutable, immutable, shared, private, until")
			f.BoolVar(&o.verbose, "verbose", false, "show everything that is known")
			f.StringVar(&o.format, "format", "", formatUsage)
			f.StringVar(&builder, "builder", "", "only the engine itself is there: default")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if err := onlyBuilder(builder); err != nil {
				return err
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			var list []buildwire.Usage
			if err := api.Get(ctx, buildwire.UsagePath, o.filter.into(query()), &list); err != nil {
				return err
			}
			slices.SortStableFunc(list, func(x, y buildwire.Usage) int {
				if x.LastUsed == nil || y.LastUsed == nil {
					return x.Created.Compare(y.Created)
				}
				return x.LastUsed.Compare(*y.LastUsed)
			})
			now := time.Now()
			if o.verbose {
				for i := range list {
					if err := usageText(a.Out, &list[i], now); err != nil {
						return err
					}
				}
				return usageSum(a.Out, list)
			}
			var rows []any
			for i := range list {
				rows = append(rows, &usageRow{&list[i], now})
			}
			l := show.List{Format: o.format, Default: usageFormat, Headers: usageHeaders()}
			if err := l.Print(a.Out, rows); err != nil || o.format != "" && !strings.HasPrefix(o.format, "table") {
				return err
			}
			return usageSum(a.Out, list)
		},
	}
}

// onlyBuilder refuses to build elsewhere than in the engine.
func onlyBuilder(name string) error {
	if name == "" || name == "default" || name == "corten" {
		return nil
	}
	return &exitError{code: 1, text: fmt.Sprintf("ERROR: no builder %q found: the engine builds by itself; choose another engine by --host or --context", name)}
}

// usageRow is a line of du and of prune.
type usageRow struct {
	u   *buildwire.Usage
	now time.Time
}

func (r *usageRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }

func (r *usageRow) ID() string {
	if r.u.Mutable {
		return r.u.ID + "*"
	}
	return r.u.ID
}

func (r *usageRow) Size() string {
	s := units.HumanSize(float64(r.u.Size))
	if r.u.Shared {
		s += "*"
	}
	return s
}

func (r *usageRow) LastUsedAt() string {
	if r.u.LastUsed == nil {
		return ""
	}
	return units.HumanDuration(r.now.Sub(*r.u.LastUsed)) + " ago"
}

func (r *usageRow) Reclaimable() bool   { return !r.u.InUse }
func (r *usageRow) Parents() []string   { return r.u.Parents }
func (r *usageRow) CreatedAt() string   { return r.u.Created.String() }
func (r *usageRow) Mutable() bool       { return r.u.Mutable }
func (r *usageRow) Shared() bool        { return r.u.Shared }
func (r *usageRow) Description() string { return r.u.Description }
func (r *usageRow) UsageCount() int     { return r.u.UsageCount }
func (r *usageRow) Type() string        { return r.u.Kind }

// usageText is one record of du --verbose.
func usageText(w io.Writer, u *buildwire.Usage, now time.Time) error {
	r := &usageRow{u, now}
	lines := []string{"ID:\t" + u.ID}
	if len(u.Parents) > 0 {
		lines = append(lines, "Parents:\t"+strings.Join(u.Parents, "\n\t"))
	}
	lines = append(lines, "Created at:\t"+u.Created.String(), fmt.Sprintf("Mutable:\t%v", u.Mutable), fmt.Sprintf("Reclaimable:\t%v", !u.InUse), fmt.Sprintf("Shared:\t%v", u.Shared),
		"Size:\t"+units.HumanSize(float64(u.Size)))
	if u.Description != "" {
		lines = append(lines, "Description:\t"+u.Description)
	}
	lines = append(lines, fmt.Sprintf("Usage count:\t%d", u.UsageCount))
	if u.LastUsed != nil {
		lines = append(lines, "Last used:\t"+r.LastUsedAt())
	}
	if u.Kind != "" {
		lines = append(lines, "Type:\t"+u.Kind)
	}
	return tabbed(w, append(lines, ""))
}

// usageSum is the end of du.
func usageSum(w io.Writer, list []buildwire.Usage) error {
	var shared, private, reclaimable, total int64
	for i := range list {
		u := &list[i]
		total += u.Size
		if u.Shared {
			shared += u.Size
		} else {
			private += u.Size
		}
		if !u.InUse {
			reclaimable += u.Size
		}
	}
	var lines []string
	if shared > 0 {
		lines = append(lines, "Shared:\t"+units.HumanSize(float64(shared)), "Private:\t"+units.HumanSize(float64(private)))
	}
	return tabbed(w, append(lines, "Reclaimable:\t"+units.HumanSize(float64(reclaimable)), "Total:\t"+units.HumanSize(float64(total))))
}

// tabbed writes lines with buildx's tabs.
func tabbed(w io.Writer, lines []string) error {
	tw := tabwriter.NewWriter(w, 1, 8, 1, '\t', 0)
	for _, l := range lines {
		if _, err := fmt.Fprintln(tw, l); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// cachePrune are the flags of both prunes of the cache.
type cachePrune struct {
	all, force, verbose        bool
	filter                     filters
	reserved, maxUsed, minFree string
	builder                    string
	keepStorage                string
	reservedN, maxUsedN, freeN int64
}

func (o *cachePrune) register(f *pflag.FlagSet) {
	f.BoolVarP(&o.all, "all", "a", false, "also what the engine itself made for builds")
	f.BoolVarP(&o.force, "force", "f", false, "do not ask")
	f.Var(o.filter, "filter", "only what fits name=value, such as until=24h")
	f.StringVar(&o.reserved, "reserved-space", "", "keep at least so much of the cache")
	f.StringVar(&o.keepStorage, "keep-storage", "", "same as --reserved-space")
	f.StringVar(&o.maxUsed, "max-used-space", "", "keep at most so much of the cache")
	f.StringVar(&o.minFree, "min-free-space", "", "go on until so much of the disk is free")
	f.MarkHidden("keep-storage")
}

func (o *cachePrune) settle() error {
	if o.keepStorage != "" && o.reserved == "" {
		o.reserved = o.keepStorage
	}
	for _, b := range []struct {
		flag, text string
		n          *int64
	}{{"reserved-space", o.reserved, &o.reservedN}, {"max-used-space", o.maxUsed, &o.maxUsedN}, {"min-free-space", o.minFree, &o.freeN}} {
		if b.text == "" {
			continue
		}
		n, err := units.RAMInBytes(b.text)
		if err != nil {
			return invalid("invalid argument %q for \"--%s\" flag: %w", b.text, b.flag, err)
		}
		*b.n = n
	}
	return onlyBuilder(o.builder)
}

func (o *cachePrune) warning() string {
	if o.all {
		return "This will remove all build cache."
	}
	return "This will remove all dangling build cache."
}

// prune asks for it, and has each record told as it goes.
func (o *cachePrune) prune(ctx context.Context, a *app, each func(*buildwire.Usage) error) (space int64, err error) {
	api, err := a.engine()
	if err != nil {
		return 0, err
	}
	in := buildwire.Prune{All: o.all, Filters: map[string]map[string]bool{}, Reserved: o.reservedN, MaxUsed: o.maxUsedN, MinFree: o.freeN}
	for name, values := range o.filter {
		in.Filters[name] = values
	}
	resp, err := api.Do(ctx, engineapi.Request{Method: "POST", Path: buildwire.PrunePath, In: in})
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var p buildwire.Pruned
		if err := dec.Decode(&p); err != nil {
			return space, fmt.Errorf("read the answer to the prune: %w", err)
		}
		switch {
		case p.Record != nil:
			if err := each(p.Record); err != nil {
				return space, err
			}
		case p.Error != nil:
			return p.Space, p.Error
		case p.Done:
			return p.Space, nil
		}
	}
}

func newBuilderPrune() *verb {
	o := &cachePrune{filter: filters{}}
	return &verb{
		use: "[OPTIONS]", short: "Remove build cache that nobody uses", long: "Removes kept results of steps and cache mounts. Running builds and images lose nothing by it.",
		example: "corten builder prune\ncorten builder prune -af --filter until=48h",
		flags:   o.register,
		run: func(ctx context.Context, a *app, args []string) error {
			if err := o.settle(); err != nil {
				return err
			}
			if ok, err := a.confirm(o.force, o.warning()); err != nil || !ok {
				return err
			}
			var gone []string
			space, err := o.prune(ctx, a, func(u *buildwire.Usage) error { gone = append(gone, u.ID); return nil })
			section(a, "Deleted build cache objects", gone) // those before an error have gone, too
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, "Total reclaimed space:", units.HumanSize(float64(space)))
			return nil
		},
	}
}

func newBuildxPrune() *verb {
	o := &cachePrune{filter: filters{}}
	return &verb{
		use: "[OPTIONS]", short: "Remove build cache that nobody uses", long: "Removes kept results of steps and cache mounts, and lists what went. Running builds and images lose nothing by it.",
		example: "corten buildx prune\ncorten buildx prune -f --max-used-space 20GB",
		flags: func(f *pflag.FlagSet) {
			o.register(f)
			f.BoolVar(&o.verbose, "verbose", false, "show everything that is known of what went")
			f.StringVar(&o.builder, "builder", "", "only the engine itself is there: default")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if err := o.settle(); err != nil {
				return err
			}
			if ok, err := a.confirm(o.force, o.warning()); err != nil || !ok {
				return err
			}
			return o.list(ctx, a)
		},
	}
}

// list prints what goes, as it goes: the columns are as wide as du's usually are.
func (o *cachePrune) list(ctx context.Context, a *app) error {
	now := time.Now()
	tw := tabwriter.NewWriter(a.Out, 1, 8, 1, '\t', 0)
	first := true
	space, err := o.prune(ctx, a, func(u *buildwire.Usage) error {
		if o.verbose {
			return usageText(a.Out, u, now)
		}
		if first {
			first = false
			fmt.Fprintln(tw, "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED")
		}
		r := &usageRow{u, now}
		_, err := fmt.Fprintf(tw, "%-40s\t%-5v\t%-10s\t%s\n", r.ID(), r.Reclaimable(), r.Size(), r.LastUsedAt())
		return err
	})
	if ferr := tw.Flush(); err == nil {
		err = ferr
	}
	if err != nil {
		return err
	}
	return tabbed(a.Out, []string{"Total:\t" + units.HumanSize(float64(space))})
}
