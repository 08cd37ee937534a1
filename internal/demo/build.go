package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The Dockerfile of the demo. The only image without the internet is corten/hello, which has no shell: steps with RUN are shown where the host has a static busybox.
const (
	dockerfile = `FROM corten/hello
COPY note /note
ENV GREETING=hello
LABEL made.by=demo
`
	dockerfileRun = `FROM scratch AS tools
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]

FROM tools AS upper
COPY note /note
RUN tr a-z A-Z < /note > /loud

FROM tools AS count
COPY note /note
RUN wc -c < /note > /count

FROM tools
COPY --from=upper /loud /
COPY --from=count /count /
CMD ["cat", "/loud", "/count"]
`
	builtName = "demo-built:1"
)

// build makes images of Dockerfiles, cold and cached, and runs one.
func (d *Demo) build(ctx context.Context) error {
	dir := filepath.Join(d.dir, "app")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	files := map[string]string{"Dockerfile": dockerfile, "note": "built, shipped and run\n"}
	busybox, note := staticBusybox()
	if note == "" {
		files["busybox"], files["Dockerfile"] = busybox, dockerfileRun
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	d.say("Building, of this Dockerfile:" + note)
	for line := range strings.Lines(files["Dockerfile"]) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(d.Out, "    %s\n", line)
		}
	}
	for _, what := range []string{"nothing cached", "all cached", "all cached"} {
		start := time.Now()
		if _, err := d.corten(ctx, "build", "-q", "-t", builtName, dir); err != nil {
			return err
		}
		d.took("corten build ("+what+")", start)
	}
	if err := os.WriteFile(filepath.Join(dir, "note"), []byte("built again, shipped and run\n"), 0o644); err != nil {
		return err
	}
	start := time.Now()
	if _, err := d.corten(ctx, "build", "-q", "-t", builtName, dir); err != nil {
		return err
	}
	d.took("corten build (one file changed)", start)
	return d.show(ctx, "run", "--rm", builtName)
}

// staticBusybox is the program of that name, or a word on why there is none.
func staticBusybox() (program, note string) {
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox", "/sbin/busybox"} {
		raw, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(raw[:min(len(raw), 4096)]), "/ld-") { // the name of its loader: it needs libraries
			return string(raw), ""
		}
	}
	return "", " (no RUN: this host has no static busybox)"
}
