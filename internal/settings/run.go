package settings

import (
	"strings"

	"github.com/docker/go-units"

	"corten.dev/corten/internal/errs"
)

// Runtime is an OCI runtime's command line.
type Runtime struct {
	Path string   `json:"path,omitempty"` // of the program; a bare name is looked for in $PATH
	Args []string `json:"runtimeArgs,omitempty"`
	// Type and Options name a shim of containerd's, which this engine has no use for.
	Type    string         `json:"runtimeType,omitempty"`
	Options map[string]any `json:"options,omitempty"`
}

// runtimesFlag is a flag name=path that may be given several times.
type runtimesFlag struct{ to *map[string]Runtime }

func (f *runtimesFlag) Set(v string) error {
	name, path, ok := strings.Cut(v, "=")
	name, path = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(path)
	if !ok || name == "" || path == "" {
		return errs.New(errs.Invalid, "invalid runtime argument: %s", v)
	}
	if _, twice := (*f.to)[name]; twice {
		return errs.New(errs.Invalid, "runtime '%s' was already defined", name)
	}
	if *f.to == nil {
		*f.to = map[string]Runtime{}
	}
	(*f.to)[name] = Runtime{Path: path}
	return nil
}

func (f *runtimesFlag) String() string { return "" }
func (f *runtimesFlag) Type() string   { return "name=path" }

// checkRuntimes speaks as dockerd does.
func (s *Settings) checkRuntimes() error {
	for name, rt := range s.Runtimes {
		switch {
		case name == "" || strings.ContainsAny(name, "/\x00") || name[0] == '.':
			return errs.New(errs.Invalid, "runtime name '%s' is invalid", name)
		case name == "corten":
			return errs.New(errs.Invalid, "runtime name '%s' is reserved", name)
		case rt.Type != "" || len(rt.Options) > 0:
			return errs.New(errs.Invalid, "runtime %s: runtimeType and options are for shims of containerd, which this engine does without: give the path of the OCI runtime itself", name)
		case rt.Path == "":
			return errs.New(errs.Invalid, "runtime %s: a path must be configured", name)
		}
	}
	if name := s.DefaultRuntime; !OwnRuntime(name) {
		if _, ok := s.Runtimes[name]; !ok {
			return errs.New(errs.Invalid, "specified default runtime '%s' does not exist", name)
		}
	}
	return nil
}

// OwnRuntime tells whether a name is that of our own runtime; "" is the default one. Clients ask for Docker's by habit, and get what is the engine's own, unless Runtimes has one of that name.
func OwnRuntime(name string) bool {
	return name == "" || name == "corten" || name == "runc" || name == "io.containerd.runc.v2"
}

// TreeSize is how many bytes of its own a container may write that does not say (storage-opts); 0: no bound.
func (s *Settings) TreeSize() (int64, error) {
	size := int64(0)
	for _, o := range s.StorageOpts {
		key, value, ok := strings.Cut(o, "=")
		if key = strings.ToLower(strings.TrimSpace(key)); !ok {
			return 0, errs.New(errs.Invalid, "storage-opt %q: give name=value", o)
		}
		if key != "overlay2.size" && key != "overlay.size" {
			return 0, errs.New(errs.Invalid, "overlay: unknown option %s: only overlay2.size=SIZE is known", key)
		}
		var err error
		if size, err = units.RAMInBytes(strings.TrimSpace(value)); err != nil {
			return 0, errs.New(errs.Invalid, "storage-opt %q: %w", o, err)
		}
	}
	if size > 0 && (s.Storage == "plain" || s.Storage == "vfs") {
		return 0, errs.New(errs.Invalid, "storage-opt overlay2.size: the storage driver %s has no sizes", s.Storage)
	}
	return size, nil
}
