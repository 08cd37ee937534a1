package realbuild

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// caches are builds with cache mounts: what they download and compile is there for the next one.
func caches() []project {
	return []project{
		{name: "go-stages", needs: []string{"golang:latest"}, check: checkGo},
		{name: "c-program", check: checkC},
	}
}

// checkGo changes one source file: modules are not fetched again, and their packages not compiled again.
func checkGo(t *testing.T, s *suite, image string) {
	const said, module = "I can eat glass and it doesn't hurt me.", " rsc.io/quote\n"
	if got := s.corten(t, "run", "--rm", image); got != "dev "+said {
		t.Errorf("it says %q", got)
	}
	s.config(t, image, "{{.Config.User}} {{len .RootFS.Layers}}", "65532:65532 1")
	dir := writable(t, "go-stages")
	// The first build of this copy differs in an argument, so that it runs whatever another run of this test left.
	log, _, err := s.build(dir, image+":2", "--build-arg", "VERSION=2")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log, module) {
		t.Errorf("compiled again, though only a flag of the linker changed:\n%s", log)
	}
	source := filepath.Join(dir, "main.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source, []byte(strings.Replace(string(text), "quote.Glass()", `"changed:", quote.Glass()`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if log, err = s.twice(dir, image+":3", "--build-arg", "VERSION=3"); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log, module) || !strings.Contains(log, " example.org/hello\n") {
		t.Errorf("after a change of main.go, what is compiled:\n%s", log)
	}
	if strings.Contains(log, "# get ") {
		t.Errorf("fetched again:\n%s", log)
	}
	if got := s.corten(t, "run", "--rm", image+":3"); got != "3 changed: "+said {
		t.Errorf("after the change it says %q", got)
	}
}

// checkC looks at what apt left in its mounts, and that nothing of it is in the image.
func checkC(t *testing.T, s *suite, image string) {
	if got := s.corten(t, "run", "--rm", image, "a", "bcd"); got != `{"a": 1, "bcd": 3}` {
		t.Errorf("it says %q", got)
	}
	if got := s.corten(t, "run", "--rm", "--entrypoint", "sh", image, "-c", "find /var/cache/apt /var/lib/apt/lists -type f; command -v gcc || echo no compiler"); got != "no compiler" {
		t.Errorf("in the image there is %q", got)
	}
	log, err := s.twice("testdata/c-program", image+":test", "--target", "test")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log, "all tests passed") {
		t.Errorf("the stage of tests did not run:\n%s", log)
	}
	probe := t.TempDir()
	text := "FROM debian:bookworm\nRUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked ls /var/cache/apt/archives /var/lib/apt/lists && " +
		"rm /etc/apt/apt.conf.d/docker-clean && apt-get install -y gcc libc6-dev make libjansson-dev --print-uris | grep -c ^\\'http || true\n"
	if err := os.WriteFile(probe+"/Dockerfile", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if log, _, err = s.build(probe, image+":probe"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" gcc-12_", " libjansson4_", "_Packages"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in apt's mounts:\n%s", want, log)
		}
	}
	if !strings.HasSuffix(strings.TrimSpace(beforeDone(log)), " 0") {
		t.Errorf("apt would fetch something again:\n%s", log)
	}
}

// beforeDone is the last line that a step of a probe printed.
func beforeDone(log string) (last string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "exporting to image") {
			return last
		}
		if m := strings.Fields(line); len(m) == 3 && m[0] != "" && m[1] != "DONE" {
			last = line
		}
	}
	return last
}
