// Package ship measures how images travel: pull and push beside docker.io and podman, and registries beside Debian's docker-registry.
//
// It owns the image it makes (five layers, 0.8 GB), the registries it starts on free ports and the loads it puts on them. It promises that contestants are measured
// in turn within one run, that everything it started is gone afterwards, and that it judges nothing.
package ship

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"corten.dev/corten/internal/bench"
)

// Options choose what to measure.
type Options struct {
	Bin      string   // folder of corten and cortend
	Dir      string   // where everything lies
	Rounds   int      // of pull and push, and of the loads
	Rows     []string // "transfers", "loads"; none is both
	Progress io.Writer
	Out      io.Writer
}

// Registry is a registry process.
type Registry struct {
	Label   string
	Command func(dir, addr string) ([]string, error)
	addr    string
	cmd     *exec.Cmd
}

// Ours is `cortend registry serve`.
func Ours(bin string) *Registry {
	return &Registry{Label: "corten", Command: func(dir, addr string) ([]string, error) {
		return []string{filepath.Join(bin, "cortend"), "registry", "serve", "--addr", addr, "--root", dir}, nil
	}}
}

// Debians is docker-registry.
func Debians() *Registry {
	return &Registry{Label: "docker-registry", Command: func(dir, addr string) ([]string, error) {
		if _, err := exec.LookPath("docker-registry"); err != nil {
			return nil, errors.New("not installed")
		}
		path := filepath.Join(filepath.Dir(dir), "docker-registry.yml")
		text := "version: 0.1\nlog:\n  accesslog:\n    disabled: true\n  level: error\nstorage:\n  cache:\n    blobdescriptor: inmemory\n  filesystem:\n    rootdirectory: " + dir + "\n  delete:\n    enabled: true\nhttp:\n  addr: " + addr + "\n"
		return []string{"docker-registry", "serve", path}, os.WriteFile(path, []byte(text), 0o644)
	}}
}

func (r *Registry) start(ctx context.Context, dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	r.addr = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	args, err := r.Command(dir, r.addr)
	if err != nil {
		return err
	}
	log, err := os.Create(dir + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		return err
	}
	for range 200 {
		resp, err := http.Get("http://" + r.addr + "/v2/")
		if err == nil {
			return resp.Body.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	said, _ := os.ReadFile(dir + ".log") // what it said is only for the message
	return errors.Join(fmt.Errorf("registry %s does not answer: %s", r.Label, bytes.TrimSpace(said)), r.stop())
}

func (r *Registry) stop() error {
	if r.cmd == nil {
		return nil
	}
	err := r.cmd.Process.Signal(syscall.SIGTERM)
	if werr := r.cmd.Wait(); werr != nil {
		var exit *exec.ExitError
		if !errors.As(werr, &exit) {
			err = errors.Join(err, werr)
		}
	}
	r.cmd = nil
	return err
}

// usage is what a registry's process took.
type usage struct {
	memory int64         // the most bytes it ever held, its program's pages included
	cpu    time.Duration // until now
}

func (r *Registry) usage() (u usage, err error) {
	dir := fmt.Sprintf("/proc/%d/", r.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return u, err
	}
	_, peak, ok := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(peak, &u.memory); !ok || err != nil {
		return u, fmt.Errorf("%sstatus has no VmHWM: %w", dir, err)
	}
	u.memory <<= 10
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return u, err
	}
	// proc(5): behind the name, which may hold anything, the 12th and 13th are hundredths of seconds.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, at := range []int{11, 12} {
		ticks, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	return u, nil
}

// Run measures and prints.
func Run(ctx context.Context, opts Options) error {
	tw := tabwriter.NewWriter(opts.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "WHAT\tWHO\tMEDIAN\tMIN\tMAX\tNOTE")
	var err error
	for _, row := range []struct {
		name string
		run  func(context.Context, Options, io.Writer) error
	}{{"transfers", transfers}, {"loads", loads}} {
		if len(opts.Rows) == 0 || slices.Contains(opts.Rows, row.name) {
			err = errors.Join(err, row.run(ctx, opts, tw))
		}
	}
	return errors.Join(err, tw.Flush())
}

// transfers times pull and push of the big image.
func transfers(ctx context.Context, opts Options, out io.Writer) (err error) {
	dir := filepath.Join(opts.Dir, "registry")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	reg := Ours(opts.Bin)
	if err := reg.start(ctx, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.stop()) }()
	fmt.Fprintln(opts.Progress, "making the image")
	img, err := makeImage(ctx, reg.addr, "bench/big")
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	fmt.Fprintf(out, "image\t%d layers\t%.2f GB\t\t\t%.2f GB compressed\n", img.layers, float64(img.unpacked)/1e9, float64(img.packed)/1e9)
	var lanes []*lane
	for _, e := range engines(opts) {
		fmt.Fprintf(opts.Progress, "starting %s\n", e.Name())
		if err := e.StartOnly(ctx); err != nil {
			fmt.Fprintf(out, "not measured\t%s\t\t\t\t%v\n", e.Name(), err)
			if err := e.Stop(); err != nil {
				fmt.Fprintf(opts.Progress, "stopping %s: %v\n", e.Name(), err)
			}
			continue
		}
		defer func() { err = errors.Join(err, e.Stop()) }()
		lanes = append(lanes, &lane{e: e})
	}
	name := reg.addr + "/bench/big:1"
	for round := range opts.Rounds {
		for _, l := range lanes {
			fmt.Fprintf(opts.Progress, "round %d: %s\n", round+1, l.e.Name())
			if err := l.round(ctx, opts, name); err != nil {
				return err
			}
		}
	}
	for _, l := range lanes {
		l.print(out, "pull, 5 layers (budget 5 s)", l.pull)
		l.print(out, "push to an empty registry", l.push)
	}
	return nil
}

func engines(opts Options) []*bench.Engine {
	dir := func(name string) string {
		d := filepath.Join(opts.Dir, name)
		if err := os.MkdirAll(d, 0o755); err != nil {
			fmt.Fprintln(opts.Progress, err)
		}
		return d
	}
	return []*bench.Engine{bench.Corten(opts.Bin, dir("corten"), ""), bench.Docker(dir("docker"), ""), bench.Podman(dir("podman"), "")}
}

type lane struct {
	e          *bench.Engine
	pull, push []time.Duration
	err        error
}

// round pulls, pushes to a registry that has nothing yet, and takes the image away again. The disk is quiet before each timing.
func (l *lane) round(ctx context.Context, opts Options, name string) (err error) {
	dir := filepath.Join(opts.Dir, "empty")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	empty := Ours(opts.Bin)
	if err := empty.start(ctx, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, empty.stop(), os.RemoveAll(dir)) }()
	other := empty.addr + "/bench/big:1"
	insecure := []string(nil)
	if l.e.Label == "podman" {
		insecure = []string{"--tls-verify=false"}
	}
	step := func(times *[]time.Duration, args ...string) {
		if l.err != nil {
			return
		}
		syscall.Sync()
		start := time.Now()
		l.err = l.e.Do(args...)
		if times != nil && l.err == nil {
			*times = append(*times, time.Since(start))
		}
	}
	step(&l.pull, append(append([]string{"pull", "-q"}, insecure...), name)...)
	step(nil, "tag", name, other)
	step(&l.push, append(append([]string{"push", "-q"}, insecure...), other)...)
	step(nil, "rmi", "-f", name, other)
	return nil
}

func (l *lane) print(out io.Writer, what string, times []time.Duration) {
	if len(times) == 0 {
		fmt.Fprintf(out, "%s\t%s\t-\t\t\t%v\n", what, l.e.Name(), l.err)
		return
	}
	slices.Sort(times)
	s := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%d rounds\n", what, l.e.Name(), s(times[len(times)/2]), s(times[0]), s(times[len(times)-1]), len(times))
}
