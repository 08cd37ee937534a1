// Package runtimecli is the door to the OCI runtime for others: the command line that containerd, dockerd, podman and the specification's own test programs speak (`cortend runtime create …`).
//
// It owns no state; it translates flags to the runtime room's options and its answers to text. It promises the flags, outputs and exit codes of runc for
// create, start, state, kill, delete, exec, run, list, ps, events, update, pause, resume, spec and features; a flag that is accepted has an effect.
package runtimecli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/runtime"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// IO are the standard files of a call and what the binary says of itself.
type IO struct {
	In, Out, Err *os.File
	Version      string
}

// call is one invocation.
type call struct {
	IO
	ctx  context.Context
	rt   *runtime.Runtime
	log  *slog.Logger
	opts globals
}

type globals struct {
	root, log, logFormat, rootless string
	debug, systemd                 bool
}

type verb struct {
	name, args, help string
	run              func(c *call, fs *flag.FlagSet) func(args []string) (int, error)
	makes            bool // makes processes in containers
	commands         bool // its arguments are a command, with flags of its own
}

// parse takes flags before and after arguments, as runc does (`delete ID --force`); where the arguments are a command, before them only. "--" ends them, and a number is none
// (`kill ID -1`).
func parse(fs *flag.FlagSet, args []string, commands bool) (rest []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		left := fs.Args()
		ended := len(left) < len(args) && args[len(args)-len(left)-1] == "--"
		if commands || ended || len(left) == 0 {
			return append(rest, left...), nil
		}
		rest, args = append(rest, left[0]), left[1:]
		for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0][1] >= '0' && args[0][1] <= '9' {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
}

func verbs() []verb {
	return []verb{
		{"create", "ID", "create a container; it waits for start", create, true, false},
		{"start", "ID", "start a created container", simple((*runtime.Container).Start), true, false},
		{"run", "ID", "create and start a container, and wait for it", run, true, false},
		{"state", "ID", "print the state of a container", state, false, false},
		{"kill", "ID [SIGNAL]", "send a signal to a container", kill, false, false},
		{"delete", "ID", "remove a container", remove, false, false},
		{"exec", "ID COMMAND [ARG…]", "run another process in a container", execute, true, true},
		{"list", "", "list containers", list, false, false},
		{"ps", "ID [PS OPTION…]", "list the processes of a container", ps, false, true},
		{"events", "ID", "print events and figures of a container", events, false, false},
		{"update", "ID", "change the limits of a container", update, false, false},
		{"pause", "ID", "freeze a container", simple((*runtime.Container).Pause), false, false},
		{"resume", "ID", "thaw a container", simple((*runtime.Container).Resume), false, false},
		{"spec", "", "write a config.json to start from", spec, false, false},
		{"features", "", "print what this runtime can", features, false, false},
		{"checkpoint", "ID", "not supported", refuse("checkpoint"), false, false},
		{"restore", "ID", "not supported", refuse("restore"), false, false},
	}
}

// DefaultRoot is where records are kept unless --root says otherwise.
const DefaultRoot = "/run/corten-runtime"

// Main runs one command line (without the program's name) and returns the exit code.
func Main(ctx context.Context, args []string, io IO) int {
	c := &call{IO: io, ctx: ctx}
	fs := flag.NewFlagSet("runtime", flag.ContinueOnError)
	fs.SetOutput(io.Err)
	fs.Usage = func() { usage(io.Err, fs) }
	fs.StringVar(&c.opts.root, "root", DefaultRoot, "`folder` of the records")
	fs.StringVar(&c.opts.log, "log", "", "`file` to log to instead of standard error")
	fs.StringVar(&c.opts.logFormat, "log-format", "text", "text or json")
	fs.BoolVar(&c.opts.debug, "debug", false, "log more")
	fs.BoolVar(&c.opts.systemd, "systemd-cgroup", false, "make cgroups through systemd")
	fs.StringVar(&c.opts.rootless, "rootless", "auto", "true, false or auto")
	version := fs.Bool("version", false, "print the version")
	fs.BoolVar(version, "v", false, "print the version")
	if err := fs.Parse(args); err != nil {
		return usageCode(err)
	}
	if *version {
		fmt.Fprintf(io.Out, "cortend runtime version %s\nspec: %s\n", io.Version, specs.Version)
		return 0
	}
	if fs.NArg() == 0 || fs.Arg(0) == "help" {
		usage(io.Out, fs)
		return 0
	}
	code, err := c.dispatch(fs.Args())
	if err != nil {
		c.report(err)
		if code == 0 {
			code = 1
		}
	}
	return code
}

func usageCode(err error) int {
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	return 1
}

func (c *call) dispatch(args []string) (int, error) {
	for _, v := range verbs() {
		if v.name != args[0] {
			continue
		}
		fs := flag.NewFlagSet(v.name, flag.ContinueOnError)
		fs.SetOutput(c.Err)
		fs.Usage = func() {
			fmt.Fprintf(c.Err, "Usage: runtime %s [OPTIONS] %s\n\n%s\n\n", v.name, v.args, v.help)
			fs.PrintDefaults()
		}
		act := v.run(c, fs)
		args, err := parse(fs, args[1:], v.commands)
		if err != nil {
			return usageCode(err), nil
		}
		if v.makes {
			if err := seal(); err != nil {
				return 1, err
			}
		}
		if err := c.open(); err != nil {
			return 1, err
		}
		return act(args)
	}
	return 1, errs.New(errs.Invalid, "no such command: %s", args[0])
}

func usage(w io.Writer, fs *flag.FlagSet) {
	fmt.Fprint(w, "Usage: cortend runtime [OPTIONS] COMMAND\n\nThe OCI runtime of Corten.\n\nCommands:\n")
	all := verbs()
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	for _, v := range all {
		fmt.Fprintf(w, "  %-12s%s\n", v.name, v.help)
	}
	fmt.Fprint(w, "\nOptions:\n")
	out := fs.Output()
	fs.SetOutput(w)
	fs.PrintDefaults()
	fs.SetOutput(out)
}

// open readies the log and the runtime.
func (c *call) open() error {
	rootless := os.Geteuid() != 0
	switch c.opts.rootless {
	case "auto", "":
	case "true":
		rootless = true
	case "false":
		rootless = false
	default:
		return errs.New(errs.Invalid, "--rootless %q: must be true, false or auto", c.opts.rootless)
	}
	if c.opts.logFormat != "text" && c.opts.logFormat != "json" {
		return errs.New(errs.Invalid, "--log-format %q: must be text or json", c.opts.logFormat)
	}
	w := c.Err
	if c.opts.log != "" {
		f, err := os.OpenFile(c.opts.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		w = f // open until the process ends
	}
	level := slog.LevelWarn
	if c.opts.debug {
		level = slog.LevelDebug
	}
	// Callers read the last line with level "error", in small letters.
	h := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey {
			a.Value = slog.StringValue(strings.ToLower(a.Value.String()))
		}
		return a
	}}
	if c.opts.logFormat == "json" {
		c.log = slog.New(slog.NewJSONHandler(w, h))
	} else {
		c.log = slog.New(slog.NewTextHandler(w, h))
	}
	root, err := filepath.Abs(c.opts.root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	if rootless && c.opts.root == DefaultRoot && os.Geteuid() != 0 {
		if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
			root = filepath.Join(dir, "corten", "runtime")
		}
	}
	c.rt = runtime.New(runtime.Options{Root: root, Systemd: c.opts.systemd, Rootless: rootless, Logger: c.log})
	return nil
}

func (c *call) report(err error) {
	if c.log != nil && c.opts.log != "" {
		c.log.Error(err.Error())
	}
	fmt.Fprintln(c.Err, err)
}

// one demands exactly one argument: the id.
func one(args []string) (string, error) {
	if len(args) != 1 {
		return "", errs.New(errs.Invalid, "exactly one argument, the container's id, is needed")
	}
	return args[0], nil
}

func (c *call) load(id string) (*runtime.Container, error) { return c.rt.Load(id) }

func simple(do func(*runtime.Container, context.Context) error) func(*call, *flag.FlagSet) func([]string) (int, error) {
	return func(c *call, _ *flag.FlagSet) func([]string) (int, error) {
		return func(args []string) (int, error) {
			id, err := one(args)
			if err != nil {
				return 1, err
			}
			ctr, err := c.load(id)
			if err != nil {
				return 1, err
			}
			return 0, errors.Join(do(ctr, c.ctx), ctr.Close())
		}
	}
}

func refuse(what string) func(*call, *flag.FlagSet) func([]string) (int, error) {
	return func(*call, *flag.FlagSet) func([]string) (int, error) {
		return func([]string) (int, error) {
			return 1, errs.New(errs.NotImplemented, "%s is not supported: it needs CRIU, which Corten does not drive", what)
		}
	}
}
