package container

import (
	"fmt"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/network/egress"
)

// Annotations by which a client asks for what Docker's API has no field for. Any client can give them: `docker run --annotation`, `annotations:` in a compose file. The flags of
// `corten run` write them. Values are durations as Go writes them (1m30s), where nothing else is said.
const (
	AnnotationTimeout         = "dev.corten.timeout"           // a run that lasts longer is stopped
	AnnotationRestart         = "dev.corten.restart."          // what the following begin with
	AnnotationRestartDelay    = "dev.corten.restart.delay"     // wait before the first restart; it doubles with each further one
	AnnotationRestartMaxDelay = "dev.corten.restart.max-delay" // the longest such wait
	AnnotationRestartWindow   = "dev.corten.restart.window"    // a run that lasted this long begins the waits anew
	AnnotationEgress          = network.OptionEgress           // a list (egress.Parse): where it may connect to
	AnnotationRateEgress      = network.OptionRateEgress       // bits per second (network.ParseRate) that it sends on each network
	AnnotationRateIngress     = network.OptionRateIngress      // the same for what it receives
)

// Asked is what those annotations say, with defaults.
type Asked struct {
	Timeout                                      time.Duration // 0: none
	RestartDelay, RestartMaxDelay, RestartWindow time.Duration
	Egress                                       string // empty: everywhere
	Rates                                        network.Rates
}

// ReadAnnotations reads what is asked by annotations; those of others are left alone.
func ReadAnnotations(all map[string]string) (Asked, error) {
	a := Asked{RestartDelay: 100 * time.Millisecond, RestartMaxDelay: time.Minute, RestartWindow: 10 * time.Second}
	if len(all) == 0 {
		return a, nil
	}
	var err error
	if a.Rates, err = network.ReadRates(all); err != nil {
		return a, fmt.Errorf("annotation %w", err)
	}
	if text, given := all[AnnotationEgress]; given {
		if _, err := egress.Parse(text); err != nil {
			return a, errs.New(errs.Invalid, "annotation %s: %w", AnnotationEgress, err)
		}
		a.Egress = text
	}
	for name, to := range map[string]*time.Duration{
		AnnotationTimeout: &a.Timeout, AnnotationRestartDelay: &a.RestartDelay, AnnotationRestartMaxDelay: &a.RestartMaxDelay, AnnotationRestartWindow: &a.RestartWindow,
	} {
		text, given := all[name]
		if !given {
			continue
		}
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return a, errs.New(errs.Invalid, "annotation %s=%q: want a duration above zero, such as 1m30s", name, text)
		}
		*to = d
	}
	if _, given := all[AnnotationRestartDelay]; a.RestartDelay > a.RestartMaxDelay && given {
		return a, errs.New(errs.Invalid, "the first restart would wait %v, which is longer than the longest wait, %v", a.RestartDelay, a.RestartMaxDelay)
	}
	return a, nil
}

// Backoff is the wait before the next run after so many failures in a row.
func (a Asked) Backoff(failures int) time.Duration {
	wait := a.RestartDelay
	for range failures {
		if wait >= a.RestartMaxDelay {
			break
		}
		wait *= 2
	}
	return min(wait, a.RestartMaxDelay)
}
