package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/parse"
	"corten.dev/corten/internal/cli/show"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/plugin"
	"corten.dev/corten/internal/volume/driver"
	voldriver "corten.dev/corten/internal/volume/remote"
)

// driverID is whom a mount is for when nobody says.
const driverID = "corten-volume-driver"

// driverFlags choose a plugin. The engine has no part in it: its flag of the same name, --plugin-dir, is another program's.
type driverFlags struct {
	name string
	dirs []string
}

func (d *driverFlags) add(f *pflag.FlagSet) {
	f.StringVarP(&d.name, "driver", "d", "", "name of the volume plugin")
	list(f, &d.dirs, "plugin-dir", "", "folder in which plugins are looked for, instead of the usual ones; may be given several times")
}

// open makes the driver. The volume's name, if there is one, is checked here: no plugin needs to see what can be none.
func (d *driverFlags) open(a *app, names ...string) (*voldriver.Driver, error) {
	if d.name == "" {
		return nil, invalid("which driver? name one with --driver")
	}
	for _, name := range names {
		if err := driver.CheckName(name); err != nil {
			return nil, err
		}
	}
	dirs := d.dirs
	if len(dirs) == 0 {
		dirs = plugin.Folders("/run/corten")
	}
	return voldriver.New(plugin.New(plugin.Options{Folders: dirs, Warn: func(name string, err error) {
		fmt.Fprintf(a.Err, "waiting for plugin %s: %v\n", name, err)
	}}), d.name)
}

const driverLong = " The plugin is called by this command itself: no engine is needed, and a running one is not told."

func newDriverCreate() *verb {
	var d driverFlags
	var opts []string
	return &verb{
		use: "[OPTIONS] VOLUME", min: 1, max: 1, short: "Make a volume in a plugin", long: "Has a volume plugin make a volume, and prints its name." + driverLong,
		example: "corten volume driver create --driver sshfs -o sshcmd=me@host:/srv data",
		flags: func(f *pflag.FlagSet) {
			d.add(f)
			list(f, &opts, "opt", "o", "option for the plugin, name=value")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			drv, err := d.open(a, args...)
			if err == nil {
				err = drv.Create(ctx, args[0], parse.Map(opts))
			}
			if err == nil {
				fmt.Fprintln(a.Out, args[0])
			}
			return err
		},
	}
}

func newDriverRemove() *verb {
	var d driverFlags
	return &verb{
		use: "[OPTIONS] VOLUME [VOLUME...]", min: 1, max: -1, short: "Remove volumes from a plugin", long: "Has a volume plugin remove volumes, with all that is in them." + driverLong,
		example: "corten volume driver remove --driver sshfs data", flags: d.add,
		run: func(ctx context.Context, a *app, args []string) error {
			drv, err := d.open(a, args...)
			if err != nil {
				return err
			}
			var all []error
			for _, name := range args {
				if err := drv.Remove(ctx, name); err != nil {
					all = append(all, fmt.Errorf("remove %s: %w", name, err))
					continue
				}
				fmt.Fprintln(a.Out, name)
			}
			return errors.Join(all...)
		},
	}
}

func newDriverMount() *verb {
	var d driverFlags
	var opts []string
	var id string
	var existing bool
	return &verb{
		use: "[OPTIONS] VOLUME", min: 1, max: 1, short: "Mount a volume of a plugin",
		long: "Has a volume plugin mount a volume on this host, and prints where. One that does not exist is made first, with the options given. It stays mounted until \"unmount\" with the same id." + driverLong,
		example: "dir=$(corten volume driver mount --driver sshfs data)\n" +
			"corten volume driver mount --driver nfs -o share=host:/srv --id backup data",
		flags: func(f *pflag.FlagSet) {
			d.add(f)
			f.StringVar(&id, "id", driverID, "whom the mount is for; the plugin counts ids")
			f.BoolVar(&existing, "existing", false, "refuse a volume that does not exist")
			list(f, &opts, "opt", "o", "option for a volume that is made, name=value")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			drv, err := d.open(a, args...)
			if err != nil {
				return err
			}
			name := args[0]
			if !existing {
				if _, err := drv.Get(ctx, name); err != nil { // it may also be away: then Create waits for it
					if err := drv.Create(ctx, name, parse.Map(opts)); err != nil {
						return fmt.Errorf("create %s: %w", name, err)
					}
				}
			}
			path, err := drv.Mount(ctx, name, id)
			if errors.Is(err, driver.Uncertain) { // nobody will come back for it
				if uerr := drv.Unmount(context.WithoutCancel(ctx), name, id); uerr != nil {
					err = fmt.Errorf("%w; it may be mounted: %w", err, uerr)
				}
			}
			if err != nil {
				return fmt.Errorf("mount %s: %w", name, err)
			}
			fmt.Fprintln(a.Out, path)
			return nil
		},
	}
}

func newDriverUnmount() *verb {
	var d driverFlags
	var id string
	return &verb{
		use: "[OPTIONS] VOLUME", min: 1, max: 1, short: "Unmount a volume of a plugin", long: "Has a volume plugin let go of a mount; with the last one it unmounts." + driverLong,
		example: "corten volume driver unmount --driver sshfs data",
		flags: func(f *pflag.FlagSet) {
			d.add(f)
			f.StringVar(&id, "id", driverID, "whom the mount was for")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			drv, err := d.open(a, args...)
			if err == nil {
				err = drv.Unmount(ctx, args[0], id)
			}
			return err
		},
	}
}

func newDriverPath() *verb {
	var d driverFlags
	return &verb{
		use: "[OPTIONS] VOLUME", min: 1, max: 1, short: "Print where a volume of a plugin is mounted", long: "Prints where a volume plugin has a volume mounted; a volume that is not mounted may have no path." + driverLong,
		example: "corten volume driver path --driver sshfs data", flags: d.add,
		run: func(ctx context.Context, a *app, args []string) error {
			drv, err := d.open(a, args...)
			if err != nil {
				return err
			}
			path, err := drv.Path(ctx, args[0])
			if err == nil && path == "" {
				err = errs.New(errs.NotFound, "volume %s is not mounted", args[0])
			}
			if err == nil {
				fmt.Fprintln(a.Out, path)
			}
			return err
		},
	}
}

func newDriverList() *verb {
	var d driverFlags
	var quiet bool
	var format string
	return &verb{
		use: "[OPTIONS]", short: "List the volumes of a plugin", long: "Lists the volumes that a volume plugin has." + driverLong, example: "corten volume driver list --driver sshfs",
		flags: func(f *pflag.FlagSet) {
			d.add(f)
			f.BoolVarP(&quiet, "quiet", "q", false, "print names only")
			f.StringVar(&format, "format", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, _ []string) error {
			drv, err := d.open(a)
			if err != nil {
				return err
			}
			vols, err := drv.List(ctx)
			if err != nil {
				return err
			}
			sort.Slice(vols, func(i, j int) bool { return naturalLess(vols[i].Name, vols[j].Name) })
			rows := make([]any, len(vols))
			for i := range vols {
				rows[i] = &driverRow{&vols[i]}
			}
			l := show.List{Format: format, Default: "table {{.Name}}\t{{.Mountpoint}}", Quiet: "{{.Name}}", IsQuiet: quiet, Headers: volHeaders()}
			return l.Print(a.Out, rows)
		},
	}
}

type driverRow struct{ v *driver.Volume }

func (r *driverRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }
func (r *driverRow) Name() string                 { return r.v.Name }
func (r *driverRow) Mountpoint() string           { return r.v.Mountpoint }

func newDriverInspect() *verb {
	var d driverFlags
	var format string
	return &verb{
		use: "[OPTIONS] VOLUME", min: 1, max: 1, short: "Show what a plugin knows of a volume", long: "Shows what a volume plugin tells of a volume, and whether its volumes are this host's or the same ones everywhere." + driverLong,
		example: "corten volume driver inspect --driver sshfs data",
		flags: func(f *pflag.FlagSet) {
			d.add(f)
			f.StringVarP(&format, "format", "f", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			drv, err := d.open(a, args...)
			if err != nil {
				return err
			}
			vol, err := drv.Get(ctx, args[0])
			if err != nil {
				return err
			}
			caps, err := drv.Capabilities(ctx)
			if err != nil {
				return err
			}
			return printDriverVolume(a, drv.Name(), vol, caps, format)
		},
	}
}

// printDriverVolume prints a volume in the words of volume inspect.
func printDriverVolume(a *app, driverName string, vol driver.Volume, caps driver.Capabilities, format string) error {
	out := volume.Volume{Name: vol.Name, Driver: driverName, Mountpoint: vol.Mountpoint, Scope: "local", Status: vol.Status}
	if caps.Global {
		out.Scope = "global"
	}
	if !vol.Created.IsZero() {
		out.CreatedAt = vol.Created.Format(time.RFC3339)
	}
	if format != "" {
		return show.Text(a.Out, format, &out)
	}
	text, err := json.MarshalIndent([]any{out}, "", "    ")
	if err == nil {
		fmt.Fprintln(a.Out, string(text))
	}
	return err
}

// newPluginLs lists what plugin install brought, which is nothing.
func newPluginLs() *verb {
	var quiet bool
	return &verb{
		use: "[OPTIONS]", short: "List plugins that were installed from images", long: "There are none: plugins run on the host. Those in use are listed by corten info.", example: "corten info",
		flags: func(f *pflag.FlagSet) { f.BoolVarP(&quiet, "quiet", "q", false, "print ids only") },
		run: func(_ context.Context, a *app, _ []string) error {
			if !quiet {
				fmt.Fprintln(a.Out, "ID        NAME      DESCRIPTION   ENABLED")
			}
			return nil
		},
	}
}

func pluginNouns() []*node {
	const why = "plugins that docker installs from images are not supported; run the plugin on the host, with its socket, .spec or .json file in a plugin folder (docs/plugins.md)"
	list := []*node{alias(&node{name: "ls", make: newPluginLs, group: groupOther}, "list")}
	for _, name := range []string{"create", "disable", "enable", "inspect", "install", "push", "rm", "set", "upgrade"} {
		list = append(list, &node{name: name, make: refusedVerb(name, why)})
	}
	return list
}
