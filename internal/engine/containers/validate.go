package containers

import (
	"fmt"
	"net/netip"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/caps"
	linuxhost "corten.dev/corten/internal/linux/host"
)

// cgroup2 tells whether this host has the unified hierarchy alone.
var cgroup2 = sync.OnceValue(func() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
})

// kernelMemory tells whether the kernel can limit its own memory apart: cgroup v1 only, and not since 5.16.
var kernelMemory = sync.OnceValue(func() bool {
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.kmem.limit_in_bytes")
	return err == nil && !linuxhost.KernelSince(5, 16)
})

// validate refuses what is wrong or cannot be done, in Docker's words where it has some, and returns warnings.
func (s *Service) validate(req *CreateRequest) (warnings []string, err error) {
	cfg, host := &req.Config, &req.Host
	if err := refuseUnsupported(cfg, host); err != nil {
		return nil, err
	}
	if cfg.WorkingDir != "" && !path.IsAbs(cfg.WorkingDir) {
		return nil, errs.New(errs.Invalid, "the working directory '%s' is invalid, it needs to be an absolute path", cfg.WorkingDir)
	}
	for _, kv := range cfg.Env {
		if kv == "" || kv[0] == '=' || strings.ContainsRune(kv, 0) {
			return nil, errs.New(errs.Invalid, "invalid environment variable: %s", kv)
		}
	}
	if cfg.StopSignal != "" {
		if _, err := parseSignal(cfg.StopSignal); err != nil {
			return nil, err
		}
	}
	if cfg.StopTimeout != nil && *cfg.StopTimeout < -1 {
		return nil, errs.New(errs.Invalid, "invalid stop timeout %d: give seconds, or -1 to wait for ever", *cfg.StopTimeout)
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
	if _, err := parseLogConfig(host.Log); err != nil {
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
	for _, extra := range host.ExtraHosts {
		_, addr, ok := cutHost(extra)
		if !ok {
			return nil, errs.New(errs.Invalid, "bad format for add-host: %q", extra)
		}
		if _, err := netip.ParseAddr(addr); err != nil && addr != "host-gateway" {
			return nil, errs.New(errs.Invalid, "invalid IP address in add-host: %q", addr)
		}
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
	more, err := validateResources(&host.Resources)
	return append(warnings, more...), err
}

// refuseUnsupported names everything that this engine cannot honour yet, rather than ignore it.
func refuseUnsupported(cfg *container.Config, host *container.Host) error {
	no := func(what, why string) error {
		return errs.New(errs.NotImplemented, "%s is not supported: %s", what, why)
	}
	switch {
	case len(host.Resources.DeviceRequests) > 0:
		return errs.New(errs.Invalid, `could not select device driver "%s" with capabilities: %v`, host.Resources.DeviceRequests[0].Driver, host.Resources.DeviceRequests[0].Capabilities)
	case host.UsernsMode != "" && host.UsernsMode != "host":
		return no("user namespace mode "+strconv.Quote(host.UsernsMode), "the engine runs without user namespace remapping")
	case host.Runtime != "" && host.Runtime != "corten" && host.Runtime != "runc" && host.Runtime != "io.containerd.runc.v2":
		return errs.New(errs.Invalid, "unknown or invalid runtime name: %s", host.Runtime)
	case host.VolumeDriver != "" && host.VolumeDriver != "local":
		return errs.New(errs.NotFound, "error looking up volume plugin %s: plugin %q not found", host.VolumeDriver, host.VolumeDriver)
	case len(host.StorageOpt) > 0:
		return no("a storage option", "the snapshot driver has no size limit for one container")
	case host.Cgroup != "":
		return errs.New(errs.Invalid, "invalid cgroup mode: %v", host.Cgroup)
	case host.Resources.CPURealtimePeriod != 0 || host.Resources.CPURealtimeRuntime != 0:
		return no("real-time CPU time (--cpu-rt-period, --cpu-rt-runtime)", "kernels with real-time group scheduling are not supported")
	}
	if h := cfg.Healthcheck; h != nil && (len(h.Test) > 0 && h.Test[0] != "NONE" || h.Interval+h.Timeout+h.StartPeriod+h.StartInterval != 0 || h.Retries != 0) {
		return no("a health check given at create", "health checks come in a later version; those of images are kept but not run")
	}
	return nil
}

func validateRestart(policy container.RestartPolicy, autoRemove bool) error {
	switch policy.Name {
	case "", "no", "always", "unless-stopped":
		if policy.MaxRetries > 0 {
			return errs.New(errs.Invalid, "invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case "on-failure":
		if policy.MaxRetries < 0 {
			return errs.New(errs.Invalid, "invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return errs.New(errs.Invalid, "invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", policy.Name)
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
	case (shared || host.NetworkMode == "host") && len(host.Links) > 0:
		return errs.New(errs.Invalid, "conflicting options: links and the network mode: this could cause undefined behaviour")
	}
	return nil
}

func validateResources(res *container.Resources) (warnings []string, err error) {
	bad := func(format string, args ...any) ([]string, error) {
		return nil, errs.New(errs.Invalid, format, args...)
	}
	switch {
	case res.Memory != 0 && res.Memory < 6<<20:
		return bad("Minimum memory limit allowed is 6MB")
	case res.Memory > 0 && res.MemorySwap > 0 && res.MemorySwap < res.Memory:
		return bad("Minimum memoryswap limit should be larger than memory limit, see usage")
	case res.Memory == 0 && res.MemorySwap > 0:
		return bad("You should always set the Memory limit when using Memoryswap limit, see usage")
	case res.MemoryReservation != 0 && res.MemoryReservation < 6<<20:
		return bad("Minimum memory reservation allowed is 6MB")
	case res.Memory > 0 && res.MemoryReservation > res.Memory:
		return bad("Minimum memory limit can not be less than memory reservation limit, see usage")
	case res.NanoCPUs > 0 && res.CPUPeriod > 0:
		return bad("Conflicting options: Nano CPUs and CPU Period cannot both be set.")
	case res.NanoCPUs > 0 && res.CPUQuota > 0:
		return bad("Conflicting options: Nano CPUs and CPU Quota cannot both be set.")
	case res.NanoCPUs < 0 || res.NanoCPUs > int64(runtime.NumCPU())*1e9:
		return bad("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", runtime.NumCPU())
	case res.CPUPeriod != 0 && (res.CPUPeriod < 1000 || res.CPUPeriod > 1000000):
		return bad("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case res.CPUQuota > 0 && res.CPUQuota < 1000:
		return bad("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case res.BlkioWeight != 0 && (res.BlkioWeight < 10 || res.BlkioWeight > 1000):
		return bad("range of blkio weight is from 10 to 1000")
	case res.KernelMemory != 0 && res.KernelMemory < 4<<20:
		return bad("Minimum kernel memory limit allowed is 4MB")
	case res.CPUShares < 0:
		return bad("shares must be greater than or equal to 0")
	case res.PidsLimit != nil && *res.PidsLimit < -1:
		return bad("invalid pids limit %d", *res.PidsLimit)
	}
	if res.KernelMemory > 0 && !kernelMemory() {
		warnings, res.KernelMemory = append(warnings, "Your kernel does not support kernel memory limit capabilities or the cgroup is not mounted. Limitation discarded."), 0
	}
	if sw := res.MemorySwappiness; sw != nil {
		if *sw != -1 && (*sw < 0 || *sw > 100) {
			return bad("invalid value: %d, valid memory swappiness range is 0-100", *sw)
		}
		if *sw != -1 && cgroup2() {
			warnings, res.MemorySwappiness = append(warnings, "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded."), nil
		}
	}
	if res.OomKillDisable != nil && *res.OomKillDisable {
		if cgroup2() {
			warnings, res.OomKillDisable = append(warnings, "Your kernel does not support OomKillDisable. OomKillDisable discarded."), nil
		} else if res.Memory == 0 {
			warnings = append(warnings, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
		}
	}
	for what, value := range map[string]string{"cpus": res.CpusetCpus, "mems": res.CpusetMems} {
		if err := validateSet(what, value); err != nil {
			return nil, err
		}
	}
	for _, u := range res.Ulimits {
		if _, ok := hostspec.Rlimit(u.Name); !ok {
			return bad("invalid ulimit type: %s", u.Name)
		}
		if u.Soft > u.Hard && u.Hard != -1 {
			return bad("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
	}
	for _, rule := range res.DeviceCgroupRules {
		if _, err := hostspec.ParseDeviceRule(rule); err != nil {
			return nil, err
		}
	}
	return warnings, nil
}

// validateSet checks "0-2,5" against what this host has.
func validateSet(what, value string) error {
	if value == "" {
		return nil
	}
	path := "/sys/devices/system/cpu/online"
	if what == "mems" {
		path = "/sys/devices/system/node/online"
	}
	have := "0"
	if b, err := os.ReadFile(path); err == nil {
		have = strings.TrimSpace(string(b))
	}
	want, err := parseSet(value)
	if err != nil {
		return errs.New(errs.Invalid, "Invalid value %s for cpuset %s", value, what)
	}
	online, err := parseSet(have)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	for n := range want {
		if !online[n] {
			name := map[string]string{"cpus": "CPUs", "mems": "memory nodes"}[what]
			return errs.New(errs.Invalid, "Requested %s are not available - requested %s, available: %s", name, value, have)
		}
	}
	return nil
}

func parseSet(s string) (map[int]bool, error) {
	set := map[int]bool{}
	for _, part := range strings.Split(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err := strconv.ParseUint(lo, 10, 16)
		if err != nil {
			return nil, err
		}
		b, err := strconv.ParseUint(hi, 10, 16)
		if err != nil {
			return nil, err
		}
		if a > b || b >= 8192 { // more than any kernel is built for
			return nil, errs.New(errs.Invalid, "range %s", part)
		}
		for n := a; n <= b; n++ {
			set[int(n)] = true
		}
	}
	return set, nil
}
