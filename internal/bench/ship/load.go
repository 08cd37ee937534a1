package ship

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// loads puts the same work on both registries, in turn, each started anew for small and for large blobs.
func loads(ctx context.Context, opts Options, out io.Writer) error {
	for _, l := range []struct {
		what        string
		load        load
		push, pulls int
	}{
		{"blobs of 4 KB, 16 at a time", load{width: 16, size: 4 << 10}, 2000, 20_000},
		{"blobs of 64 MB, 4 at a time", load{width: 4, size: 64 << 20}, 12, 48},
	} {
		for _, reg := range []*Registry{Ours(opts.Bin), Debians()} {
			fmt.Fprintf(opts.Progress, "load on %s\n", reg.Label)
			if err := loadOne(ctx, opts, reg, l.load, [2]int{l.push, l.pulls}, func(did string, r result, use usage) {
				seconds := r.elapsed.Seconds()
				fmt.Fprintf(out, "registry: %s %s\t%s\t%.0f/s\t%.0f MB/s\t\tpeak memory %.1f MB; %.2f ms of processor time a request\n", did, l.what, reg.Label,
					float64(r.requests)/seconds, float64(r.bytes)/1e6/seconds, float64(use.memory)/1e6, use.cpu.Seconds()*1e3/float64(r.requests))
			}); err != nil {
				fmt.Fprintf(out, "not measured\t%s\t\t\t\t%v\n", reg.Label, err)
			}
		}
	}
	return nil
}

// loadOne pushes, then pulls what was pushed.
func loadOne(ctx context.Context, opts Options, reg *Registry, l load, counts [2]int, tell func(did string, r result, use usage)) (err error) {
	dir := filepath.Join(opts.Dir, "load-"+reg.Label)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := reg.start(ctx, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.stop()) }()
	l.addr, l.repo, l.count = reg.addr, "load/all", counts[0]
	for _, did := range []string{"push", "pull"} {
		before, err := reg.usage()
		if err != nil {
			return err
		}
		work := l.push
		if did == "pull" {
			work = l.pull
		}
		res, err := work(ctx)
		if err != nil {
			return err
		}
		use, err := reg.usage()
		if err != nil {
			return err
		}
		use.cpu -= before.cpu
		tell(did, res, use)
		l.blobs, l.count = res.blobs, counts[1]
	}
	return nil
}
