package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/parse"
	"corten.dev/corten/internal/errs"
)

// badFlag says that a flag's value is wrong, in the words that the flag parser itself uses.
func badFlag(name, value string, err error) error {
	short := map[string]string{"memory": "-m, ", "attach": "-a, ", "env": "-e, "}[name]
	return &usageError{text: fmt.Sprintf("invalid argument %q for \"%s--%s\" flag: %v", value, short, name, err), code: 125, see: "Run"}
}

// checkLabels wants a name in each label; flag is how help shows the flag.
func checkLabels(flag string, labels []string) error {
	for _, l := range labels {
		if strings.HasPrefix(l, "=") || l == "" {
			return &usageError{text: fmt.Sprintf("invalid argument %q for %q flag: invalid label '%s': empty name", l, flag, l), code: 125, see: "Run"}
		}
	}
	return nil
}

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

// capNames writes capabilities as docker's client does, so that inspect shows one spelling of what was asked for: CAP_CHOWN for chown, each once, in order.
func capNames(asked []string) []string {
	var out []string
	for _, name := range asked {
		name = strings.ToUpper(strings.TrimSpace(name))
		if name != "ALL" && !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// toRequest turns flags into the API's create request. args are the image and its command.
func (o *ctrFlags) toRequest(fs *pflag.FlagSet, args []string) (*container.CreateRequest, error) {
	if args[0] == "" {
		return nil, invalid("invalid reference format")
	}
	cfg := &container.Config{
		Image: args[0], Hostname: o.hostname, Domainname: o.domainname, User: o.user, Tty: o.tty,
		OpenStdin: o.interactive, WorkingDir: o.workdir, StopSignal: o.stopSignal, Volumes: map[string]struct{}{},
	}
	if len(args) > 1 {
		cfg.Cmd = args[1:]
	}
	if fs.Changed("entrypoint") {
		cfg.Entrypoint = []string{o.entrypoint} // "" resets the image's
	}
	if fs.Changed("stop-timeout") {
		cfg.StopTimeout = &o.stopTimeout
	}
	host := &container.HostConfig{
		AutoRemove: o.rm, Privileged: o.privileged, ReadonlyRootfs: o.readOnly, PublishAllPorts: o.publishAll,
		CapAdd: capNames(o.capAdd), CapDrop: capNames(o.capDrop), GroupAdd: o.groupAdd, VolumesFrom: o.volumesFrom, VolumeDriver: o.volDrv,
		DNSOptions: o.dnsOption, DNSSearch: o.dnsSearch, OomScoreAdj: o.oomScore, Runtime: o.runtime,
		ContainerIDFile: o.cidfile, Isolation: container.Isolation(o.isolation),
	}
	if fs.Changed("init") {
		host.Init = &o.initProc
	}
	req := &container.CreateRequest{Config: cfg, HostConfig: host}
	steps := []func() error{
		func() error { return o.unsupported() },
		func() error { return o.streams(cfg) },
		func() error { return o.words(cfg, host) },
		func() error { return o.health.apply(cfg, host) },
		func() error { return o.netLimits.check(fs) },
		func() error { return o.netLimits.apply(host) },
		func() error { return o.storage(cfg, host) },
		func() error { return o.limits(fs, &host.Resources) },
		func() error { return o.devices(&host.Resources) },
		func() error { return o.isolate(host) },
		func() error { return o.ports(cfg, host) },
		func() error { return o.networks(req) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if o.rm && !host.RestartPolicy.IsNone() {
		return nil, invalid("conflicting options: cannot specify both --restart and --rm")
	}
	return req, nil
}

// unsupported names the flags that mean something Linux or the API no longer have.
func (o *ctrFlags) unsupported() error {
	switch {
	case o.kernelMemory != "":
		return invalid("--kernel-memory: kernel memory limits are gone from Linux and from the API; use --memory")
	case !o.contentTrust:
		return invalid("--disable-content-trust=false: content trust is not part of this version")
	case o.useAPISocket:
		return invalid("--use-api-socket is not part of this version; mount the socket with -v")
	}
	return o.checkPull()
}

func (o *ctrFlags) streams(cfg *container.Config) error {
	for _, s := range o.attach {
		switch strings.ToLower(s) {
		case "stdin":
			cfg.AttachStdin = true
		case "stdout":
			cfg.AttachStdout = true
		case "stderr":
			cfg.AttachStderr = true
		default:
			return badFlag("attach", s, errors.New("valid streams are STDIN, STDOUT and STDERR"))
		}
	}
	if len(o.attach) == 0 {
		cfg.AttachStdout, cfg.AttachStderr, cfg.AttachStdin = true, true, o.interactive
	}
	if o.interactive && cfg.AttachStdin {
		cfg.StdinOnce = true
	}
	return nil
}

// words are environment, labels and other name=value flags.
func (o *ctrFlags) words(cfg *container.Config, host *container.HostConfig) (err error) {
	for _, name := range o.envFile {
		env, err := parse.EnvFile(name, os.LookupEnv)
		if err != nil {
			return err
		}
		cfg.Env = append(cfg.Env, env...)
	}
	env, err := parse.Env(o.env, os.LookupEnv)
	if err != nil {
		return badFlag("env", strings.TrimPrefix(err.Error(), "invalid environment variable: "), err)
	}
	cfg.Env = append(cfg.Env, env...)
	var labels []string
	for _, name := range o.labelFile {
		lines, err := parse.EnvFile(name, nil)
		if err != nil {
			return err
		}
		labels = append(labels, lines...)
	}
	if err := checkLabels("-l, --label", o.label); err != nil {
		return err
	}
	cfg.Labels = parse.Map(append(labels, o.label...))
	if host.Annotations, err = parse.Pairs("annotation", o.annotation); err != nil {
		return err
	}
	for _, v := range o.sysctl {
		if err := parse.Sysctl(v); err != nil {
			return badFlag("sysctl", v, err)
		}
	}
	if host.Sysctls, err = parse.Pairs("sysctl", o.sysctl); err != nil {
		return err
	}
	if host.StorageOpt, err = parse.Pairs("storage-opt", o.storageOpt); err != nil {
		return err
	}
	if o.logDriver == "none" && len(o.logOpt) > 0 {
		return invalid("invalid logging opts for driver none")
	}
	host.LogConfig = container.LogConfig{Type: o.logDriver, Config: parse.Map(o.logOpt)}
	host.RestartPolicy, err = parse.Restart(o.restart)
	return err
}

func (o *ctrFlags) storage(cfg *container.Config, host *container.HostConfig) error {
	for _, v := range o.volume {
		bind, anonymous, err := parse.Volume(v)
		if err != nil {
			return err
		}
		if bind != "" {
			host.Binds = append(host.Binds, bind)
		} else {
			cfg.Volumes[anonymous] = struct{}{}
		}
	}
	for _, v := range o.mount {
		m, err := parse.Mount(v)
		if err != nil {
			return badFlag("mount", v, err)
		}
		o.mounts = append(o.mounts, m)
	}
	for _, v := range o.tmpfs {
		path, opts, _ := strings.Cut(v, ":")
		if !strings.HasPrefix(path, "/") {
			return invalid("invalid --tmpfs: %q: path must be absolute", v)
		}
		if host.Tmpfs == nil {
			host.Tmpfs = map[string]string{}
		}
		host.Tmpfs[path] = opts
	}
	var err error
	host.ShmSize, err = size("shm-size", o.shmSize)
	return err
}

// size reads a flag that is a number of bytes.
func size(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := parse.Bytes(s)
	if err != nil {
		return 0, badFlag(flag, s, err)
	}
	if n < 0 && flag != "memory-swap" {
		return 0, badFlag(flag, s, invalid("invalid size: '%s'", s))
	}
	return n, nil
}

func (o *ctrFlags) limits(fs *pflag.FlagSet, r *container.Resources) (err error) {
	r.CPUShares, r.CPUPeriod, r.CPUQuota = o.cpuShares, o.cpuPeriod, o.cpuQuota
	r.CPURealtimePeriod, r.CPURealtimeRuntime = o.cpuRtPeriod, o.cpuRtRuntime
	r.CpusetCpus, r.CpusetMems, r.CgroupParent = o.cpusetCpus, o.cpusetMems, o.cgroupParent
	r.CPUCount, r.CPUPercent, r.IOMaximumIOps = o.cpuCount, o.cpuPercent, o.ioMaxIOps
	r.BlkioWeight = o.blkioWeight
	for _, s := range []struct {
		flag, val string
		into      *int64
	}{{"memory", o.memory, &r.Memory}, {"memory-swap", o.memorySwap, &r.MemorySwap}, {"memory-reservation", o.memoryReservation, &r.MemoryReservation}} {
		if s.val == "" && fs.Changed(s.flag) {
			return badFlag(s.flag, s.val, invalid("invalid size: '%s'", s.val))
		}
		if *s.into, err = size(s.flag, s.val); err != nil {
			return err
		}
	}
	bandwidth, err := size("io-maxbandwidth", o.ioMaxBandwidth)
	if err != nil {
		return err
	}
	r.IOMaximumBandwidth = uint64(bandwidth)
	if o.cpus != "" {
		if r.NanoCPUs, err = parse.CPUs(o.cpus); err != nil {
			return badFlag("cpus", o.cpus, err)
		}
	}
	if fs.Changed("memory-swappiness") {
		if o.swappiness < -1 || o.swappiness > 100 {
			return invalid("invalid value: %d. Valid memory swappiness range is 0-100", o.swappiness)
		}
		if o.swappiness >= 0 {
			r.MemorySwappiness = &o.swappiness
		}
	}
	if fs.Changed("oom-kill-disable") {
		r.OomKillDisable = &o.oomKillDisable
	}
	if fs.Changed("pids-limit") {
		r.PidsLimit = &o.pidsLimit
	}
	for _, s := range o.ulimit {
		u, err := parse.Ulimit(s)
		if err != nil {
			return badFlag("ulimit", s, err)
		}
		r.Ulimits = append(r.Ulimits, u)
	}
	return nil
}

func (o *ctrFlags) devices(r *container.Resources) error {
	for _, s := range o.blkioWeightDevice {
		d, err := parse.WeightDevice(s)
		if err != nil {
			return badFlag("blkio-weight-device", s, err)
		}
		r.BlkioWeightDevice = append(r.BlkioWeightDevice, d)
	}
	for _, t := range []struct {
		flag    string
		specs   []string
		inBytes bool
		into    *[]*blkiodev.ThrottleDevice
	}{{"device-read-bps", o.readBps, true, &r.BlkioDeviceReadBps}, {"device-write-bps", o.writeBps, true, &r.BlkioDeviceWriteBps},
		{"device-read-iops", o.readIOps, false, &r.BlkioDeviceReadIOps}, {"device-write-iops", o.writeIOps, false, &r.BlkioDeviceWriteIOps}} {
		for _, s := range t.specs {
			d, err := parse.ThrottleDevice(s, t.inBytes)
			if err != nil {
				return badFlag(t.flag, s, err)
			}
			*t.into = append(*t.into, d)
		}
	}
	var cdi []string
	for _, s := range o.device {
		dev, name, err := parse.Device(s)
		if err != nil {
			return err
		}
		if name != "" {
			cdi = append(cdi, name)
			continue
		}
		r.Devices = append(r.Devices, dev)
	}
	for _, s := range o.gpus {
		req, err := parse.GPUs(s)
		if err != nil {
			return badFlag("gpus", s, err)
		}
		r.DeviceRequests = append(r.DeviceRequests, req)
	}
	if len(cdi) > 0 {
		r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{Driver: "cdi", DeviceIDs: cdi})
	}
	for _, s := range o.deviceRule {
		if err := parse.DeviceRule(s); err != nil {
			return badFlag("device-cgroup-rule", s, err)
		}
	}
	r.DeviceCgroupRules = o.deviceRule
	return nil
}

func (o *ctrFlags) isolate(h *container.HostConfig) error {
	h.PidMode, h.IpcMode = container.PidMode(o.pid), container.IpcMode(o.ipc)
	h.UTSMode, h.UsernsMode = container.UTSMode(o.uts), container.UsernsMode(o.userns)
	h.CgroupnsMode = container.CgroupnsMode(o.cgroupns)
	switch {
	case !h.PidMode.Valid():
		return invalid("--pid: invalid PID mode")
	case !h.UTSMode.Valid():
		return invalid("--uts: invalid UTS mode")
	case !h.UsernsMode.Valid():
		return invalid("--userns: invalid USER mode")
	case !h.CgroupnsMode.Valid():
		return invalid("--cgroupns: invalid CGROUP mode")
	}
	for _, s := range o.securityOpt {
		name, val, ok := strings.Cut(s, "=")
		if !ok && name != "no-new-privileges" {
			name, val, ok = strings.Cut(s, ":") // docker's old spelling
			if !ok {
				return invalid("Invalid --security-opt: %q", s)
			}
			s = name + "=" + val
		}
		switch {
		case name == "seccomp" && val != "unconfined" && val != "builtin":
			data, err := os.ReadFile(val)
			if err != nil {
				return fmt.Errorf("opening seccomp profile (%s) failed: %w", val, err)
			}
			var small bytes.Buffer
			if err := json.Compact(&small, data); err != nil {
				return invalid("compacting json for seccomp profile (%s) failed: %w", val, err)
			}
			s = "seccomp=" + small.String()
		case name == "systempaths" && val == "unconfined":
			h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
			continue
		}
		h.SecurityOpt = append(h.SecurityOpt, s)
	}
	return nil
}

func itoa(n int) string { return strconv.Itoa(n) }
