package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/buildprogress"
)

// bakeFlags are buildx's.
type bakeFlags struct {
	files, sets, allow, vars                                      []string
	print, push, load, noCache, pull, check                       bool
	progress, metadataFile, provenance, sbom, builder, call, list string

	remote string // address that the files come from, and contexts that are folders
}

func newBake() *verb {
	var o bakeFlags
	return &verb{
		use: "[OPTIONS] [ADDRESS] [TARGET...]", max: -1, short: "Build several targets of a file side by side",
		long: "Reads docker-bake.hcl, docker-bake.json or a compose file, and builds the targets or groups that are named, or \"default\".\n" +
			"Equal steps of several targets are run once. The files, and the contexts in them, may lie at an address: in a git repository or an\n" +
			"archive; names that begin with cwd:// are of this host then.",
		example: "corten buildx bake\ncorten buildx bake --print\ncorten buildx bake https://git.example.org/team/app.git#v1 app\ncorten buildx bake -f bake.hcl --set app.args.VERSION=2 --push app db",
		flags: func(f *pflag.FlagSet) {
			list(f, &o.files, "file", "f", "bake file; may be given several times; - is STDIN")
			f.BoolVar(&o.print, "print", false, "print the plan and build nothing")
			list(f, &o.sets, "set", "", "change a value, target.key=value; * is every target")
			f.BoolVar(&o.push, "push", false, "send all results to their registries: --set=*.push=true")
			f.BoolVar(&o.load, "load", false, "keep all results as images: --set=*.load=true")
			f.BoolVar(&o.noCache, "no-cache", false, "run every step")
			f.BoolVar(&o.pull, "pull", false, "ask registries for newer base images, always")
			f.StringVar(&o.progress, "progress", "", "how to show progress: auto, plain, tty, rawjson or quiet (default auto)")
			f.StringVar(&o.metadataFile, "metadata-file", "", "write what is known of the results to this file, as JSON")
			f.StringVar(&o.provenance, "provenance", "", "short for --set=*.attest=type=provenance")
			f.StringVar(&o.sbom, "sbom", "", "short for --set=*.attest=type=sbom")
			f.StringVar(&o.call, "call", "build", "what to do: build, check, outline or targets")
			f.BoolVar(&o.check, "check", false, "look for mistakes and build nothing: --call=check")
			f.StringVar(&o.list, "list", "", "list targets and build nothing")
			f.StringSliceVar(&o.allow, "allow", nil, "allow targets more: network.host, security.insecure, device")
			f.StringVar(&o.builder, "builder", "", "only the engine itself is there: default")
			list(f, &o.vars, "var", "", "set a variable of the file, name=value")
		},
		run: func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, args) },
	}
}

func (o *bakeFlags) run(ctx context.Context, a *app, targets []string) error {
	if err := onlyBuilder(o.builder); err != nil {
		return err
	}
	raw, err := o.plan(ctx, a, targets)
	if err != nil {
		return err
	}
	if o.print {
		return o.printPlan(a, raw)
	}
	var plan bakePlan
	if err := json.Unmarshal(raw, &plan); err != nil {
		return fmt.Errorf("read the plan of the targets: %w", err)
	}
	switch o.list {
	case "":
	case "targets", "type=targets":
		return plan.listTargets(a)
	default:
		return invalid("ERROR: invalid --list %q: use targets", o.list)
	}
	names, err := plan.asked()
	if err != nil {
		return err
	}
	return o.build(ctx, a, &plan, names)
}

// defaultBakeFiles are looked for when no file is named; all that are there are read, in this order.
func defaultBakeFiles() []string {
	return []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml", "docker-bake.json", "docker-bake.hcl", "docker-bake.override.json", "docker-bake.override.hcl"}
}

// maxBakeFile bounds a bake file.
const maxBakeFile = 2 << 20

func (o *bakeFlags) printPlan(a *app, raw []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(raw), "", "  "); err != nil {
		return fmt.Errorf("read the plan of the targets: %w", err)
	}
	fmt.Fprintln(a.Out, b.String())
	return nil
}

// bakePlan is what --print shows.
type bakePlan struct {
	Group  map[string]struct{ Targets []string } `json:"group"`
	Target map[string]*bakeTarget                `json:"target"`
}

// asked are the targets to build: those of the group default, with groups in it resolved.
func (p *bakePlan) asked() ([]string, error) {
	var out []string
	seen := map[string]bool{}
	var walk func(name string) error
	walk = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		g, isGroup := p.Group[name]
		if p.Target[name] != nil && (!isGroup || slices.Contains(g.Targets, name)) {
			out = append(out, name)
		}
		if !isGroup && p.Target[name] == nil {
			return &exitError{code: 1, text: "ERROR: failed to find target " + name}
		}
		for _, t := range g.Targets {
			if err := walk(t); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk("default"); err != nil {
		return nil, err
	}
	return out, nil
}

func (p *bakePlan) listTargets(a *app) error {
	lines := []string{"TARGET\tDESCRIPTION"}
	for _, name := range slices.Sorted(maps.Keys(p.Group)) {
		lines = append(lines, name+"\t"+strings.Join(p.Group[name].Targets, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Target)) {
		lines = append(lines, name+"\t"+p.Target[name].Description)
	}
	return tabbed(a.Out, lines)
}

// build runs the targets side by side on one view. The first that fails ends the others.
func (o *bakeFlags) build(ctx context.Context, a *app, plan *bakePlan, names []string) (err error) {
	d, err := a.buildDisplay(o.progress, false, "")
	if err != nil {
		return err
	}
	plans := map[string]*buildPlan{}
	flags := map[string]*buildFlags{}
	defer func() {
		for _, p := range plans {
			err = errors.Join(err, p.close())
		}
	}()
	for _, name := range names {
		p, f, err := o.target(a, plan, name, nil)
		if err != nil {
			return fmt.Errorf("target %s: %w", name, err)
		}
		if len(names) > 1 {
			p.prefix = name
		}
		if o.metadataFile != "" {
			p.req.Provenance = metadataProvenance()
		}
		plans[name], flags[name] = p, f
	}
	if _, err := a.engine(); err != nil {
		return err
	}
	ctx, stop := cancellable(ctx)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards results
	results := map[string]buildwire.Response{}
	for _, name := range names {
		wg.Go(func() {
			resp, err := a.runBuild(ctx, plans[name], d)
			if err != nil {
				plans[name].drop()
				cancel(&bakeError{target: name, err: err})
				return
			}
			mu.Lock()
			results[name] = resp
			mu.Unlock()
		})
	}
	wg.Wait()
	if err := errors.Join(d.Finish(), d.Warned(a.global.debug)); err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		var failed *bakeError
		if errors.As(cause, &failed) {
			return a.bakeFailed(failed)
		}
		return a.buildFailed(canceled())
	}
	return o.finish(a, d, names, plans, flags, results)
}

// bakeError is the target that failed first.
type bakeError struct {
	target string
	err    error
}

func (e *bakeError) Error() string { return "target " + e.target + ": " + e.err.Error() }
func (e *bakeError) Unwrap() error { return e.err }

func (a *app) bakeFailed(e *bakeError) error {
	err := a.buildFailed(e.err)
	var exit *exitError
	if errors.As(err, &exit) {
		exit.text = strings.Replace(exit.text, "ERROR: failed to build: ", "ERROR: target "+e.target+": ", 1)
		return exit
	}
	return err
}

// finish prints answers of subrequests, and writes the metadata.
func (o *bakeFlags) finish(a *app, d *buildprogress.Display, names []string, plans map[string]*buildPlan, flags map[string]*buildFlags, results map[string]buildwire.Response) error {
	code := 0
	all := map[string]any{}
	for _, name := range names {
		p := plans[name]
		if p.call != "" {
			fmt.Fprintf(a.Out, "[%s]\n", name)
			var exit *exitError
			if err := a.callResult(flags[name], p, results[name]); errors.As(err, &exit) && exit.text == "" {
				code = exit.code
			} else if err != nil {
				return err
			}
		}
		all[name] = metadata(results[name].Exporter, p.req.Ref)
	}
	if o.metadataFile != "" {
		if err := writeMetadata(o.metadataFile, all, d.Warnings()); err != nil {
			return err
		}
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}
