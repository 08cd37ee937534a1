package ship

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	units "github.com/docker/go-units"

	"corten.dev/corten/internal/errs"
)

// Names of what is no driver but how the container's own log is kept.
const (
	Local = "local" // the own log alone, under the name of Docker's driver that is most like it
	None  = "none"
)

// common are options that every driver takes.
func common() []string { return []string{"labels", "labels-regex", "env", "env-regex", "tag"} }

// delivery are options about the way there, taken for every choice of drivers.
func delivery() []string { return []string{"mode", "max-buffer-size"} }

// cache are Docker's options of the copy that it keeps for `logs` beside a driver that cannot be read: here the container's own log, from which drivers are fed.
func cache() []string {
	return []string{"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"}
}

// filing are options of drivers that keep files.
func filing() []string { return []string{"max-size", "max-file", "compress"} }

// Config is a container's log configuration, read and checked.
type Config struct {
	Names   []string // as given; "local" and "none" too
	Targets []Target // the drivers that followers are needed for
	None    bool
	// Own is how large the container's own log may grow, and whether its finished files are compressed.
	Own Bound
	// NonBlocking and Buffer are Docker's mode and max-buffer-size: whether output is dropped, and counted, rather than wait for the disk.
	NonBlocking bool
	Buffer      int64
	// Unreadable is cache-disabled: `logs` is refused, and finished files of the own log go as soon as every driver has them.
	Unreadable bool
	options    map[string]string
}

// Target is one driver with its options.
type Target struct {
	Driver  Driver
	Options map[string]string
	Bound   Bound           // of drivers that keep files
	Join    *Join           // nil: every line is a message
	exact   map[string]bool // options of joining that named the driver
}

// Drivers finds a driver by its name; nil when there is none. Finding one must not take time: it is not asked anything.
type Drivers func(name string) Driver

// Request is what was asked for.
type Request struct {
	Names   string // a driver, or several with commas between them
	Options map[string]string
	// Own is set when nobody named a driver: nothing but the container's own log is kept, though Names says json-file, which is what clients are shown.
	Own bool
}

// Parse reads a log configuration. An option goes to every named driver that takes it; "syslog.tag" is the option tag for syslog alone. Errors are in Docker's words.
func Parse(drivers Drivers, req Request) (*Config, error) {
	names, opts := req.Names, req.Options
	c := &Config{Names: strings.Split(names, ","), options: opts}
	for i, name := range c.Names {
		if slices.Contains(c.Names[:i], name) {
			return nil, errs.New(errs.Invalid, "log driver %q is named twice in %q", name, names)
		}
		if name == Local || req.Own && files(name) {
			continue
		}
		if name == None {
			c.None = true
			continue
		}
		driver := drivers(name)
		if driver == nil {
			return nil, errs.New(errs.Invalid, "logger: no log driver named '%s' is registered", name)
		}
		c.Targets = append(c.Targets, Target{Driver: driver, Options: map[string]string{}, exact: map[string]bool{}})
	}
	if c.None {
		if len(c.Names) > 1 {
			return nil, errs.New(errs.Invalid, "log driver %q keeps nothing: it cannot be combined with others (%q)", None, names)
		}
		if len(opts) > 0 {
			return nil, errs.New(errs.Invalid, "invalid logging opts for driver none")
		}
		return c, nil
	}
	for _, key := range slices.Sorted(maps.Keys(opts)) {
		if err := c.hand(names, key, opts[key]); err != nil {
			return nil, err
		}
	}
	if err := c.bounds(opts); err != nil {
		return nil, err
	}
	if err := c.way(opts); err != nil {
		return nil, err
	}
	return c, c.check()
}

// files tells whether a driver keeps files bounded by max-size and max-file.
func files(name string) bool { return name == Local || name == "json-file" }

// hand gives an option to the drivers that take it.
func (c *Config) hand(names, key, value string) error {
	taken := slices.Contains(delivery(), key) || len(c.Targets) > 0 && !c.reads() && slices.Contains(cache(), key)
	only, bare, exact := strings.Cut(key, ".")
	if !exact || !slices.Contains(c.Names, only) {
		only, bare = "", key
	}
	for _, name := range c.Names {
		if only != "" && name != only {
			continue
		}
		if slices.Contains(common(), bare) || files(name) && slices.Contains(filing(), bare) {
			taken = true
		}
	}
	for i := range c.Targets {
		t := &c.Targets[i]
		if only != "" && t.Driver.Name() != only {
			continue
		}
		if isJoining(bare) {
			taken = true
			if t.exact[bare] && only == "" {
				continue
			}
			if err := t.setJoin(bare, value); err != nil {
				return err
			}
			t.exact[bare] = only != ""
			continue
		}
		if slices.Contains(common(), bare) || files(t.Driver.Name()) && slices.Contains(filing(), bare) || takes(t.Driver, bare) {
			taken = true
			if _, own := t.Options[bare]; !own || only != "" {
				t.Options[bare] = value
			}
		}
	}
	if !taken && len(c.Names) == 1 && names == Local {
		return errs.New(errs.Invalid, "unknown log opt '%s' for log driver local", key)
	}
	if !taken {
		return errs.New(errs.Invalid, "unknown log opt '%s' for %s log driver", key, names)
	}
	return nil
}

// takes tells whether an option is one of a driver's.
func takes(d Driver, option string) bool {
	all := d.Options()
	return slices.Contains(all, option) || slices.Contains(all, AnyOption)
}

// reads tells whether Docker reads the logs of one of the drivers back, so that it keeps no cache.
func (c *Config) reads() bool { return slices.ContainsFunc(c.Names, files) }

// bounds reads how large files may grow.
func (c *Config) bounds(opts map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(opts)) {
		only, bare, exact := strings.Cut(key, ".")
		if !exact {
			only, bare = "", key
		}
		value := opts[key]
		if slices.Contains(filing(), bare) {
			if only == "" || only == Local {
				if err := c.Own.set(bare, value); err != nil {
					return err
				}
			}
			for i := range c.Targets {
				if t := &c.Targets[i]; files(t.Driver.Name()) && (only == "" || only == t.Driver.Name()) {
					if err := t.Bound.set(bare, t.Options[bare]); err != nil {
						return err
					}
				}
			}
		}
		if name, ok := strings.CutPrefix(key, "cache-"); ok && name != "disabled" {
			if err := c.Own.set(name, value); err != nil {
				return err
			}
		}
	}
	if c.Own.Compress && (c.Own.MaxFiles == 1 || c.Own.MaxSize < 0) {
		return errs.New(errs.Invalid, "compress cannot be true when max-file is less than 2 or max-size is not set")
	}
	return nil
}

// set reads one bound.
func (b *Bound) set(name, value string) error {
	switch name {
	case "max-size":
		if value == "-1" { // Docker's word for no bound
			b.MaxSize = -1
			return nil
		}
		n, err := units.RAMInBytes(value)
		if err != nil {
			return errs.New(errs.Invalid, "invalid value for max-size: %s: %w", value, err)
		}
		if n <= 0 {
			return errs.New(errs.Invalid, "max-size must be a positive number")
		}
		b.MaxSize = n
	case "max-file":
		n, err := strconv.Atoi(value)
		if err != nil {
			return errs.New(errs.Invalid, "invalid value for max-file: %s: %w", value, err)
		}
		if n < 1 {
			return errs.New(errs.Invalid, "max-file cannot be less than 1")
		}
		b.MaxFiles = n
	case "compress":
		on, err := strconv.ParseBool(value)
		if err != nil {
			return errs.New(errs.Invalid, "invalid value for compress: %s: %w", value, err)
		}
		b.Compress = on
	}
	return nil
}

// way reads the options about how output gets into the container's own log.
func (c *Config) way(opts map[string]string) error {
	switch opts["mode"] {
	case "", "blocking":
	case "non-blocking":
		c.NonBlocking, c.Buffer = true, 1<<20
	default:
		return errs.New(errs.Invalid, "logger: logging mode not supported: %s", opts["mode"])
	}
	if size, ok := opts["max-buffer-size"]; ok {
		if !c.NonBlocking {
			return errs.New(errs.Invalid, "logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		n, err := units.RAMInBytes(size)
		if err != nil {
			return errs.New(errs.Invalid, "error parsing option max-buffer-size: %w", err)
		}
		if n <= 0 {
			return errs.New(errs.Invalid, "max-buffer-size must be a positive number")
		}
		c.Buffer = n
	}
	if off, ok := opts["cache-disabled"]; ok {
		on, err := strconv.ParseBool(off)
		if err != nil {
			return errs.New(errs.Invalid, "invalid value for option cache-disabled: %s", off)
		}
		c.Unreadable = on
	}
	return nil
}

// check has the drivers look at their options, and tries what all share: templates and patterns.
func (c *Config) check() error {
	sample := Info{Config: c.options, ContainerLabels: map[string]string{}, ContainerID: strings.Repeat("0", 64), ContainerName: "/name", ContainerImageID: "sha256:" + strings.Repeat("0", 64)}
	if _, err := sample.Details(); err != nil {
		return err
	}
	for _, t := range c.Targets {
		if err := t.checkJoin(); err != nil {
			return err
		}
		sample.Config = t.Options
		if _, err := sample.Details(); err != nil {
			return err
		}
		if err := t.Driver.Check(t.Options); err != nil {
			return err
		}
	}
	return nil
}
