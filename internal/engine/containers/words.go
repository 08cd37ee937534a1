package containers

import (
	"cmp"
	"strconv"
	"strings"
	"syscall"

	units "github.com/docker/go-units"
	"github.com/moby/sys/signal"

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

// cutHost splits --add-host name:address (or name=address).
func cutHost(extra string) (name, addr string, ok bool) {
	i := strings.IndexAny(extra, ":=")
	if i <= 0 {
		return "", "", false
	}
	addr = strings.Trim(extra[i+1:], "[]")
	return extra[:i], addr, addr != ""
}
