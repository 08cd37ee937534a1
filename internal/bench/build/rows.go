package build

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"corten.dev/corten/internal/bench"
)

// Rows are the lines of the report.
func Rows() []bench.Row {
	return []bench.Row{
		{Key: "cached", What: "rebuild of 6 steps, all cached", Budget: 25 * time.Millisecond, Rounds: 31},
		{Key: "cold", What: "the same 6 steps, nothing cached", Budget: 150 * time.Millisecond, Rounds: 11},
		{Key: "parallel", What: "20 stages side by side, each 0.1 s of sleep", Rounds: 5},
		{Key: "context", What: "context of 50,000 files, unchanged", Rounds: 5},
		{Key: "context-one", What: "context of 50,000 files, one changed", Rounds: 5},
		{Key: "go", What: "Go project, one source file changed", Rounds: 5},
		{Key: "export", What: "new image of 1 GB of cached layers", Rounds: 5},
	}
}

// sixSteps is the Dockerfile of the first two rows.
const sixSteps = `FROM %s
WORKDIR /app
COPY a.txt ./
RUN echo one > one
RUN echo two > two
COPY b.txt ./
RUN cat a.txt b.txt one two > all
`

// Prepare implements bench.Contestant.
func (b *builder) Prepare(_ context.Context, row string) (timed, after, done func() error, err error) {
	name := b.tag + "-" + row
	switch row {
	case "cached", "cold":
		dir, err := b.own(row, map[string]string{"Dockerfile": fmt.Sprintf(sixSteps, b.base()), "a.txt": "a\n", "b.txt": "b\n"})
		if err != nil {
			return nil, nil, nil, err
		}
		var flags []string
		if row == "cold" {
			flags = []string{"--no-cache"}
		}
		return func() error { return b.build(name, dir, flags...) }, nil, nil, nil
	case "parallel":
		dir, err := b.own(row, map[string]string{"Dockerfile": stages(b.base(), 20)})
		return func() error { return b.build(name, dir, "--no-cache") }, nil, nil, err
	case "context", "context-one":
		return b.manyFiles(name, row == "context-one")
	case "go":
		return b.goProject(name)
	case "export":
		return b.bigImage(name)
	}
	return nil, nil, nil, bench.ErrSkip
}

// own is a small context of this contestant's own.
func (b *builder) own(row string, files map[string]string) (string, error) {
	return b.work.files(filepath.Join(row, b.tag), files)
}

func stages(base string, n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, "FROM %s AS s%d\nRUN sleep 0.1; echo %d > /made\n", base, i, i)
	}
	fmt.Fprintf(&s, "FROM %s\n", base)
	for i := range n {
		fmt.Fprintf(&s, "COPY --from=s%d /made /made%d\n", i, i)
	}
	return s.String()
}

func (b *builder) manyFiles(name string, change bool) (timed, after, done func() error, err error) {
	dir, err := b.work.many()
	if err != nil {
		return nil, nil, nil, err
	}
	docker, err := b.own("context", map[string]string{"Dockerfile": "FROM " + b.base() + "\nCOPY . /src\nRUN echo done > /done\n"})
	if err != nil {
		return nil, nil, nil, err
	}
	file := filepath.Join(docker, "Dockerfile")
	build := func() error { return b.build(name, dir, "-f", file) }
	if !change {
		return build, nil, nil, nil
	}
	return func() error { return errors.Join(b.work.change(filepath.Join(dir, "d7", "f7"), "changed"), build()) }, nil, nil, nil
}

// goProject rebuilds after a change of main.go. Who knows cache mounts gets one for the compiler's cache, as a user would write it; the classic builder compiles everything.
func (b *builder) goProject(name string) (timed, after, done func() error, err error) {
	golang, err := b.toolchain()
	if err != nil {
		return nil, nil, nil, err
	}
	mount := ""
	if b.mounts {
		mount = "--mount=type=cache,target=/root/.cache/go-build "
	}
	dir, err := b.own("go", goFiles(golang, mount))
	if err != nil {
		return nil, nil, nil, err
	}
	return func() error {
		return errors.Join(b.work.change(filepath.Join(dir, "say", "word.go"), "package say\n\nconst word = %q\n"), b.build(name, dir))
	}, nil, nil, nil
}

// toolchain is an image with the host's Go in it.
func (b *builder) toolchain() (string, error) {
	root, err := goroot()
	if err != nil {
		return "", err
	}
	name := b.tag + "-golang"
	docker, err := b.own("golang", map[string]string{"Dockerfile": "FROM " + b.base() + "\nCOPY . /usr/local/go\nENV PATH=/usr/local/go/bin:/bin GOTOOLCHAIN=local GOPROXY=off CGO_ENABLED=0 GOFLAGS=-buildvcs=false HOME=/root\n"})
	if err != nil {
		return "", err
	}
	return name, b.build(name, root, "-f", filepath.Join(docker, "Dockerfile"))
}

// bigImage makes a further image of layers that are there: what the exporter alone costs.
func (b *builder) bigImage(name string) (timed, after, done func() error, err error) {
	big, err := b.work.big()
	if err != nil {
		return nil, nil, nil, err
	}
	below := b.tag + "-big"
	docker, err := b.own("big", map[string]string{"Dockerfile": "FROM " + b.base() + "\nCOPY . /big\n"})
	if err == nil {
		err = b.build(below, big, "-f", filepath.Join(docker, "Dockerfile"))
	}
	if err != nil {
		return nil, nil, nil, err
	}
	dir, err := b.own("export", nil)
	if err != nil {
		return nil, nil, nil, err
	}
	return func() error {
		return errors.Join(b.work.change(filepath.Join(dir, "Dockerfile"), "FROM "+below+"\nLABEL round=%q\n"), b.build(name, dir))
	}, nil, nil, nil
}
