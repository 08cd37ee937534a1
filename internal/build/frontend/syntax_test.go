package frontend

import (
	"strings"
	"testing"
)

func FuzzBuiltIn(f *testing.F) {
	for _, s := range []string{"docker/dockerfile:1", "docker.io/docker/dockerfile-upstream:master-labs", "docker/dockerfile:99.1.2@sha256:x", "example.org/x", ":", "docker/dockerfile:-1.-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, image string) {
		ours, notice := builtIn(image)
		if notice != "" && !ours {
			t.Errorf("%q: a notice about a frontend that is not ours", image)
		}
		if ours && !strings.Contains(image, "docker/dockerfile") {
			t.Errorf("%q is taken for docker/dockerfile", image)
		}
	})
}
