package cli

import (
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// healthFlags say how the engine looks after a container once it runs: what it checks, and what it does about what it finds.
type healthFlags struct {
	cmd, http, tcp, grpc                   string
	interval, timeout, start, startBetween time.Duration
	retries                                int
	none                                   bool
	runFor, delay, maxDelay, window        time.Duration
}

// Annotations by which the engine is asked for what Docker's API has no field for; docs/health.md names them for other clients.
const (
	annotationTimeout         = "dev.corten.timeout"
	annotationRestartDelay    = "dev.corten.restart.delay"
	annotationRestartMaxDelay = "dev.corten.restart.max-delay"
	annotationRestartWindow   = "dev.corten.restart.window"
)

func (h *healthFlags) register(f *pflag.FlagSet) {
	f.StringVar(&h.cmd, "health-cmd", "", "command that checks the container's health")
	f.StringVar(&h.http, "health-http", "", "check it by HTTP, without a process: [address]:port/path or a URL; a status from 200 to 399 is healthy")
	f.StringVar(&h.tcp, "health-tcp", "", "check it by a TCP connection to [address:]port")
	f.StringVar(&h.grpc, "health-grpc", "", "check it by the gRPC health protocol: [address:]port[/service]")
	f.DurationVar(&h.interval, "health-interval", 0, "time between two checks (ms|s|m|h)")
	f.IntVar(&h.retries, "health-retries", 0, "failures in a row that make it unhealthy")
	f.DurationVar(&h.timeout, "health-timeout", 0, "longest time a check may take (ms|s|m|h)")
	f.DurationVar(&h.start, "health-start-period", 0, "time to start during which failures do not count (ms|s|m|h)")
	f.DurationVar(&h.startBetween, "health-start-interval", 0, "time between two checks during the start period (ms|s|m|h)")
	f.BoolVar(&h.none, "no-healthcheck", false, "switch the image's health check off")
	f.DurationVar(&h.runFor, "timeout", 0, "stop the container when it runs longer than this (ms|s|m|h)")
	f.DurationVar(&h.delay, "restart-delay", 0, "wait before the first restart, doubled with each further one (default 100ms)")
	f.DurationVar(&h.maxDelay, "restart-max-delay", 0, "longest wait before a restart (default 1m)")
	f.DurationVar(&h.window, "restart-window", 0, "a run that lasted this long begins the waits anew (default 10s)")
}

// apply puts the flags into the request.
func (h *healthFlags) apply(cfg *container.Config, host *container.HostConfig) error {
	if err := h.annotate(host); err != nil {
		return err
	}
	test, err := h.test()
	if err != nil {
		return err
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"interval", h.interval}, {"timeout", h.timeout}, {"start-period", h.start}, {"start-interval", h.startBetween}} {
		if d.value < 0 {
			return invalid("--health-%s cannot be negative", d.name)
		}
	}
	if h.retries < 0 {
		return invalid("--health-retries cannot be negative")
	}
	check := &container.HealthConfig{Test: test, Interval: h.interval, Timeout: h.timeout, StartPeriod: h.start, StartInterval: h.startBetween, Retries: h.retries}
	given := test != nil || h.interval+h.timeout+h.start+h.startBetween != 0 || h.retries != 0
	switch {
	case h.none && given:
		return invalid("--no-healthcheck conflicts with --health-* options")
	case h.none:
		cfg.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
	case given:
		cfg.Healthcheck = check
	}
	return nil
}

// test is the check in the API's words; nil for that of the image.
func (h *healthFlags) test() (test []string, err error) {
	for _, kind := range []struct{ flag, value, word string }{{"cmd", h.cmd, "CMD-SHELL"}, {"http", h.http, "HTTP"}, {"tcp", h.tcp, "TCP"}, {"grpc", h.grpc, "GRPC"}} {
		switch {
		case kind.value == "":
		case test != nil:
			return nil, invalid("conflicting options: one of --health-cmd, --health-http, --health-tcp and --health-grpc at most")
		default:
			test = []string{kind.word, kind.value}
		}
	}
	return test, nil
}

func (h *healthFlags) annotate(host *container.HostConfig) error {
	for _, a := range []struct {
		flag, name string
		value      time.Duration
	}{
		{"timeout", annotationTimeout, h.runFor}, {"restart-delay", annotationRestartDelay, h.delay},
		{"restart-max-delay", annotationRestartMaxDelay, h.maxDelay}, {"restart-window", annotationRestartWindow, h.window},
	} {
		switch {
		case a.value < 0:
			return invalid("--%s cannot be negative", a.flag)
		case a.value > 0:
			if err := annotate(host, a.flag, a.name, a.value.String()); err != nil {
				return err
			}
		}
	}
	return nil
}
