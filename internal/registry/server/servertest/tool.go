package servertest

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Tool is the path of a foreign program that a test needs, which a module of its own in dir names as a tool, so that ours does not grow. The go command builds it and keeps it. Where it
// cannot be had the test is left out.
func Tool(t *testing.T, dir, name string) string {
	t.Helper()
	build := exec.Command("go", "tool", "-n", name)
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-p=1")
	var told bytes.Buffer
	build.Stderr = &told
	out, err := build.Output()
	if err != nil {
		t.Skipf("nothing to test against: %s cannot be built here: %v: %.200s", name, err, told.String())
	}
	return strings.TrimSpace(string(out))
}
