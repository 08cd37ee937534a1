package containers

import (
	"testing"

	"corten.dev/corten/internal/container"
)

// An upgrade whose health check was `false` went back with "it is unhealthy: ; what was before runs again", and one that was answered with a page of HTML printed the whole of it.
func TestWhyAnUpgradeWentBackIsOneLine(t *testing.T) {
	for want, log := range map[string][]container.ProbeResult{
		"no answer":                          nil,
		"its check ended with exit code 1":   {{Output: "before"}, {ExitCode: 1, Output: " \n"}},
		"HTTP status 500 Internal Server":    {{ExitCode: 1, Output: "HTTP status 500 Internal Server\n<html>\n</html>\n"}},
		"connect: connection refused":        {{ExitCode: 1, Output: "connect: connection refused"}},
		"its check ended with exit code 127": {{ExitCode: 127}},
	} {
		if got := lastProbe(&container.Health{Log: log}); got != want {
			t.Errorf("%v: %q, want %q", log, got, want)
		}
	}
}
