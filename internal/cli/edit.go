package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/parse"
	"corten.dev/corten/internal/reference"
)

// editFlags are the flags of update that Docker does not have: everything but limits and the restart policy.
type editFlags struct {
	publish, unpublish, env, envFile, unsetEnv, label, unsetLabel []string
	volume, mount, unmount, connect, disconnect                   []string
	logOpt                                                        []string
	logDriver                                                     string
	undo, dryRun                                                  bool
	limits                                                        netLimitFlags
}

// editNames are their names; update of any of them is an edit.
var editNames = []string{"publish-add", "publish-rm", "env", "env-file", "env-rm", "label", "label-rm", "volume-add", "mount-add", "mount-rm", "network-add", "network-rm", "egress", "net-egress-bps", "net-ingress-bps",
	"log-driver", "log-opt", "undo", "dry-run"}

func (e *editFlags) register(f *pflag.FlagSet) {
	list(f, &e.publish, "publish-add", "p", "publish one more port, in the words of run -p")
	list(f, &e.unpublish, "publish-rm", "", "publish a port no more: [host-port:]container-port[/protocol]")
	list(f, &e.env, "env", "e", "set an environment variable, name=value (the process is started again)")
	list(f, &e.envFile, "env-file", "", "file of environment variables")
	list(f, &e.unsetEnv, "env-rm", "", "remove an environment variable")
	list(f, &e.label, "label", "l", "set a label, name=value")
	list(f, &e.unsetLabel, "label-rm", "", "remove a label")
	list(f, &e.volume, "volume-add", "v", "mount a volume or a folder of the host, in the words of run -v (the process is started again)")
	list(f, &e.mount, "mount-add", "", "the same in the words of run --mount")
	list(f, &e.unmount, "mount-rm", "", "mount nothing at this place any more; a volume keeps what it holds")
	list(f, &e.connect, "network-add", "", "connect to one more network: a name, or name=…,alias=…,ip=… options")
	list(f, &e.disconnect, "network-rm", "", "disconnect from a network")
	f.StringVar(&e.logDriver, "log-driver", "", "hand the log to another driver, or several with commas between them, with the options given here; empty for the engine's default")
	list(f, &e.logOpt, "log-opt", "", "set an option of the log driver, name=value; an empty value takes it away")
	e.limits.register(f)
	f.BoolVar(&e.undo, "undo", false, "go back to what was before the last change")
	f.BoolVar(&e.dryRun, "dry-run", false, "tell what would change, and how: live, restart, or next start")
}

// editBody is the body of the engine's edit endpoint.
type editBody struct {
	Resources     *container.Resources                 `json:",omitempty"`
	RestartPolicy *container.RestartPolicy             `json:",omitempty"`
	PortBindings  network.PortMap                      `json:",omitempty"`
	Unpublish     []string                             `json:",omitempty"`
	Env           []string                             `json:",omitempty"`
	UnsetEnv      []string                             `json:",omitempty"`
	Labels        map[string]string                    `json:",omitempty"`
	UnsetLabels   []string                             `json:",omitempty"`
	Annotations   map[string]string                    `json:",omitempty"`
	Binds         []string                             `json:",omitempty"`
	Mounts        []parse.Mounted                      `json:",omitempty"`
	Unmount       []string                             `json:",omitempty"`
	Connect       map[string]*network.EndpointSettings `json:",omitempty"`
	Disconnect    []string                             `json:",omitempty"`
	LogDriver     *string                              `json:",omitempty"`
	LogOptions    map[string]string                    `json:",omitempty"`
	Undo          bool                                 `json:",omitempty"`
	DryRun        bool                                 `json:",omitempty"`
}

// editedBody is its answer, and that of upgrade.
type editedBody struct {
	Changes  []string
	How      string
	Warnings []string
}

// given tells whether any of the flags was used.
func (e *editFlags) given(set *pflag.FlagSet) bool {
	return slices.ContainsFunc(editNames, set.Changed)
}

// body translates the flags. limits and policy were given beside them.
func (e *editFlags) body(set *pflag.FlagSet, up container.UpdateConfig) (*editBody, error) {
	b := &editBody{Unpublish: e.unpublish, UnsetEnv: e.unsetEnv, UnsetLabels: e.unsetLabel, Unmount: e.unmount, Disconnect: e.disconnect, Undo: e.undo, DryRun: e.dryRun}
	if err := e.limits.check(set); err != nil {
		return nil, err
	}
	b.Annotations = e.limits.changes(set)
	if set.Changed("log-driver") {
		b.LogDriver = &e.logDriver
	}
	b.LogOptions = parse.Map(e.logOpt)
	others := false // limits or the policy
	set.Visit(func(f *pflag.Flag) { others = others || f.Name != "restart" && !slices.Contains(editNames, f.Name) })
	if others {
		b.Resources = &up.Resources
	}
	if set.Changed("restart") {
		b.RestartPolicy = &up.RestartPolicy
	}
	steps := []func() error{func() error { return e.words(b) }, func() error { return e.storage(b) }, func() error { return e.networks(b) }}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	changes := 0
	set.Visit(func(f *pflag.Flag) {
		if f.Name != "undo" && f.Name != "dry-run" {
			changes++
		}
	})
	if e.undo && changes > 0 {
		return nil, invalid("--undo goes back to what was, and takes no other changes")
	}
	if !e.undo && changes == 0 {
		return nil, invalid("--dry-run: say which change it is about")
	}
	return b, nil
}

func (e *editFlags) words(b *editBody) (err error) {
	for _, file := range e.envFile {
		lines, err := parse.EnvFile(file, nil)
		if err != nil {
			return err
		}
		b.Env = append(b.Env, lines...)
	}
	for _, kv := range e.env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			return badFlag("env", kv, invalid("want name=value"))
		}
	}
	b.Env = append(b.Env, e.env...)
	b.Labels, err = parse.Pairs("label", e.label)
	return err
}

func (e *editFlags) storage(b *editBody) error {
	for _, v := range e.volume {
		bind, anonymous, err := parse.Volume(v)
		if err != nil {
			return err
		}
		if anonymous != "" {
			return badFlag("volume-add", v, invalid("want source:target"))
		}
		b.Binds = append(b.Binds, bind)
	}
	for _, m := range e.mount {
		one, err := parse.Mount(m)
		if err != nil {
			return badFlag("mount-add", m, err)
		}
		b.Mounts = append(b.Mounts, one)
	}
	return nil
}

func (e *editFlags) networks(b *editBody) error {
	var p parse.Ports
	for _, s := range e.publish {
		if err := p.Publish(s); err != nil {
			return err
		}
	}
	b.PortBindings = p.Bindings
	if len(e.connect) == 0 {
		return nil
	}
	b.Connect = map[string]*network.EndpointSettings{}
	for _, s := range e.connect {
		n, err := parse.NetworkFlag(s)
		if err != nil {
			return badFlag("network-add", s, err)
		}
		if b.Connect[n.Name], err = endpointOf(n); err != nil {
			return err
		}
	}
	return nil
}

// tellEdit prints what was changed, or would be.
func (a *app) tellEdit(name string, done editedBody, dryRun bool) {
	for _, w := range done.Warnings {
		fmt.Fprintln(a.Err, w)
	}
	if !dryRun {
		fmt.Fprintln(a.Out, name)
		return
	}
	if len(done.Changes) == 0 {
		fmt.Fprintf(a.Out, "%s: nothing would change\n", name)
		return
	}
	how := map[string]string{"live": "while it runs", "restart": "by starting its process again", "next start": "at its next start"}[done.How]
	fmt.Fprintf(a.Out, "%s: %s:\n", name, how)
	for _, change := range done.Changes {
		fmt.Fprintf(a.Out, "  %s\n", change)
	}
}

func newUpgrade() *verb {
	var pull string
	var grace time.Duration
	var quiet, dryRun bool
	return &verb{
		use: "[OPTIONS] CONTAINER [IMAGE]", min: 1, max: 2, short: "Put a newer image under a container", names: containers,
		long: "Pulls the image that the container was made of (or another one), and starts the container on it, with the same name, settings, volumes and addresses. It has to prove itself: by its health check, " +
			"or by running for --grace. When it does not, the container runs on its old image again. `corten update --undo` goes back later.",
		example: "corten upgrade web\ncorten upgrade --grace 30s db postgres:17",
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&pull, "pull", "newer", `pull the image before: "newer" (what is here is good enough when it cannot be had), "always", "missing" or "never"`)
			f.DurationVar(&grace, "grace", 10*time.Second, "how long a container without a health check must run")
			f.BoolVarP(&quiet, "quiet", "q", false, "do not show the progress of the pull")
			f.BoolVar(&dryRun, "dry-run", false, "tell what would change, and do nothing")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			return a.upgrade(ctx, args, upgradeFlags{pull: pull, grace: grace, quiet: quiet, dryRun: dryRun})
		},
	}
}

type upgradeFlags struct {
	pull          string
	grace         time.Duration
	quiet, dryRun bool
}

func (a *app) upgrade(ctx context.Context, args []string, o upgradeFlags) error {
	api, err := a.engine()
	if err != nil {
		return err
	}
	if o.grace < time.Second || o.grace%time.Second != 0 {
		return invalid("--grace: want whole seconds, one at least")
	}
	var have struct{ Config struct{ Image string } }
	if err := api.Get(ctx, "/containers/"+esc(args[0])+"/json", nil, &have); err != nil {
		return err
	}
	name := have.Config.Image
	if len(args) == 2 {
		name = args[1]
	}
	if err := a.pullToUpgrade(ctx, api, name, o); err != nil {
		return err
	}
	q := query("image", name, "grace", fmt.Sprint(int(o.grace/time.Second)))
	if o.dryRun {
		q["dryrun"] = []string{"1"}
	}
	var done editedBody
	if err := api.Post(ctx, "/containers/"+esc(args[0])+"/upgrade", q, nil, &done); err != nil {
		return err
	}
	if len(done.Changes) == 0 && !o.dryRun {
		fmt.Fprintf(a.Err, "%s runs the newest %s already\n", args[0], name)
	}
	a.tellEdit(args[0], done, o.dryRun)
	return nil
}

// pullToUpgrade has the engine get the image, as far as --pull says.
func (a *app) pullToUpgrade(ctx context.Context, api *engineapi.Client, name string, o upgradeFlags) error {
	here := func() bool { return api.Get(ctx, "/images/"+escRef(name)+"/json", nil, nil) == nil }
	switch o.pull {
	case "newer", "always":
	case "missing":
		if here() {
			return nil
		}
	case "never":
		return nil
	default:
		return invalid(`invalid pull option: '%s': must be one of "newer", "always", "missing" or "never"`, o.pull)
	}
	ref, err := reference.Parse(name)
	if err == nil {
		out := a.Err
		if o.quiet {
			out = io.Discard
		}
		err = a.pullFrom(ctx, api, ref.WithDefaultTag(), query(), out)
	}
	if err != nil && o.pull == "newer" && here() {
		fmt.Fprintf(a.Err, "WARNING: %v; going on with the %s that is here\n", err, name)
		return nil
	}
	return err
}
