package containers

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

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
	r, err := s.OpenLog(s.logDir(ctr.id), ropts, done)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	w, berr := begin(rec.Config.Tty)
	if err != nil || berr != nil { // NotFound: it never ran
		if r != nil {
			r.Close()
		}
		return berr
	}
	defer r.Close()
	out := &lineWriter{w: w, framed: !rec.Config.Tty, times: opts.Timestamps}
	if opts.Details {
		out.details = details(rec) + " "
	}
	return copyLines(ctx, r, out)
}

func copyLines(ctx context.Context, r logs.Reader, w *lineWriter) error {
	for {
		line, err := r.Next(ctx)
		switch {
		case err == io.EOF:
			return w.flush()
		case err != nil && ctx.Err() != nil: // the client has gone, or has seen enough
			return nil
		case err != nil:
			return err
		}
		if err := w.write(line); err != nil {
			return err
		}
	}
}

// lineWriter writes lines as the API does. It gathers small ones, and flushes when it would otherwise wait too long for more.
type lineWriter struct {
	w       io.Writer
	framed  bool
	times   bool
	details string
	buf     []byte
	last    time.Time
}

const lineBuffer = 64 << 10

func (l *lineWriter) write(line logs.Line) error {
	start := len(l.buf)
	if l.framed {
		l.buf = append(l.buf, byte(line.Stream), 0, 0, 0, 0, 0, 0, 0)
	}
	if l.times {
		l.buf = line.Time.UTC().AppendFormat(l.buf, "2006-01-02T15:04:05.000000000Z07:00")
		l.buf = append(l.buf, ' ')
	}
	l.buf = append(l.buf, l.details...)
	l.buf = append(l.buf, line.Data...)
	if l.framed {
		binary.BigEndian.PutUint32(l.buf[start+4:], uint32(len(l.buf)-start-8))
	}
	return l.flush()
}

func (l *lineWriter) flush() error {
	if len(l.buf) == 0 {
		return nil
	}
	_, err := l.w.Write(l.buf)
	l.buf = l.buf[:0]
	return err
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
