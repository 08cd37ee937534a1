package containers

import (
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/caps"
	"corten.dev/corten/internal/network"
)

// cgroup2 tells whether this host has the unified hierarchy alone.
var cgroup2 = sync.OnceValue(func() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
})

// validate refuses what is wrong or cannot be done, in Docker's words where it has some, and returns warnings.
func (s *Service) validate(req *CreateRequest) (warnings []string, err error) {
	cfg, host := &req.Config, &req.Host
	for _, bind := range host.Binds {
		if _, err := ParseBind(bind); err != nil {
			return nil, err
		}
	}
	if err := s.refuseUnsupported(host); err != nil {
		return nil, err
	}
	if err := validateWords(cfg); err != nil {
		return nil, err
	}
	if err := validateRestart(host.Restart, host.AutoRemove); err != nil {
		return nil, err
	}
	if host.OomScoreAdj < -1000 || host.OomScoreAdj > 1000 {
		return nil, errs.New(errs.Invalid, "Invalid value %d, range for oom score adj is [-1000, 1000]", host.OomScoreAdj)
	}
	if host.ShmSize < 0 {
		return nil, errs.New(errs.Invalid, "SHM size can not be less than 0")
	}
	if err := validateModes(cfg, host); err != nil {
		return nil, err
	}
	for _, ref := range joined(host.PidMode, host.IpcMode) {
		if _, err := s.find(ref); err != nil {
			return nil, errs.As(errs.Invalid, err) // not found would have clients pull the image
		}
	}
	log := host.Log
	s.defaultLog(&log)
	if _, err := s.logConfig(log); err != nil {
		return nil, err
	}
	if _, err := caps.Resolve(host.CapAdd, nil, false); err != nil {
		return nil, errs.New(errs.Invalid, "invalid CapAdd: %w", err)
	}
	if _, err := caps.Resolve(nil, host.CapDrop, false); err != nil {
		return nil, errs.New(errs.Invalid, "invalid CapDrop: %w", err)
	}
	if _, err := hostspec.ParseSecurityOpt(host.SecurityOpt); err != nil {
		return nil, err
	}
	if err := validateHealth(cfg.Healthcheck); err != nil {
		return nil, err
	}
	if _, err := s.storageSize(host.StorageOpt); err != nil {
		return nil, err
	}
	if err := validateAsked(host); err != nil {
		return nil, err
	}
	if err := validateHosts(host.ExtraHosts); err != nil {
		return nil, err
	}
	for key := range host.Sysctls {
		if key == "" || strings.Contains(key, "..") {
			return nil, errs.New(errs.Invalid, "invalid sysctl %q", key)
		}
	}
	if host.PublishAll || len(host.Ports) > 0 {
		if host.NetworkMode == "host" {
			warnings = append(warnings, "Published ports are discarded when using host network mode")
		}
	}
	if parent := host.Resources.CgroupParent; s.SystemdCgroup && parent != "" && (len(parent) <= len(".slice") || !strings.HasSuffix(parent, ".slice")) {
		return nil, errs.New(errs.Invalid, `cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`)
	}
	more, err := checkResources(&host.Resources, s.thisMachine(), false)
	return append(warnings, more...), err
}

// validateWords checks what the process is to find.
func validateWords(cfg *container.Config) error {
	if cfg.WorkingDir != "" && !path.IsAbs(cfg.WorkingDir) {
		return errs.New(errs.Invalid, "the working directory '%s' is invalid, it needs to be an absolute path", cfg.WorkingDir)
	}
	if err := validateEnv(cfg.Env, false); err != nil {
		return err
	}
	if cfg.StopSignal == "" {
		return nil
	}
	_, err := parseSignal(cfg.StopSignal)
	return err
}

// validateEnv checks variables. An exec may have empty ones, which mean nothing.
func validateEnv(env []string, empty bool) error {
	for _, kv := range env {
		if kv == "" && !empty || strings.HasPrefix(kv, "=") || strings.ContainsRune(kv, 0) {
			return errs.New(errs.Invalid, "invalid environment variable: %s", kv)
		}
	}
	return nil
}

func validateHosts(extras []string) error {
	for _, extra := range extras {
		_, addr, ok := cutHost(extra)
		if !ok {
			return errs.New(errs.Invalid, "bad format for add-host: %q", extra)
		}
		if _, err := netip.ParseAddr(addr); err != nil && addr != "host-gateway" {
			return errs.New(errs.Invalid, "invalid IP address in add-host: %q", addr)
		}
	}
	return nil
}

// refuseUnsupported names everything that this engine cannot honour yet, rather than ignore it.
func (s *Service) refuseUnsupported(host *container.Host) error {
	no := func(what, why string) error {
		return errs.New(errs.NotImplemented, "%s is not supported: %s", what, why)
	}
	switch {
	case host.UsernsMode != "" && host.UsernsMode != "host":
		return no("user namespace mode "+strconv.Quote(host.UsernsMode), "the engine runs without user namespace remapping")
	case host.Runtime != "" && !s.Runtime.Knows(host.Runtime):
		return errs.New(errs.Invalid, "unknown or invalid runtime name: %s", host.Runtime)
	case host.Cgroup != "":
		return errs.New(errs.Invalid, "invalid cgroup mode: %v", host.Cgroup)
	}
	return nil
}

func validateRestart(policy container.RestartPolicy, autoRemove bool) error {
	switch policy.Name {
	case "", "no", "always", "unless-stopped":
		if policy.MaxRetries > 0 {
			return errs.New(errs.Invalid, "invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case "on-failure", container.RestartOnUnhealthy:
		if policy.MaxRetries < 0 {
			return errs.New(errs.Invalid, "invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return errs.New(errs.Invalid, "invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', 'unless-stopped', or 'on-unhealthy'", policy.Name)
	}
	if autoRemove && policy.Name != "" && policy.Name != "no" {
		return errs.New(errs.Invalid, "can't create 'AutoRemove' container with restart policy")
	}
	return nil
}

func validateModes(cfg *container.Config, host *container.Host) error {
	other := func(mode string) bool { name, ok := strings.CutPrefix(mode, "container:"); return ok && name != "" }
	switch {
	case host.PidMode != "" && host.PidMode != "host" && host.PidMode != "private" && !other(host.PidMode):
		return errs.New(errs.Invalid, "invalid PID mode: %v", host.PidMode)
	case !slices.Contains([]string{"", "private", "shareable", "host", "none"}, host.IpcMode) && !other(host.IpcMode):
		return errs.New(errs.Invalid, "invalid IPC mode: %v", host.IpcMode)
	case host.UTSMode != "" && host.UTSMode != "host":
		return errs.New(errs.Invalid, "invalid UTS mode: %v", host.UTSMode)
	case host.CgroupnsMode != "" && host.CgroupnsMode != "host" && host.CgroupnsMode != "private":
		return errs.New(errs.Invalid, "invalid cgroup namespace mode: %v", host.CgroupnsMode)
	case host.UTSMode == "host" && cfg.Hostname != "":
		return errs.New(errs.Invalid, "conflicting options: hostname and the UTS mode")
	}
	shared := strings.HasPrefix(host.NetworkMode, "container:")
	switch {
	case shared && !other(host.NetworkMode):
		return errs.New(errs.Invalid, "invalid container format container:<name|id>")
	case shared && cfg.Hostname != "":
		return errs.New(errs.Invalid, "conflicting options: hostname and the network mode")
	case shared && len(host.DNS) > 0:
		return errs.New(errs.Invalid, "conflicting options: dns and the network mode")
	case shared && len(host.ExtraHosts) > 0:
		return errs.New(errs.Invalid, "conflicting options: custom host-to-IP mapping and the network mode")
	case shared && (len(host.Ports) > 0 || host.PublishAll):
		return errs.New(errs.Invalid, "conflicting options: port publishing and the container type network mode")
	case shared && len(host.Links) > 0:
		return errs.New(errs.Invalid, "conflicting options: container type network can't be used with links. This would result in undefined behavior")
	case host.NetworkMode == "host" && len(host.Links) > 0:
		return errs.New(errs.Invalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	return nil
}

// validateAsked looks at what is asked by annotations.
func validateAsked(host *container.Host) error {
	asked, err := container.ReadAnnotations(host.Annotations)
	if err != nil {
		return err
	}
	for what, given := range map[string]bool{"an egress list": asked.Egress != "", "rates of networks": asked.Rates != (network.Rates{})} {
		if other, shared := strings.CutPrefix(host.NetworkMode, "container:"); shared && given {
			return errs.New(errs.Invalid, "conflicting options: %s and the network of container %s, whose own count", what, other)
		}
		if host.NetworkMode == "host" && given {
			return errs.New(errs.Invalid, "conflicting options: %s and the host's network", what)
		}
	}
	return nil
}
