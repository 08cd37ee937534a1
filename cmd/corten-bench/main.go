// Command corten-bench prints our figures beside those of the peers that it finds installed (make bench).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"corten.dev/corten/internal/bench"
	"corten.dev/corten/internal/bench/build"
	"corten.dev/corten/internal/bench/ship"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "corten-bench:", err)
		os.Exit(1)
	}
}

func run() error {
	bin := flag.String("bin", "bin", "folder of corten and cortend")
	rows := flag.String("rows", "", "rows to measure, separated by commas (default all)")
	rounds := flag.Int("rounds", 0, "rounds of each row (0: its own number)")
	only := flag.String("only", "", "contestants, separated by commas (default all that are installed)")
	containers := flag.Int("containers", 20, "idle containers for the memory row")
	busybox := flag.String("busybox", "/bin/busybox", "a static busybox")
	networks := flag.Bool("networks", false, "instead, measure starts with 200 networks and 1000 published ports")
	scale := flag.String("scale", "", "instead, measure with these numbers of running containers, e.g. 0,200,1000; 1000 alone means these three")
	stats := flag.Int("stats", 0, "instead, measure what it costs the engine to stream the stats of so many containers, e.g. 200")
	volumes := flag.Bool("volumes", false, "instead, measure starts with 1,000 volumes")
	travel := flag.Bool("ship", false, "instead, measure pull, push and the registry")
	building := flag.Bool("build", false, "instead, measure builds")
	out := flag.String("json", "bench-result.json", "file for the figures as JSON")
	flag.Parse()
	abs, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	base, err := os.MkdirTemp("", "corten-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(base)
	dir := func(name string) string {
		d := filepath.Join(base, name)
		if err := os.MkdirAll(d, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, "corten-bench:", err)
		}
		return d
	}
	if *travel {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		return ship.Run(ctx, ship.Options{Bin: abs, Dir: base, Rows: words(*rows), Rounds: max(*rounds, 3), Progress: os.Stderr, Out: os.Stdout})
	}
	if *building {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		return build.Run(ctx, build.Options{Bin: abs, Dir: base, Busybox: *busybox, Rows: words(*rows), Only: words(*only), Rounds: *rounds, JSON: *out, Progress: os.Stderr, Out: os.Stdout})
	}
	if *networks {
		e := bench.Corten(abs, dir("corten"), *busybox)
		figures, err := bench.ScaleNetworks(context.Background(), e, 200, 1000, os.Stderr)
		return errors.Join(err, bench.PrintScaleNetworks(os.Stdout, e.Label, figures))
	}
	if *scale != "" {
		return runScale(bench.Corten(abs, dir("corten"), *busybox), *scale)
	}
	if *stats > 0 {
		e := bench.Corten(abs, dir("corten"), *busybox)
		figure, err := bench.Stats(context.Background(), e, *stats, os.Stderr)
		return errors.Join(err, bench.PrintStats(os.Stdout, e.Label, figure))
	}
	if *volumes {
		e := bench.Corten(abs, dir("corten"), *busybox)
		figures, err := bench.Crowds(context.Background(), e, []bench.Crowd{bench.Volumes(1000)}, os.Stderr)
		return errors.Join(bench.PrintCrowds(os.Stdout, e.Label, figures), err)
	}
	all := []bench.Contestant{
		bench.Corten(abs, dir("corten"), *busybox),
		bench.Docker(dir("docker"), *busybox),
		bench.Podman(dir("podman"), *busybox),
		&bench.OCI{Label: "cortend runtime", Command: []string{filepath.Join(abs, "cortend"), "runtime", "--root", dir("ocistate")}, Dir: dir("oci"), Busybox: *busybox},
		&bench.OCI{Label: "runc", Command: []string{"runc", "--root", dir("runcstate")}, Dir: dir("runc"), Busybox: *busybox},
		&bench.OCI{Label: "crun", Command: []string{"crun", "--root", dir("crunstate")}, Dir: dir("crun"), Busybox: *busybox},
	}
	opts := bench.Options{Rounds: *rounds, Containers: *containers, Progress: os.Stderr}
	opts.Rows = words(*rows)
	if *only != "" {
		all = choose(all, words(*only))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	rep := bench.Run(ctx, all, opts)
	if err := rep.Print(os.Stdout); err != nil {
		return err
	}
	return rep.Save(*out)
}

func words(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func runScale(e *bench.Engine, counts string) error {
	if counts == "1000" {
		counts = "0,200,1000"
	}
	var ns []int
	for c := range strings.SplitSeq(counts, ",") {
		n, err := strconv.Atoi(c)
		if err != nil {
			return err
		}
		ns = append(ns, n)
	}
	figures, err := bench.Scale(context.Background(), e, ns, os.Stderr)
	return errors.Join(bench.PrintScale(os.Stdout, e.Label, figures), err)
}

func choose(all []bench.Contestant, names []string) []bench.Contestant {
	var some []bench.Contestant
	for _, c := range all {
		for _, n := range names {
			if c.Name() == n {
				some = append(some, c)
			}
		}
	}
	return some
}
