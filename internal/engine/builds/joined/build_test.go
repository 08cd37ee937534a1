package joined_test

import (
	"strconv"
	"strings"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

// What people do first: an image of a base, a program that runs, and a file of theirs; and again, with nothing to do.
func TestBuild(t *testing.T) {
	h := newHost(t)
	ses := h.context(map[string]string{
		"Dockerfile": "FROM busybox\nRUN echo hello > /greeting\nCOPY message /message\nWORKDIR /work\nCMD [\"cat\", \"/greeting\"]\n",
		"message":    "of mine\n",
	})
	resp, out, err := h.build(ses, "first:latest", nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.logs.String())
	}
	if resp.Exporter["containerimage.config.digest"] == "" {
		t.Errorf("response: %v", resp.Exporter)
	}
	if got := h.cat("first:latest", "/greeting"); got != "hello\n" {
		t.Errorf("/greeting: %q", got)
	}
	if got := h.cat("first:latest", "/message"); got != "of mine\n" {
		t.Errorf("/message: %q", got)
	}
	img, err := h.images.Get(t.Context(), "first:latest")
	if err != nil {
		t.Fatal(err)
	}
	if cfg := img.Config.Config; cfg.WorkingDir != "/work" || strings.Join(cfg.Cmd, " ") != "cat /greeting" {
		t.Errorf("config: %+v", cfg)
	}
	again, out, err := h.build(ses, "first:latest", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, run := out.cached(); len(run) > 0 {
		t.Logf("not cached: %q", run)
	}
	if a, b := resp.Exporter["containerimage.config.digest"], again.Exporter["containerimage.config.digest"]; a != b {
		t.Errorf("the same build gave %s, then %s", a, b)
	}
}
