package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs"
)

// Logs writes a container's output, framed as Docker does unless it has a terminal.
func (s *Service) Logs(ctx context.Context, ref string, opts LogOptions, begin func(tty bool) (io.Writer, error)) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	rec := ctr.record()
	if !opts.Stdout && !opts.Stderr {
		return errs.New(errs.Invalid, "You must choose at least one stream")
	}
	if rec.Host.Log.Type == "none" {
		return errs.New(errs.NotImplemented, "configured logging driver does not support reading")
	}
	ctr.mu.Lock()
	mon := ctr.mon
	ctr.mu.Unlock()
	ropts := logs.ReadOptions{Since: opts.Since, Until: opts.Until, Tail: opts.Tail, Stdout: opts.Stdout, Stderr: opts.Stderr, Follow: opts.Follow && mon != nil}
	var done <-chan struct{}
	if mon != nil {
		done = mon.Exited()
	}
	log, err := logs.Open(ctx, s.logDir(ctr.id), ropts, done)
	if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w, berr := begin(rec.Config.Tty)
	if err != nil { // it never ran
		return berr
	}
	if berr != nil {
		return errors.Join(berr, log.Close())
	}
	defer log.Close()
	copts := logs.CopyOptions{Framed: !rec.Config.Tty, Timestamps: opts.Timestamps}
	if opts.Details {
		copts.Details = details(rec)
	}
	if err := log.Copy(ctx, w, copts); err != nil && ctx.Err() == nil {
		return fmt.Errorf("logs of container %s: %w", rec.Name, err)
	}
	return nil
}

// details are the labels and variables that the log options name, "k=v,k=v".
func details(rec *container.Record) string {
	opts := rec.Host.Log.Config
	var list []string
	pick := func(names, pattern, key, value string) {
		if names != "" && slices.Contains(strings.Split(names, ","), key) {
			list = append(list, key+"="+value)
		} else if re, err := regexp.Compile(pattern); pattern != "" && err == nil && re.MatchString(key) {
			list = append(list, key+"="+value)
		}
	}
	for key, value := range rec.Config.Labels {
		pick(opts["labels"], opts["labels-regex"], key, value)
	}
	for _, kv := range rec.Config.Env {
		key, value, _ := strings.Cut(kv, "=")
		pick(opts["env"], opts["env-regex"], key, value)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}
