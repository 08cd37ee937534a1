package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/registry/server"
)

const collectWords = `Remove what nothing refers to, and the tags and manifests that the retention rules of the configuration file name. A registry may serve
the same storage meanwhile: what a push that is under way counts on stays.`

func collectFlags(set *pflag.FlagSet, r *request) {
	placeFlags(set)
	set.BoolVar(&r.dryRun, "dry-run", false, "Only tell what would go")
	set.BoolVar(&r.jsonOut, "json", false, "One line of JSON for each thing, and one for the sum")
}

func collect(ctx context.Context, args []string, std IO) error {
	req, err := parse("collect", collectWords, args, std.Out, collectFlags)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	if err := level.UnmarshalText([]byte(req.conf.LogLevel)); err != nil {
		return err
	}
	log := newLog(std.Err, req.conf.LogForm, level)
	driver, err := openDriver(ctx, &req.conf, log)
	if err != nil {
		return err
	}
	reg, err := server.New(server.Options{Driver: driver, Logger: log, Limits: limits(&req.conf)})
	if err != nil {
		return errors.Join(err, driver.Close())
	}
	report, err := reg.Collect(ctx, server.CollectOptions{DryRun: req.dryRun, Rules: rules(&req.conf), Log: func(g server.Gone) {
		gone{g.Kind, g.Repository, g.Name, g.Size, g.Why}.print(std.Out, req.jsonOut)
	}})
	if err = errors.Join(err, reg.Close()); err != nil {
		return err
	}
	return printReport(std.Out, report, req.jsonOut)
}

func printReport(w io.Writer, r server.Report, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(map[string]any{
			"dry-run": r.DryRun, "uploads": r.Uploads, "tags": r.Tags, "manifests": r.Manifests, "links": r.Links, "blobs": r.Blobs, "bytes": r.Bytes,
			"kept": r.Kept, "seconds": r.Duration.Seconds(),
		})
	}
	word := "removed"
	if r.DryRun {
		word = "would remove"
	}
	_, err := fmt.Fprintf(w, "%s %d tags, %d manifests, %d blobs and %d uploads: %s; %d blobs stay\n", word, r.Tags, r.Manifests, r.Blobs, r.Uploads, units.BytesSize(float64(r.Bytes)), r.Kept)
	return err
}
