package containers

import (
	"cmp"
	"encoding/json"
	"strconv"
	"strings"
	"syscall"

	units "github.com/docker/go-units"
	"github.com/moby/sys/signal"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/monitor"
)

// parseSignal reads a name with or without SIG, or a number.
func parseSignal(s string) (syscall.Signal, error) {
	sig, err := signal.ParseSignal(s)
	if err != nil || sig < 0 || sig > 64 {
		return 0, errs.New(errs.Invalid, "invalid signal: %s", s)
	}
	return sig, nil
}

// parseLogConfig reads --log-driver and --log-opt. "local" and "json-file" both mean the engine's own bounded format.
func parseLogConfig(cfg container.LogConfig) (monitor.LogOptions, error) {
	opts := monitor.LogOptions{MaxSize: 20 << 20, MaxFiles: 3}
	switch cfg.Type {
	case "", "local", "json-file":
	case "none":
		return monitor.LogOptions{}, nil
	default:
		return opts, errs.New(errs.NotImplemented, "log driver %q is not supported: this engine keeps logs itself (json-file, local) or not at all (none)", cfg.Type)
	}
	for key, value := range cfg.Config {
		var err error
		switch key {
		case "max-size":
			if value != "-1" { // Docker's "no limit" stays bounded here by max-file alone
				opts.MaxSize, err = units.RAMInBytes(value)
				if err == nil && opts.MaxSize <= 0 {
					err = errs.New(errs.Invalid, "must be positive")
				}
			} else {
				opts.MaxSize = 1 << 62
			}
		case "max-file":
			opts.MaxFiles, err = strconv.Atoi(value)
			if err == nil && opts.MaxFiles < 1 {
				err = errs.New(errs.Invalid, "max-file cannot be less than 1")
			}
		case "mode":
			switch value {
			case "non-blocking":
				opts.NonBlocking = true
			case "blocking", "":
			default:
				err = errs.New(errs.Invalid, "logger: unknown mode %q", value)
			}
		case "max-buffer-size":
			opts.BufferSize, err = units.RAMInBytes(value)
		case "compress":
			on := false
			if on, err = strconv.ParseBool(value); err == nil && on {
				err = errs.New(errs.NotImplemented, "finished files are not compressed in this version; bound them with max-size and max-file")
			}
		case "labels", "labels-regex", "env", "env-regex", "tag":
			// shown by `logs --details`, see logs.go
		default:
			return opts, errs.New(errs.Invalid, "unknown log opt '%s' for %s log driver", key, cmp.Or(cfg.Type, "json-file"))
		}
		if err != nil {
			return opts, errs.New(errs.Invalid, "log opt %s=%s: %w", key, value, err)
		}
	}
	if opts.NonBlocking && opts.BufferSize == 0 {
		opts.BufferSize = 1 << 20
	}
	return opts, nil
}

// securityOpt is --security-opt read.
type securityOpt struct {
	NoNewPrivs       *bool
	Seccomp          string // "": the default, "unconfined", or a profile as JSON
	AppArmor         string
	Label            []string
	LabelDisable     bool
	SystemUnconfined bool
}

func parseSecurityOpt(opts []string) (o securityOpt, err error) {
	for _, opt := range opts {
		if opt == "no-new-privileges" {
			on := true
			o.NoNewPrivs = &on
			continue
		}
		if opt == "disable" {
			o.LabelDisable = true
			continue
		}
		key, value, ok := strings.Cut(opt, "=")
		if !ok { // the old form
			key, value, ok = strings.Cut(opt, ":")
		}
		if !ok {
			return o, errs.New(errs.Invalid, "invalid --security-opt 1: %q", opt)
		}
		switch key {
		case "no-new-privileges":
			on, err := strconv.ParseBool(value)
			if err != nil {
				return o, errs.New(errs.Invalid, "invalid --security-opt 2: %q", opt)
			}
			o.NoNewPrivs = &on
		case "seccomp":
			if value == "builtin" {
				value = ""
			}
			if value != "" && value != "unconfined" && !json.Valid([]byte(value)) {
				return o, errs.New(errs.Invalid, "Decoding seccomp profile failed: not JSON")
			}
			o.Seccomp = value
		case "apparmor":
			o.AppArmor = value
		case "label":
			if value == "disable" {
				o.LabelDisable = true
			} else {
				o.Label = append(o.Label, value)
			}
		case "systempaths":
			if value != "unconfined" {
				return o, errs.New(errs.Invalid, "invalid --security-opt 2: %q", opt)
			}
			o.SystemUnconfined = true
		case "writable-cgroups":
			return o, errs.New(errs.NotImplemented, "security option %q is not supported", key)
		default:
			return o, errs.New(errs.Invalid, "invalid --security-opt 2: %q", opt)
		}
	}
	return o, nil
}

// parseDeviceRule reads one --device-cgroup-rule: "c 1:3 mr".
func parseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	bad := errs.New(errs.Invalid, "invalid device cgroup rule format: '%s'", rule)
	fields := strings.Fields(rule)
	if len(fields) != 3 || len(fields[0]) != 1 || !strings.Contains("abc", fields[0]) || strings.Trim(fields[2], "rwm") != "" {
		return specs.LinuxDeviceCgroup{}, bad
	}
	major, minor, ok := strings.Cut(fields[1], ":")
	if !ok {
		return specs.LinuxDeviceCgroup{}, bad
	}
	dev := specs.LinuxDeviceCgroup{Allow: true, Type: fields[0], Access: fields[2]}
	for i, s := range []string{major, minor} {
		n := int64(-1)
		if s != "*" {
			v, err := strconv.ParseUint(s, 10, 31)
			if err != nil {
				return dev, bad
			}
			n = int64(v)
		}
		if i == 0 {
			dev.Major = &n
		} else {
			dev.Minor = &n
		}
	}
	return dev, nil
}

// rlimits maps the names of --ulimit to the kernel's.
var rlimits = map[string]string{
	"core": "RLIMIT_CORE", "cpu": "RLIMIT_CPU", "data": "RLIMIT_DATA", "fsize": "RLIMIT_FSIZE", "locks": "RLIMIT_LOCKS", "memlock": "RLIMIT_MEMLOCK", "msgqueue": "RLIMIT_MSGQUEUE",
	"nice": "RLIMIT_NICE", "nofile": "RLIMIT_NOFILE", "nproc": "RLIMIT_NPROC", "rss": "RLIMIT_RSS", "rtprio": "RLIMIT_RTPRIO", "rttime": "RLIMIT_RTTIME", "sigpending": "RLIMIT_SIGPENDING",
	"stack": "RLIMIT_STACK",
}

// cutHost splits --add-host name:address (or name=address).
func cutHost(extra string) (name, addr string, ok bool) {
	i := strings.IndexAny(extra, ":=")
	if i <= 0 {
		return "", "", false
	}
	addr = strings.Trim(extra[i+1:], "[]")
	return extra[:i], addr, addr != ""
}
