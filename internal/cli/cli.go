// Package cli is the corten command line: docker's verbs, flags, output and exit codes over the Docker Engine API.
//
// It owns the grammar (grammar.go), the words shown to people and the translation between flags and API types; it holds
// no state and decides nothing that the engine should decide. It promises to start fast: a verb's flags are built only
// when it runs, nothing is asked of the engine that the verb does not need, and a test watches what is linked in.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/endpoint"
	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/version"
)

// Streams are the three standard streams. Terminals are recognised when they are *os.File.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// app is one run of the program.
type app struct {
	Streams
	global  globalFlags
	cfg     *endpoint.Config
	blind   bool // a config file is there, and cannot be read: nothing is known about registries
	ep      *endpoint.Endpoint
	passive bool // starts no engine
	api     *engineapi.Client
	path    string // the command as it was typed: "corten container ls"
}

type globalFlags struct {
	endpoint.Flags
	hosts     []string
	configDir string
	logLevel  string
	debug     bool
	version   bool
}

func (g *globalFlags) register(f *pflag.FlagSet) {
	f.StringArrayVarP(&g.hosts, "host", "H", nil, "engine to talk to: unix://, tcp:// or ssh:// address")
	f.StringVarP(&g.Context, "context", "c", "", "docker context to use")
	f.StringVar(&g.configDir, "config", "", "folder of config.json and contexts (default ~/.docker)")
	f.StringVarP(&g.logLevel, "log-level", "l", "info", "least level of the client's own messages: debug, info, warn, error or fatal")
	f.BoolVarP(&g.debug, "debug", "D", false, "tell what is sent to the engine")
	f.BoolVar(&g.TLS, "tls", false, "use TLS")
	f.BoolVar(&g.TLSVerify, "tlsverify", false, "use TLS and check the engine's certificate")
	f.StringVar(&g.CAFile, "tlscacert", "", "accept only certificates signed by this CA")
	f.StringVar(&g.CertFile, "tlscert", "", "client certificate")
	f.StringVar(&g.KeyFile, "tlskey", "", "client key")
	f.BoolVarP(&g.version, "version", "v", false, "print the client's version and end")
}

// exitError ends the program with a code; an empty text prints nothing.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// usageError is a command line that cannot be understood: the text, then the usage line.
type usageError struct {
	text string
	code int
	see  string // "See" or "Run"
}

func (e *usageError) Error() string { return e.text }

// Main runs the command line and returns the exit code.
func Main(ctx context.Context, args []string, s Streams) int {
	out := &output{Writer: s.Out}
	a := &app{Streams: Streams{In: s.In, Out: out, Err: s.Err}, path: "corten"}
	defer func() {
		if a.api != nil {
			a.api.Close()
		}
	}()
	code := a.main(ctx, args)
	if err := out.lost(); err != nil && code == 0 {
		fmt.Fprintln(a.Err, err)
		return 1
	}
	return code
}

func (a *app) main(ctx context.Context, args []string) int {
	root := grammar()
	fs := newFlags("corten")
	fs.SetInterspersed(false)
	a.global.register(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			rootHelp(a.Out, root)
			return 0
		}
		fmt.Fprintf(a.Err, "%v\n\nUsage:  corten [OPTIONS] COMMAND [ARG...]\n\nRun 'corten --help' for more information\n", err)
		return 125
	}
	if code, done := a.settle(fs); done {
		return code
	}
	args = fs.Args()
	if len(args) == 0 {
		rootHelp(a.Out, root)
		return 0
	}
	return a.dispatch(ctx, root, args)
}

// settle checks the global flags.
func (a *app) settle(fs *pflag.FlagSet) (code int, done bool) {
	g := &a.global
	if g.version {
		fmt.Fprintf(a.Out, "Corten version %s, build %s\n", version.Version, version.Commit)
		return 0, true
	}
	switch g.logLevel {
	case "debug":
		g.debug = true
	case "info", "warn", "warning", "error", "fatal", "panic", "trace":
	default:
		fmt.Fprintf(a.Err, "unable to parse logging level: %s\n", g.logLevel)
		return 1, true
	}
	switch len(g.hosts) {
	case 0:
	case 1:
		g.Host = g.hosts[0]
	default:
		fmt.Fprintln(a.Err, "specify only one -H")
		return 1, true
	}
	g.VerifySet = fs.Changed("tlsverify")
	return 0, false
}

// dispatch walks down the tree and runs the verb.
func (a *app) dispatch(ctx context.Context, n *node, args []string) int {
	for len(args) > 0 && n.sub != nil {
		if args[0] == "--help" || args[0] == "-h" || (args[0] == "help" && n.make == nil && len(args) == 1 && a.path != "corten") {
			groupHelp(a.Out, a.path, n)
			return 0
		}
		next := n.find(args[0])
		if next == nil {
			return a.unknown(n, args[0])
		}
		a.path += " " + next.name
		if next.sub == nil {
			a.path = strings.TrimSuffix(a.path, next.name) + args[0]
		}
		n, args = next, args[1:]
	}
	if n.make == nil {
		groupHelp(a.Out, a.path, n)
		return 0
	}
	v := n.make()
	fs := newFlags(n.name)
	fs.SetInterspersed(!v.stopAtArg)
	if v.flags != nil {
		v.flags(fs)
	}
	if v.rawArgs {
		return a.finish(v, v.run(ctx, a, args))
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			verbHelp(a.Out, a.path, v, fs)
			return 0
		}
		return a.finish(v, &usageError{text: err.Error(), code: 125, see: "Run"})
	}
	if err := v.checkArgs(a.path, fs.Args()); err != nil {
		return a.finish(v, err)
	}
	v.set = fs
	return a.finish(v, v.run(ctx, a, fs.Args()))
}

func (a *app) unknown(n *node, word string) int {
	usage := ""
	if a.path != "corten" {
		usage = "Usage:  " + a.path + "\n\n"
	}
	fmt.Fprintf(a.Err, "corten: unknown command: %s %s\n\n%sRun '%s --help' for more information\n", a.path, word, usage, a.path)
	return 1
}

// finish prints an error in docker's shape and chooses the exit code.
func (a *app) finish(v *verb, err error) int {
	if err == nil {
		return 0
	}
	err = a.explain(err)
	var usage *usageError
	var exit *exitError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(a.Err, "%s\n\nUsage:  %s\n\n%s '%s --help' for more information\n", usage.text, v.usageLine(a.path), usage.see, a.path)
		return usage.code
	case errors.As(err, &exit):
		if exit.text != "" {
			fmt.Fprintln(a.Err, exit.text)
		}
		return exit.code
	}
	fmt.Fprintln(a.Err, err)
	return 1
}

// Files gives the standard streams of the process.
func Files() Streams { return Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr} }
