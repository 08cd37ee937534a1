package server

import (
	"encoding/json"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	wire "github.com/moby/moby/api/types/container"
	wirenet "github.com/moby/moby/api/types/network"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
)

// words is a list of arguments that may also be written as one text.
type words []string

// UnmarshalJSON reads ["a","b"], "a" or null.
func (w *words) UnmarshalJSON(b []byte) error {
	var list []string
	if err := json.Unmarshal(b, &list); err == nil {
		*w = list
		return nil
	}
	var one string
	if err := json.Unmarshal(b, &one); err != nil {
		return err
	}
	*w = words{one}
	return nil
}

// configBody is Docker's container Config with what older versions had besides: commands as one text, and a MAC address for the container.
type configBody struct {
	wire.Config
	Cmd        words
	Entrypoint words
	MacAddress string
}

// toConfig converts what a client asked for.
func toConfig(c configBody, version int) (container.Config, error) {
	for name := range c.Volumes {
		if name == "" || name == "/" {
			return container.Config{}, errs.New(errs.Invalid, "invalid volume specification: '%s'", name)
		}
	}
	cfg := container.Config{
		RunConfig: image.RunConfig{
			User:        c.User,
			Env:         c.Env,
			Entrypoint:  c.Entrypoint,
			Cmd:         c.Cmd,
			Volumes:     c.Volumes,
			WorkingDir:  c.WorkingDir,
			Labels:      c.Labels,
			StopSignal:  c.StopSignal,
			StopTimeout: c.StopTimeout,
			OnBuild:     c.OnBuild,
			Shell:       c.Shell,
			ArgsEscaped: c.ArgsEscaped,
		},
		Hostname:        c.Hostname,
		Domainname:      c.Domainname,
		AttachStdin:     c.AttachStdin,
		AttachStdout:    c.AttachStdout,
		AttachStderr:    c.AttachStderr,
		Tty:             c.Tty,
		OpenStdin:       c.OpenStdin,
		StdinOnce:       c.StdinOnce,
		NetworkDisabled: c.NetworkDisabled,
		Image:           c.Image,
	}
	if len(c.ExposedPorts) > 0 {
		cfg.ExposedPorts = make(map[string]struct{}, len(c.ExposedPorts))
		for p := range c.ExposedPorts {
			if err := checkPort(p); err != nil {
				return cfg, err
			}
			cfg.ExposedPorts[p.String()] = struct{}{}
		}
	}
	if h := c.Healthcheck; h != nil {
		cfg.Healthcheck = &image.Healthcheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries}
		if version >= 44 {
			cfg.Healthcheck.StartInterval = h.StartInterval
		}
	}
	return cfg, checkHealth(cfg.Healthcheck)
}

func checkHealth(h *image.Healthcheck) error {
	if h == nil {
		return nil
	}
	const least = wire.MinimumDuration
	for _, d := range []struct {
		name  string
		value int64
	}{{"Interval", int64(h.Interval)}, {"Timeout", int64(h.Timeout)}, {"StartPeriod", int64(h.StartPeriod)}, {"StartInterval", int64(h.StartInterval)}} {
		if d.value != 0 && d.value < int64(least) {
			return errs.New(errs.Invalid, "%s in Healthcheck cannot be less than %s", d.name, least)
		}
	}
	if h.Retries < 0 {
		return errs.New(errs.Invalid, "Retries in Healthcheck cannot be negative")
	}
	return nil
}

func checkPort(p wirenet.Port) error {
	switch p.Proto() {
	case wirenet.TCP, wirenet.UDP, wirenet.SCTP:
	default:
		return errs.New(errs.Invalid, "invalid port %q: protocol must be tcp, udp or sctp", p.String())
	}
	if p.Num() == 0 {
		return errs.New(errs.Invalid, "invalid port %q: port 0 cannot be published or exposed", p.String())
	}
	return nil
}

// configView is Config as inspect shows it; the fields below are there in some versions only.
type configView struct {
	*wire.Config
	OnBuild    any     `json:",omitempty"`
	MacAddress *string `json:",omitempty"`
}

// fromConfig is the way back, for inspect.
func fromConfig(c container.Config) *wire.Config {
	out := &wire.Config{
		Hostname:        c.Hostname,
		Domainname:      c.Domainname,
		User:            c.User,
		AttachStdin:     c.AttachStdin,
		AttachStdout:    c.AttachStdout,
		AttachStderr:    c.AttachStderr,
		ExposedPorts:    ports(c.ExposedPorts),
		Tty:             c.Tty,
		OpenStdin:       c.OpenStdin,
		StdinOnce:       c.StdinOnce,
		Env:             orEmpty(c.Env),
		Cmd:             c.Cmd,
		ArgsEscaped:     c.ArgsEscaped,
		Image:           c.Image,
		Volumes:         c.Volumes,
		WorkingDir:      c.WorkingDir,
		Entrypoint:      c.Entrypoint,
		NetworkDisabled: c.NetworkDisabled,
		OnBuild:         c.OnBuild,
		Labels:          c.Labels,
		StopSignal:      c.StopSignal,
		StopTimeout:     c.StopTimeout,
		Shell:           c.Shell,
		Healthcheck:     fromHealth(c.Healthcheck),
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	return out
}

func fromHealth(h *image.Healthcheck) *dockerspec.HealthcheckConfig {
	if h == nil {
		return nil
	}
	return &dockerspec.HealthcheckConfig{
		Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
	}
}

// ports reads the exposed ports of a config; what is no port is left out, because images in the wild hold such things.
func ports(set map[string]struct{}) wirenet.PortSet {
	if len(set) == 0 {
		return nil
	}
	out := make(wirenet.PortSet, len(set))
	for text := range set {
		r, err := wirenet.ParsePortRange(text)
		if err != nil {
			continue
		}
		for p := range r.All() {
			out[p] = struct{}{}
		}
	}
	return out
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
