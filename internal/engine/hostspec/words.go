package hostspec

import (
	"encoding/json"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/errs"
)

// SecurityOpt is --security-opt read.
type SecurityOpt struct {
	NoNewPrivs       *bool
	Seccomp          string // "": the default, "unconfined", or a profile as JSON
	AppArmor         string
	Label            []string
	LabelDisable     bool
	SystemUnconfined bool
}

// ParseSecurityOpt reads --security-opt.
func ParseSecurityOpt(opts []string) (o SecurityOpt, err error) {
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

// ParseDeviceRule reads one --device-cgroup-rule: "c 1:3 mr".
func ParseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
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

// Rlimit is the kernel's name of a limit as --ulimit has it.
func Rlimit(name string) (string, bool) {
	kind, ok := rlimits[name]
	return kind, ok
}
