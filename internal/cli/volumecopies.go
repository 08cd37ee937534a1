package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/parse"
	"corten.dev/corten/internal/cli/show"
)

// The verbs that copy volumes. Their requests are described where they are answered (server/volumecopies.go).

// copyRequest is what is sent along; what a request has no use for is empty.
type copyRequest struct {
	Name     string            `json:",omitempty"`
	Snapshot string            `json:",omitempty"`
	Labels   map[string]string `json:",omitempty"`
}

type snapshot struct {
	Name    string
	Created time.Time
}

const liveUsage = "do not pause containers that write to the volume while it is copied"

func volumePath(name, verb string) string { return "/volumes/" + esc(name) + "/" + verb }

func newVolumeSnapshot() *verb {
	var live, remove bool
	return &verb{
		use: "[OPTIONS] VOLUME [SNAPSHOT]", min: 1, max: 2, short: "Note what a volume holds, to have it back later", names: volumes,
		long: "Copies what a volume holds now and prints the snapshot's name; without a name given, it is the time. Blocks are shared where the file\nsystem can (btrfs, xfs). " +
			"Containers that write to the volume are paused for the copy, unless the volume is a file system of its own, which is\nfrozen. Snapshots are kept with their volume and go with it.",
		example: "corten volume snapshot data before-upgrade\ncorten volume snapshot --remove data before-upgrade",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&live, "live", false, liveUsage)
			f.BoolVar(&remove, "remove", false, "remove the snapshot instead")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			if remove {
				if len(args) != 2 {
					return invalid("--remove needs the name of a snapshot")
				}
				return api.Delete(ctx, volumePath(args[0], "snapshots/"+esc(args[1])), nil, nil)
			}
			var req copyRequest
			if len(args) == 2 {
				req.Name = args[1]
			}
			var made snapshot
			if err := api.Post(ctx, volumePath(args[0], "snapshots"), query("live", flag1(live)), req, &made); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, made.Name)
			return nil
		},
	}
}

func newVolumeSnapshots() *verb {
	var quiet bool
	var format string
	return &verb{
		use: "[OPTIONS] VOLUME", min: 1, max: 1, short: "List the snapshots of a volume", names: volumes, long: "Lists the snapshots of a volume, oldest first.",
		example: "corten volume snapshots data",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&quiet, "quiet", "q", false, "print names only")
			f.StringVar(&format, "format", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			var list []snapshot
			if err := api.Get(ctx, volumePath(args[0], "snapshots"), nil, &list); err != nil {
				return err
			}
			rows := make([]any, len(list))
			for i := range list {
				rows[i] = &snapRow{&list[i]}
			}
			l := show.List{Format: format, Default: "table {{.Name}}\t{{.CreatedAt}}", Quiet: "{{.Name}}", IsQuiet: quiet, Headers: show.Headers{"Name": "SNAPSHOT", "CreatedAt": "CREATED AT"}}
			return l.Print(a.Out, rows)
		},
	}
}

type snapRow struct{ s *snapshot }

func (r *snapRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }
func (r *snapRow) Name() string                 { return r.s.Name }
func (r *snapRow) CreatedAt() string {
	return r.s.Created.Local().Format("2006-01-02 15:04:05 -0700 MST")
}

func newVolumeRestore() *verb {
	return &verb{
		use: "VOLUME SNAPSHOT", min: 2, max: 2, short: "Give a volume the content of one of its snapshots", names: volumes,
		long:    "Exchanges what a volume holds for what it held, all at once. Containers that run with the volume must be stopped before.",
		example: "corten stop db\ncorten volume restore data before-upgrade\ncorten start db",
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			return api.Post(ctx, volumePath(args[0], "restore"), nil, copyRequest{Snapshot: args[1]}, nil)
		},
	}
}

func newVolumeClone() *verb {
	var live bool
	var from string
	var labels []string
	return &verb{
		use: "[OPTIONS] VOLUME [NEW-VOLUME]", min: 1, max: 2, short: "Make a volume with what another one holds", names: volumes,
		long:    "Makes a volume with the content, the labels and the size of another one, and prints its name.",
		example: "corten volume clone data data-test\ncorten volume clone --snapshot before-upgrade data data-old",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&live, "live", false, liveUsage)
			f.StringVar(&from, "snapshot", "", "take what a snapshot holds")
			list(f, &labels, "label", "", "label of the new volume in place of the old one's, name[=value]")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			req := copyRequest{Snapshot: from}
			if len(labels) > 0 {
				req.Labels = parse.Map(labels)
			}
			if len(args) == 2 {
				req.Name = args[1]
			}
			var vol volume.Volume
			if err := api.Post(ctx, volumePath(args[0], "clone"), query("live", flag1(live)), req, &vol); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, vol.Name)
			return nil
		},
	}
}

func newVolumeRename() *verb {
	return &verb{
		use: "VOLUME NEW-NAME", min: 2, max: 2, short: "Give a volume another name", names: volumes,
		long: "Renames a volume that no container has, with its snapshots.", example: "corten volume rename data data-2025",
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			return api.Post(ctx, volumePath(args[0], "rename"), nil, copyRequest{Name: args[1]}, nil)
		},
	}
}

func newVolumeExport() *verb {
	var live bool
	var output, from, compress string
	return &verb{
		use: "[OPTIONS] VOLUME", min: 1, max: 1, short: "Write what a volume holds to an archive", names: volumes,
		long:    "Writes a volume as a tar archive, to a file or to standard output, with owners, modes, times, links and attributes. Of a volume that\nrunning containers write to, a copy is made first: see `corten volume snapshot`.",
		example: "corten volume export -o data.tar.zst --compress zstd data\ncorten volume export --compress zstd data | ssh other corten volume import data",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&output, "output", "o", "", "file to write instead of STDOUT")
			f.StringVar(&from, "snapshot", "", "write what a snapshot holds")
			f.StringVar(&compress, "compress", "none", "compress by none|gzip|zstd")
			f.BoolVar(&live, "live", false, liveUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			return a.download(ctx, volumePath(args[0], "export"), query("snapshot", from, "compression", compress, "live", flag1(live)), output)
		},
	}
}

func newVolumeImport() *verb {
	var labels, opts []string
	return &verb{
		use: "[OPTIONS] VOLUME [FILE|-]", min: 1, max: 2, short: "Make a volume from an archive",
		long:    "Makes a volume from a tar archive, plain or compressed by gzip, bzip2 or zstd: a file or standard input. The volume is there when the\narchive was read to its end, or not at all.",
		example: "corten volume import data data.tar.zst\nssh other corten volume export data | corten volume import data",
		flags: func(f *pflag.FlagSet) {
			list(f, &labels, "label", "", "add a label, name[=value]")
			list(f, &opts, "opt", "o", "option for the driver, name=value (size=10G)")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			var in io.Reader = a.In
			if len(args) == 2 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			} else if _, terminal := a.stdinFd(); terminal {
				return &exitError{code: 1, text: "no archive: name a file or use standard input"}
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			q := query()
			q["label"], q["opt"] = labels, opts
			resp, err := api.Do(ctx, engineapi.Request{Method: "POST", Path: volumePath(args[0], "import"), Query: q, Stream: in, ContentType: tarType})
			if err != nil {
				return err
			}
			if err := resp.Body.Close(); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, args[0])
			return nil
		},
	}
}
