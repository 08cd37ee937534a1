// Package build measures builds: whole commands of Corten beside docker.io's classic builder, the BuildKit inside docker.io, and buildah, as far as they are installed.
//
// It owns the build contexts that it makes and the rows of the issue "Build". It promises what package bench promises, which measures and prints for it: contestants of a row in
// turn within one run, medians, and nothing left behind.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"corten.dev/corten/internal/bench"
	"corten.dev/corten/internal/busyboxtree"
)

// Options choose what to measure.
type Options struct {
	Bin      string // folder of corten and cortend
	Dir      string // where everything lies
	Busybox  string // a static busybox
	Rows     []string
	Only     []string // contestants; empty means all that are installed
	Rounds   int      // 0: each row's own number
	JSON     string   // file for the figures
	Progress io.Writer
	Out      io.Writer
}

// Run measures and prints.
func Run(ctx context.Context, opts Options) error {
	work := &contexts{dir: filepath.Join(opts.Dir, "contexts")}
	all, err := contestants(opts, work)
	if err != nil {
		return err
	}
	rep := bench.Run(ctx, all, bench.Options{Table: Rows(), Rows: opts.Rows, Rounds: opts.Rounds, Progress: opts.Progress})
	if err := rep.Print(opts.Out); err != nil {
		return err
	}
	return rep.Save(opts.JSON)
}

// builder is an engine with docker's `build`.
type builder struct {
	*bench.Engine
	verb   []string // "build" and the flags that make it comparable
	mounts bool     // knows RUN --mount
	busy   string
	work   *contexts
	tag    string // of its images, since two contestants may share a store
}

func contestants(opts Options, work *contexts) ([]bench.Contestant, error) {
	var all []bench.Contestant
	var dirErr error
	dir := func(name string) string {
		d := filepath.Join(opts.Dir, name)
		dirErr = errors.Join(dirErr, os.MkdirAll(d, 0o755))
		return d
	}
	wanted := func(label string) bool { return len(opts.Only) == 0 || slices.Contains(opts.Only, label) }
	add := func(e *bench.Engine, mounts bool, verb ...string) {
		if !wanted(e.Label) {
			return
		}
		all = append(all, &builder{Engine: e, verb: verb, mounts: mounts, busy: opts.Busybox, work: work, tag: fmt.Sprintf("corten-bench-%d", len(all))})
	}
	add(bench.Corten(opts.Bin, dir("corten"), ""), true, "build", "-q")
	classic := bench.Docker(dir("docker"), "")
	classic.Label, classic.Env = "docker classic", []string{"DOCKER_BUILDKIT=0"}
	add(classic, false, "build", "-q")
	if client := buildkitClient(); client != "" {
		kit := bench.Docker(dir("dockerkit"), "")
		kit.Label, kit.Env = "docker BuildKit", []string{"DOCKER_BUILDKIT=1"}
		kit.Client[0] = client
		if wanted(classic.Label) { // one daemon has both builders
			kit.Daemon, kit.Cleanup, kit.Client[2] = nil, nil, classic.Client[2]
		}
		add(kit, true, "build", "-q")
	}
	add(buildah(dir("buildah")), true, "build", "-q", "--layers", "--isolation", "chroot")
	return all, dirErr
}

// buildah runs steps with chroot isolation, its fastest: the others need CNI plugins and a runtime that likes this host's cgroups.
func buildah(dir string) *bench.Engine {
	return &bench.Engine{
		Label: "buildah", Dir: dir,
		Client: []string{"buildah", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run")},
		Cleanup: func() error {
			store := filepath.Join(dir, "root", "overlay") // mounted on itself by the storage library, and left so
			if err := syscall.Unmount(store, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
				return fmt.Errorf("unmount %s: %w", store, err)
			}
			return os.RemoveAll(dir)
		},
	}
}

// buildkitClient is a docker client that drives the BuildKit inside dockerd: one with the buildx plugin, or one from before 23.0, which needs none.
func buildkitClient() string {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		client := filepath.Join(dir, "docker")
		if _, err := os.Stat(client); err != nil {
			continue
		}
		if exec.Command(client, "buildx", "version").Run() == nil {
			return client
		}
		out, err := exec.Command(client, "--version").Output()
		if _, version, ok := strings.Cut(string(out), "version "); err == nil && ok {
			major, _, _ := strings.Cut(version, ".")
			if n, err := strconv.Atoi(major); err == nil && n < 23 {
				return client
			}
		}
	}
	return ""
}

// Start implements bench.Contestant: the engine, and the image that all Dockerfiles stand on.
func (b *builder) Start(ctx context.Context) error {
	if err := b.StartOnly(ctx); err != nil {
		return err
	}
	image, err := busyboxtree.Tar(b.busy)
	if err != nil {
		return err
	}
	dir, err := b.work.files("base", map[string]string{"base.tar": string(image), "Dockerfile": "FROM scratch\nADD base.tar /\n"})
	if err != nil {
		return err
	}
	return b.build(b.base(), dir)
}

func (b *builder) base() string { return b.tag + "-base" }

// build runs one whole build command.
func (b *builder) build(name, dir string, flags ...string) error {
	args := append(append([]string{}, b.verb...), "-t", name)
	return b.Do(append(append(args, flags...), dir)...)
}

// Memory implements bench.Contestant.
func (b *builder) Memory(context.Context, int) (int64, int64, error) { return 0, 0, bench.ErrSkip }
