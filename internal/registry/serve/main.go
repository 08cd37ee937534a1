// Package serve is the registry's command line: `cortend registry serve`, `collect` and `htpasswd`.
//
// It joins the rooms of the registry: the distribution API (registry/server) on its drivers (disk, s3), the guard, the upstreams, and the doors around
// it: TLS, limits, search, metrics, health. It owns the flags and the registry's root:
//
//	ROOT/data/       what the disk driver keeps
//	ROOT/keys/       keys that sign tokens
//	ROOT/acme/       certificates and the account of an ACME directory
//	ROOT/staging/    parts on their way to S3
//
// It promises: an error is one line and exit code 1, or 2 for a command line that makes no sense; SIGTERM ends what is under way in order; SIGHUP takes
// over what can change, or leaves everything as it was; no flag or key is read and ignored.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
)

// IO is the process around a command.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
	Version  string
	// Signals brings SIGTERM, SIGINT and SIGHUP; nil for commands that do not serve.
	Signals <-chan os.Signal
	// Ready is called once the registry answers, with its address; may be nil.
	Ready func(addr string)
}

const usage = `Usage: cortend registry COMMAND

A registry for images: the complete OCI distribution API with users, rights, caching of other registries and collection of garbage.

Commands:
  serve              Serve a registry
  collect            Remove what nothing refers to, and what the retention rules say, while the registry serves
  htpasswd USER      Make the line of a user, put it into a file or take it out; the password is read from the standard input

"cortend registry COMMAND --help" tells more.
`

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func badUsage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Main runs one command and gives its exit code.
func Main(ctx context.Context, args []string, std IO) int {
	name := ""
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	var err error
	switch name {
	case "serve":
		err = serve(ctx, args, std)
	case "collect":
		err = collect(ctx, args, std)
	case "htpasswd":
		err = htpasswd(args, std)
	case "help", "-h", "--help":
		fmt.Fprint(std.Out, usage)
	case "":
		fmt.Fprint(std.Err, usage)
		return 2
	default:
		err = badUsage("unknown command %q: see \"cortend registry --help\"", name)
	}
	var bad usageError
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
		return 0
	case errors.As(err, &bad):
		fmt.Fprintln(std.Err, "cortend registry:", err)
		return 2
	default:
		fmt.Fprintln(std.Err, "cortend registry:", err)
		return 1
	}
}
