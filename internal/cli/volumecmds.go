package cli

import (
	"context"
	"fmt"
	"sort"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/parse"
	"corten.dev/corten/internal/cli/show"
)

func newVolumeCreate() *verb {
	var name, driver string
	var labels, opts []string
	var cluster clusterFlags
	v := &verb{
		use: "[OPTIONS] [VOLUME]", max: 1, short: "Make a volume", long: "Makes a named volume, or one with a random name, and prints the name. An existing one stays as it is.",
		example: "corten volume create data\ncorten volume create --label app=db -o size=10G data\ncorten volume create -o type=nfs -o device=files:/export -o o=vers=4.2,soft shared",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&driver, "driver", "d", "local", "volume driver")
			f.StringVar(&name, "name", "", "name of the volume")
			f.MarkHidden("name")
			list(f, &labels, "label", "", "add a label, name[=value]")
			list(f, &opts, "opt", "o", "option for the driver, name=value (size=10G; or type, device and o, as of a mount)")
			cluster.register(f)
		},
	}
	v.run = func(ctx context.Context, a *app, args []string) error {
		if len(args) == 1 {
			if name != "" {
				return invalid("conflicting options: cannot specify a volume-name through both --name and as a positional arg")
			}
			name = args[0]
		}
		if err := checkLabels("--label", labels); err != nil {
			return err
		}
		spec, err := cluster.spec(v)
		if err != nil {
			return err
		}
		api, err := a.engine()
		if err != nil {
			return err
		}
		var vol volume.Volume
		req := volume.CreateRequest{Name: name, Driver: driver, DriverOpts: parse.Map(opts), Labels: parse.Map(labels), ClusterVolumeSpec: spec}
		if err := api.Post(ctx, "/volumes/create", nil, req, &vol); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, vol.Name)
		return nil
	}
	return v
}

func newVolumeLs() *verb {
	f := filters{}
	var quiet bool
	var format string
	return &verb{
		use: "[OPTIONS]", short: "List volumes", long: "Lists the volumes of the engine.", example: "corten volume ls --filter dangling=true",
		flags: func(fs *pflag.FlagSet) {
			fs.VarP(f, "filter", "f", "show only what fits name=value")
			fs.BoolVarP(&quiet, "quiet", "q", false, "print names only")
			fs.StringVar(&format, "format", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			if format == "" && !quiet {
				format = a.cfg.VolumesFormat
			}
			var res struct{ Volumes []volume.Volume }
			if err := api.Get(ctx, "/volumes", f.into(query()), &res); err != nil {
				return err
			}
			sort.Slice(res.Volumes, func(i, j int) bool { return naturalLess(res.Volumes[i].Name, res.Volumes[j].Name) })
			rows := make([]any, len(res.Volumes))
			for i := range res.Volumes {
				rows[i] = &volRow{&res.Volumes[i]}
			}
			l := show.List{Format: format, Default: "table {{.Driver}}\t{{.Name}}", Quiet: "{{.Name}}", IsQuiet: quiet, Headers: volHeaders(),
				Raw: "name: {{.Name}}\ndriver: {{.Driver}}\n", QuietRaw: "name: {{.Name}}"}
			return l.Print(a.Out, rows)
		},
	}
}

func volHeaders() show.Headers {
	return show.Headers{"Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Availability": "AVAILABILITY", "Mountpoint": "MOUNTPOINT",
		"Labels": "LABELS", "Links": "LINKS", "Size": "SIZE", "Group": "GROUP", "Status": "STATUS"}
}

type volRow struct{ v *volume.Volume }

func (r *volRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }
func (r *volRow) Name() string                 { return r.v.Name }
func (r *volRow) Driver() string               { return r.v.Driver }
func (r *volRow) Scope() string                { return r.v.Scope }
func (r *volRow) Mountpoint() string           { return r.v.Mountpoint }
func (r *volRow) Labels() string               { return show.Labels(r.v.Labels) }

// Label is the value of one label.
func (r *volRow) Label(name string) string { return r.v.Labels[name] }

func (r *volRow) Links() string {
	if r.v.UsageData == nil {
		return "N/A"
	}
	return fmt.Sprint(r.v.UsageData.RefCount)
}

func (r *volRow) Size() string {
	if r.v.UsageData == nil || r.v.UsageData.Size < 0 { // not asked, or not counted yet
		return "N/A"
	}
	return units.HumanSize(float64(r.v.UsageData.Size))
}

// Group, Availability and Status are for cluster volumes, which come later.
func (r *volRow) Group() string        { return "N/A" }
func (r *volRow) Availability() string { return "N/A" }
func (r *volRow) Status() string       { return "N/A" }

func newVolumeRm() *verb {
	var force bool
	v := &verb{
		use: "[OPTIONS] VOLUME [VOLUME...]", short: "Remove volumes", names: volumes, long: "Removes volumes that no container uses, with all that is in them.", example: "corten volume rm data",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&force, "force", "f", false, "do not mind volumes that do not exist")
		},
	}
	return removal(v, goner{noun: "volume", abreast: mostAbreast}, &force, func(name string) engineapi.Request {
		return engineapi.Request{Method: "DELETE", Path: "/volumes/" + esc(name), Query: query("force", flag1(force))}
	})
}
