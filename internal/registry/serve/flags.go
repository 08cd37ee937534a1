package serve

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server/config"
)

// DefaultConfig is read when it is there.
const DefaultConfig = "/etc/corten/registry.json"

// request is a command line with its configuration file.
type request struct {
	conf     config.Config
	validate bool
	dryRun   bool
	jsonOut  bool
}

// flagKeys are the keys of the file that a flag sets too, and how.
var flagKeys = map[string]struct {
	key string
	set func(c *config.Config, f *pflag.Flag)
}{
	"addr":           {"addr", func(c *config.Config, f *pflag.Flag) { c.Addr = f.Value.String() }},
	"root":           {"root", func(c *config.Config, f *pflag.Flag) { c.Root = f.Value.String() }},
	"url":            {"url", func(c *config.Config, f *pflag.Flag) { c.URL = f.Value.String() }},
	"tls-cert":       {"tls.cert", func(c *config.Config, f *pflag.Flag) { c.TLS.Cert = f.Value.String() }},
	"tls-key":        {"tls.key", func(c *config.Config, f *pflag.Flag) { c.TLS.Key = f.Value.String() }},
	"htpasswd":       {"auth.htpasswd", func(c *config.Config, f *pflag.Flag) { c.Auth.Htpasswd = f.Value.String() }},
	"auth":           {"auth.mode", func(c *config.Config, f *pflag.Flag) { c.Auth.Mode = f.Value.String() }},
	"anonymous-pull": {"auth.anonymous-pull", func(c *config.Config, f *pflag.Flag) { c.Auth.AnonymousPull = f.Value.String() == "true" }},
	"metrics-addr":   {"metrics-addr", func(c *config.Config, f *pflag.Flag) { c.Metrics = f.Value.String() }},
	"log-level":      {"log-level", func(c *config.Config, f *pflag.Flag) { c.LogLevel = f.Value.String() }},
	"log-format":     {"log-format", func(c *config.Config, f *pflag.Flag) { c.LogForm = f.Value.String() }},
	"access-log":     {"access-log", func(c *config.Config, f *pflag.Flag) { c.Access = f.Value.String() == "true" }},
	"read-only":      {"read-only", func(c *config.Config, f *pflag.Flag) { c.ReadOnly = f.Value.String() == "true" }},
}

// placeFlags are those of every command that opens the storage.
func placeFlags(set *pflag.FlagSet) {
	def := config.Default()
	set.String("config", DefaultConfig, "Configuration file")
	set.String("root", def.Root, "Folder of everything that is kept")
	set.StringP("log-level", "l", def.LogLevel, "Least important messages to log (debug, info, warn, error)")
	set.String("log-format", def.LogForm, "Form of the messages (text, json)")
}

func serveFlags(set *pflag.FlagSet, r *request) {
	def := config.Default()
	placeFlags(set)
	set.String("addr", def.Addr, "Address to listen on")
	set.String("url", "", "What clients reach the registry at, when it stands behind a proxy (https://registry.example.com)")
	set.String("tls-cert", "", "Certificate of the registry, with its chain")
	set.String("tls-key", "", "Key of the certificate")
	set.String("htpasswd", "", "File of users (bcrypt only); without it everybody may do everything")
	set.String("auth", def.Auth.Mode, "How clients prove who they are: token or basic")
	set.Bool("anonymous-pull", false, "Let everybody pull; users push and delete")
	set.String("metrics-addr", "", "Address to serve /metrics and /healthz on")
	set.Bool("access-log", false, "Log each request")
	set.Bool("read-only", false, "Refuse pushes and deletes")
	set.BoolVar(&r.validate, "validate", false, "Check the settings and exit")
}

// parse reads a command line and its configuration file, and checks the whole.
func parse(verb, words string, args []string, out io.Writer, add func(*pflag.FlagSet, *request)) (*request, error) {
	r := &request{}
	set := pflag.NewFlagSet(verb, pflag.ContinueOnError)
	set.SetOutput(out)
	set.Usage = func() {
		fmt.Fprintf(out, "Usage: cortend registry %s [flags]\n\n%s\n\n%s", verb, words, set.FlagUsages())
	}
	add(set, r)
	if err := set.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return nil, err
	} else if err != nil {
		return nil, usageError{err}
	}
	if set.NArg() > 0 {
		return nil, badUsage("unknown argument %q: %s takes flags only", set.Arg(0), verb)
	}
	err := r.read(set)
	return r, err
}

func (r *request) read(set *pflag.FlagSet) error {
	path := set.Lookup("config").Value.String()
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !set.Changed("config"):
		r.conf = config.Default()
	case err != nil:
		return fmt.Errorf("configuration file: %w", err)
	default:
		if r.conf, err = config.Parse(path, text); err != nil {
			return err
		}
	}
	var twice []string
	set.Visit(func(f *pflag.Flag) {
		k, ok := flagKeys[f.Name]
		if !ok {
			return
		}
		if r.conf.Given(k.key) {
			twice = append(twice, k.key)
			return
		}
		k.set(&r.conf, f)
	})
	if len(twice) > 0 {
		return errs.New(errs.Invalid, "configuration file %s: given both there and as a flag: %s", path, strings.Join(twice, ", "))
	}
	return r.conf.Check()
}
