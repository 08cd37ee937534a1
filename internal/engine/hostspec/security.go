package hostspec

import (
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/caps"
)

// Security makes seccomp profiles. What depends only on the capabilities is made once.
type Security struct {
	def      string // default profile: "" built in, "unconfined", or JSON
	apparmor bool
	log      *slog.Logger
	profile  sync.Once // guards name, the AppArmor profile of containers that ask for none
	name     string
	own      []string // capabilities that the engine itself has; nobody can be given more

	selinux   bool
	noSELinux string // why there are no labels
	levels    levels

	mu    sync.Mutex
	cache map[string]*specs.LinuxSeccomp // by profile and capabilities; never changed once made
}

const cachedProfiles = 64

// NewSecurity: def is the profile of those that ask for none, "" for the one built in, "unconfined", or JSON.
func NewSecurity(def string, log *slog.Logger) *Security {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	s := &Security{def: def, log: log, own: ownCapabilities(), apparmor: err == nil && strings.HasPrefix(string(enabled), "Y"), cache: map[string]*specs.LinuxSeccomp{}}
	shared, why := SharedLabel()
	s.selinux, s.noSELinux = shared != "", why
	return s
}

// Seccomp gives the profile for a set of capabilities; nil for none.
func (s *Security) Seccomp(profile string, privileged bool, caps []string) (*specs.LinuxSeccomp, error) {
	if profile == "" {
		if privileged {
			return nil, nil
		}
		profile = s.def
	}
	if profile == "unconfined" {
		return nil, nil
	}
	key := profile + "\x00" + strings.Join(caps, ",")
	s.mu.Lock()
	made := s.cache[key]
	s.mu.Unlock()
	if made != nil {
		return made, nil
	}
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}}}
	var err error
	if profile == "" {
		made, err = seccomp.GetDefaultProfile(spec)
	} else {
		made, err = seccomp.LoadProfile(profile, spec)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "seccomp profile: %w", err)
	}
	s.mu.Lock()
	if len(s.cache) < cachedProfiles {
		s.cache[key] = made
	}
	s.mu.Unlock()
	return made, nil
}

// AppArmor gives the profile's name, "" for none.
func (s *Security) AppArmor(asked string, privileged bool) (string, error) {
	if !s.apparmor {
		if asked != "" && asked != "unconfined" {
			return "", errs.New(errs.Invalid, "apparmor profile %q asked for, but the kernel of this host has no AppArmor", asked)
		}
		return "", nil
	}
	switch {
	case asked == "unconfined" || asked == "" && privileged:
		return "unconfined", nil
	case asked != "":
		return asked, nil
	}
	s.profile.Do(func() { s.name = s.defaultProfile() })
	return s.name, nil
}

// defaultProfile is what a container gets that asks for none: one that the administrator loaded, or ours. A host that has neither, and no tool to load one, goes without.
func (s *Security) defaultProfile() string {
	name, err := loadedProfile(ownProfile, "docker-default")
	if err != nil {
		return "" // the list cannot be read inside a container: then loading is not for us either
	}
	if name != "" {
		return name
	}
	if err := loadOwnProfile(); err != nil {
		s.log.Warn("containers run without an AppArmor profile", "err", err)
		return ""
	}
	return ownProfile
}

// Capabilities resolves --cap-add, --cap-drop and --privileged. "All" means all that the engine can give: on a host whose root lacks one, asking for all is no error,
// while asking for that one by name is.
func (s *Security) Capabilities(host *container.Host, privileged bool) ([]string, error) {
	names, err := caps.Resolve(host.CapAdd, host.CapDrop, privileged)
	if err != nil {
		return nil, err
	}
	all := func(name string) bool { return strings.EqualFold(name, "ALL") }
	if !privileged && !slices.ContainsFunc(host.CapAdd, all) {
		return names, nil
	}
	return slices.DeleteFunc(names, func(name string) bool { return s.own != nil && !slices.Contains(s.own, name) }), nil
}

// ownCapabilities are those that this process may use; nil when the kernel does not tell.
func ownCapabilities() []string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapPrm:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil {
				return nil
			}
			return caps.Names(mask)
		}
	}
	return nil
}
