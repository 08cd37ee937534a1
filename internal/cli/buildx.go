package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/show"
	"corten.dev/corten/internal/version"
)

// buildxNouns are the commands of buildx that have a meaning where the engine builds by itself; the others are refused with the reason.
func buildxNouns(cmd func(string, func() *verb) *node, noun func(string, string, ...*node) *node) []*node {
	const oneBuilder = "the engine builds by itself, and that is the one builder; choose another engine by --host or --context"
	const noDesktop = "there is no Docker Desktop here: see history inspect and history logs"
	const noTraces = "this engine records the steps of builds, and no OpenTelemetry traces: see history logs --progress rawjson"
	hidden := func(name, why string) *node { return &node{name: name, make: refusedVerb(name, why)} }
	return []*node{
		alias(cmd("bake", newBake), "f"), alias(cmd("build", newBuild), "b"), cmd("du", newBuildxDu),
		noun("history", "Look at builds that were",
			cmd("export", newHistoryExport), cmd("inspect", newHistoryInspect), cmd("logs", newHistoryLogs), cmd("ls", newHistoryLs), cmd("rm", newHistoryRm),
			hidden("open", noDesktop), hidden("import", noDesktop), hidden("trace", noTraces)),
		noun("imagetools", "Look at images at registries, and put them together", cmd("create", newImagetoolsCreate), cmd("inspect", newImagetoolsInspect)),
		cmd("inspect", newBuilderInspect), cmd("ls", newBuilderLs), cmd("prune", newBuildxPrune), cmd("version", newBuildxVersion),
		hidden("create", oneBuilder), hidden("use", oneBuilder), hidden("rm", oneBuilder), hidden("stop", oneBuilder),
		hidden("install", "corten build is this builder already"), hidden("uninstall", "corten build is this builder already"),
		hidden("dial-stdio", "reach the engine itself: corten system dial-stdio"), hidden("dap", "--on-error=shell opens a shell in a step that failed"), hidden("debug", "--on-error=shell opens a shell in a step that failed"),
	}
}

// refusedVerb is a verb that people will type, but that has no meaning here.
func refusedVerb(name, why string) func() *verb {
	return func() *verb {
		return &verb{
			use: "[OPTIONS] [ARG...]", max: -1, rawArgs: true, short: "Refused: " + why,
			run: func(_ context.Context, a *app, _ []string) error {
				return &exitError{code: 1, text: fmt.Sprintf("ERROR: %s: %s", a.path, why)}
			},
		}
	}
}

// builder asks the engine what it builds with and for.
func (a *app) builder(ctx context.Context) (about buildwire.About, err error) {
	api, err := a.engine()
	if err != nil {
		return about, err
	}
	return about, api.Get(ctx, buildwire.AboutPath, nil, &about)
}

// builderName is what buildx calls the builder of a docker engine.
const builderName = "default"

// builderRow is a line of ls: the builder, then its node.
type builderRow struct {
	name, driver, status, version, platforms string
}

func (r *builderRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }
func (r *builderRow) Name() string                 { return r.name }
func (r *builderRow) DriverEndpoint() string       { return r.driver }
func (r *builderRow) Status() string               { return r.status }
func (r *builderRow) Buildkit() string             { return r.version }
func (r *builderRow) Platforms() string            { return r.platforms }

func newBuilderLs() *verb {
	var format string
	var noTrunc bool
	return &verb{
		use: "[OPTIONS]", short: "List builders: the engine", long: "Shows the engine as the one builder that it is, in buildx's table.", example: "corten buildx ls",
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&format, "format", "", formatUsage)
			f.BoolVar(&noTrunc, "no-trunc", false, "nothing is shortened anyhow")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			b, err := a.builder(ctx)
			rows := []any{&builderRow{name: builderName + "*", driver: "corten"}}
			if err != nil {
				rows = append(rows, &builderRow{name: " \\_ " + builderName, driver: " \\_ " + builderName, status: "error"})
			} else {
				rows = append(rows, &builderRow{name: " \\_ " + builderName, driver: " \\_ " + builderName, status: "running", version: b.BuildKit, platforms: strings.Join(b.Platforms, ", ")})
			}
			l := show.List{Format: format, Default: "table {{.Name}}\t{{.DriverEndpoint}}\t{{.Status}}\t{{.Buildkit}}\t{{.Platforms}}",
				Headers: show.Headers{"Name": "NAME/NODE", "DriverEndpoint": "DRIVER/ENDPOINT", "Status": "STATUS", "Buildkit": "BUILDKIT", "Platforms": "PLATFORMS"}}
			if perr := l.Print(a.Out, rows); perr != nil || err == nil {
				return perr
			}
			return fmt.Errorf("cannot load builder %s: %w", builderName, err)
		},
	}
}

func newBuilderInspect() *verb {
	var bootstrap bool
	return &verb{
		use: "[NAME]", max: 1, short: "Show the builder: the engine", long: "Shows what the engine builds with, and for which platforms.", example: "corten buildx inspect",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&bootstrap, "bootstrap", false, "it runs already: nothing has to be started")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if err := onlyBuilder(first(args)); err != nil {
				return err
			}
			b, err := a.builder(ctx)
			if err != nil {
				return err
			}
			return show.Tabs(a.Out, 0, 1, []string{"Name:\t" + builderName, "Driver:\tcorten", "", "Nodes:", "Name:\t" + builderName, "Endpoint:\t" + a.ep.Host, "Status:\trunning",
				"BuildKit version:\t" + b.BuildKit, "Engine version:\t" + b.Version, "Platforms:\t" + strings.Join(b.Platforms, ", ")})
		},
	}
}

func newBuildxVersion() *verb {
	return &verb{
		use: "", short: "Show the version of the builds' command line", long: "The command line of builds is part of corten, and has its version.", example: "corten buildx version",
		run: func(_ context.Context, a *app, _ []string) error {
			fmt.Fprintf(a.Out, "corten.dev/corten %s %s\n", version.Version, version.Commit)
			return nil
		},
	}
}
