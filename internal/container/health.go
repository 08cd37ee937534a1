package container

import (
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
)

// HealthStatus is what the probes of a container say of it. The names are Docker's.
type HealthStatus string

const (
	HealthStarting HealthStatus = "starting"
	Healthy        HealthStatus = "healthy"
	Unhealthy      HealthStatus = "unhealthy"
)

// Health is what the probes of one run found. It is nil in the state of a container that has no health check.
type Health struct {
	Status        HealthStatus
	FailingStreak int           // failures in a row that count
	Log           []ProbeResult // the last five, oldest first
}

// ProbeResult is one probe.
type ProbeResult struct {
	Start, End time.Time
	ExitCode   int // 0 healthy, 1 unhealthy, -1 when the probe took too long or could not be made; other codes count as 1
	Output     string
}

const (
	keptProbes = 5
	// MaxProbeOutput is how much of a probe's output is kept, in bytes.
	MaxProbeOutput = 4096
)

// Kinds of probe: the first word of [image.Healthcheck]'s Test. The last three are ours: they are made by the engine itself, from inside the container's network, and cost no process.
const (
	ProbeNone    = "NONE"
	ProbeCommand = "CMD"
	ProbeShell   = "CMD-SHELL"
	ProbeHTTP    = "HTTP"
	ProbeTCP     = "TCP"
	ProbeGRPC    = "GRPC"
)

// Check is a health check with its defaults filled in.
type Check struct {
	Test []string
	// Interval is between the end of a probe and the next; StartInterval the same while the container is starting and within StartPeriod of its start, in which failures do not count.
	Interval, StartInterval, StartPeriod time.Duration
	Timeout                              time.Duration
	Retries                              int // failures in a row that make it unhealthy
}

// CheckOf gives the check that h asks for; false when it asks for none.
func CheckOf(h *image.Healthcheck) (Check, bool) {
	if h == nil || len(h.Test) == 0 || h.Test[0] == ProbeNone {
		return Check{}, false
	}
	or := func(d, otherwise time.Duration) time.Duration {
		if d == 0 {
			return otherwise
		}
		return d
	}
	c := Check{
		Test: h.Test, Interval: or(h.Interval, 30*time.Second), Timeout: or(h.Timeout, 30*time.Second), StartPeriod: h.StartPeriod, StartInterval: or(h.StartInterval, 5*time.Second),
		Retries: h.Retries,
	}
	if c.Retries == 0 {
		c.Retries = 3
	}
	return c, true
}

// ValidateCheck refuses what no engine could probe.
func ValidateCheck(h *image.Healthcheck) error {
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch kind := h.Test[0]; kind {
	case ProbeNone:
		return nil
	case ProbeCommand:
		if len(h.Test) < 2 {
			return errs.New(errs.Invalid, "health check CMD needs a command")
		}
	case ProbeShell, ProbeHTTP, ProbeTCP, ProbeGRPC:
		if len(h.Test) != 2 {
			return errs.New(errs.Invalid, "health check %s takes one word, not %d", kind, len(h.Test)-1)
		}
	default:
		return errs.New(errs.Invalid, "unknown health check type %q: it is one of NONE, CMD, CMD-SHELL, HTTP, TCP, GRPC", kind)
	}
	return nil
}

// Wait is how long after now the next probe of a container is due that was started at started.
func (c Check) Wait(h Health, started, now time.Time) time.Duration {
	if h.Status == HealthStarting && now.Sub(started) < c.StartPeriod {
		return c.StartInterval
	}
	return c.Interval
}

// Over is the health once the run has ended: nothing that does not run is healthy. No event tells of it, as in Docker.
func (h *Health) Over() *Health {
	if h == nil {
		return nil
	}
	over := *h
	over.Status = Unhealthy
	return &over
}

// After is the health after one more probe:
//
//	starting ──ok──▶ healthy ◀──ok── unhealthy
//	    │               │                ▲
//	    └─── Retries failures in a row ──┘    (while starting, those within StartPeriod do not count)
func (h Health) After(p ProbeResult, c Check, started time.Time) Health {
	log := append(h.Log[:len(h.Log):len(h.Log)], p) // readers hold the old one
	next := Health{Status: h.Status, FailingStreak: h.FailingStreak, Log: log[max(0, len(log)-keptProbes):]}
	if p.ExitCode == 0 {
		next.Status, next.FailingStreak = Healthy, 0
		return next
	}
	if h.Status == HealthStarting && p.Start.Sub(started) < c.StartPeriod {
		return next
	}
	next.FailingStreak++
	if next.FailingStreak >= c.Retries {
		next.Status = Unhealthy
	}
	return next
}
