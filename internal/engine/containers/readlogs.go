package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

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
	if !readable(rec.Host.Log) {
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
		if copts.Details, err = s.logInfo(rec, rec.Host.Log.Config).Details(); err != nil {
			return errors.Join(err, log.Close())
		}
		copts.Details += " " // also where there are none: scripts cut the first word off
	}
	if err := log.Copy(ctx, w, copts); err != nil && ctx.Err() == nil {
		return fmt.Errorf("logs of container %s: %w", rec.Name, err)
	}
	return nil
}
