package container_test

import (
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/image"
)

func TestHealthStates(t *testing.T) {
	check, on := container.CheckOf(&image.Healthcheck{Test: []string{"CMD", "true"}, StartPeriod: time.Minute, Retries: 2})
	if !on || check.Interval != 30*time.Second || check.Timeout != 30*time.Second || check.StartInterval != 5*time.Second {
		t.Fatalf("defaults: %+v %v", check, on)
	}
	begin := time.Now()
	h := container.Health{Status: container.HealthStarting}
	probe := func(after time.Duration, code int, status container.HealthStatus, streak int) {
		t.Helper()
		h = h.After(container.ProbeResult{Start: begin.Add(after), ExitCode: code}, check, begin)
		if h.Status != status || h.FailingStreak != streak {
			t.Fatalf("at %v: %s %d, want %s %d", after, h.Status, h.FailingStreak, status, streak)
		}
	}
	if w := check.Wait(h, begin, begin.Add(time.Second)); w != 5*time.Second {
		t.Errorf("while starting: %v", w)
	}
	probe(time.Second, 1, container.HealthStarting, 0) // within the start period failures do not count
	probe(2*time.Second, -1, container.HealthStarting, 0)
	probe(61*time.Second, 1, container.HealthStarting, 1)
	probe(62*time.Second, 7, container.Unhealthy, 2)
	probe(63*time.Second, 0, container.Healthy, 0)
	probe(64*time.Second, 1, container.Healthy, 1)
	probe(65*time.Second, 0, container.Healthy, 0)
	if len(h.Log) != 5 {
		t.Errorf("%d probes are kept", len(h.Log))
	}
	// Once healthy, the start period is over: a failure within it counts.
	h = container.Health{Status: container.Healthy}
	probe(time.Second, 1, container.Healthy, 1)
	probe(2*time.Second, 1, container.Unhealthy, 2)
	if w := check.Wait(h, begin, begin.Add(time.Second)); w != 30*time.Second {
		t.Errorf("when it is not starting: %v", w)
	}
}

func TestHealthTests(t *testing.T) {
	for _, test := range [][]string{nil, {"NONE"}, {"CMD", "a", "b"}, {"CMD-SHELL", "a"}, {"HTTP", "/"}, {"TCP", "80"}, {"GRPC", "80"}} {
		if err := container.ValidateCheck(&image.Healthcheck{Test: test}); err != nil {
			t.Errorf("%q: %v", test, err)
		}
	}
	for _, test := range [][]string{{"CMD"}, {"CMD-SHELL"}, {"CMD-SHELL", "a", "b"}, {"HTTP"}, {"http", "/"}, {"true"}} {
		if container.ValidateCheck(&image.Healthcheck{Test: test}) == nil {
			t.Errorf("%q was accepted", test)
		}
	}
}
