package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/moby/moby/api/types"
	wire "github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
)

func (s *Server) containerLogs(w http.ResponseWriter, r *request) error {
	opts, err := logOptions(r, time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := s.endless(r)
	defer cancel()
	var st *stream
	err = s.Containers.Logs(ctx, r.id(), opts, func(tty bool) (io.Writer, error) {
		kind := ""
		if r.version >= 42 {
			kind = streamType(r.version, tty)
		}
		st = startStream(w, kind)
		return st, nil
	})
	if st == nil {
		return err
	}
	if cerr := st.Close(); cerr != nil {
		s.Logger.Debug("logs: the client left", "container", r.id(), "err", cerr)
	} else if err != nil && ctx.Err() == nil {
		s.Logger.Error("logs ended early", "container", r.id(), "err", err)
		cut(w)
	}
	return nil
}

func logOptions(r *request, now time.Time) (containers.LogOptions, error) {
	q := r.query
	opts := containers.LogOptions{
		Stdout: q.flag("stdout"), Stderr: q.flag("stderr"), Follow: q.flag("follow"), Timestamps: q.flag("timestamps"), Details: q.flag("details"), Tail: -1,
	}
	if !opts.Stdout && !opts.Stderr {
		return opts, errs.New(errs.Invalid, "Bad parameters: you must choose at least one stream")
	}
	// Docker takes a tail that is no number for "all".
	if n, err := strconv.Atoi(q.get("tail")); err == nil && n >= 0 {
		opts.Tail = n
	}
	var err error
	if opts.Since, err = q.moment("since", now); err != nil {
		return opts, err
	}
	if r.version >= 35 {
		opts.Until, err = q.moment("until", now)
	}
	return opts, err
}

func (s *Server) containerAttach(w http.ResponseWriter, r *request) error {
	h := &hijack{w: w, r: r}
	opts := attachOptions(r)
	opts.Hijack = h.take
	return s.session(h, s.Containers.Attach(context.WithoutCancel(r.Context()), r.id(), opts))
}

func attachOptions(r *request) containers.AttachOptions {
	q := r.query
	return containers.AttachOptions{
		Stdin: q.flag("stdin"), Stdout: q.flag("stdout"), Stderr: q.flag("stderr"), Stream: q.flag("stream"), Logs: q.flag("logs"),
		DetachKeys: q.get("detachKeys"),
	}
}

// session translates the end of an attach or exec: before the hijack an error is an HTTP error, after it the connection is the monitor's.
func (s *Server) session(h *hijack, err error) error {
	if !h.begun {
		return err
	}
	if err != nil {
		s.Logger.Debug("session ended", "path", h.r.URL.Path, "err", err)
	}
	return nil
}

func (s *Server) containerWait(w http.ResponseWriter, r *request) error {
	cond := containers.NotRunning
	if r.version >= 30 {
		switch text := r.query.get("condition"); text {
		case "", string(containers.NotRunning):
		case string(containers.NextExit):
			cond = containers.NextExit
		case string(containers.Removed):
			cond = containers.Removed
		default:
			if r.version >= 42 {
				return errs.New(errs.Invalid, "invalid condition: %q", text)
			}
		}
	}
	ctx, cancel := s.endless(r)
	defer cancel()
	ended, err := s.Containers.Wait(ctx, r.id(), cond)
	if err != nil {
		return err
	}
	w.Header()["Content-Type"] = []string{"application/json"}
	if r.version >= 30 { // the headers tell that the wait has begun
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
	}
	select {
	case end, open := <-ended:
		if !open {
			cut(w)
			return nil
		}
		out := wire.WaitResponse{StatusCode: int64(end.Code)}
		if end.Err != "" {
			out.Error = &wire.WaitExitError{Message: end.Err}
		}
		_ = json.NewEncoder(w).Encode(out) // the client may have left
	case <-ctx.Done():
		cut(w)
	}
	return nil
}

// errEnough stops a stream of readings.
var errEnough = errors.New("enough")

func (s *Server) containerStats(w http.ResponseWriter, r *request) error {
	streaming := r.query.flagOr("stream", true)
	once := r.version >= 41 && r.query.flag("one-shot")
	if once && streaming {
		return errs.New(errs.Invalid, "cannot have stream=true and one-shot=true")
	}
	ctx, cancel := s.endless(r)
	defer cancel()
	rc, begun := http.NewResponseController(w), false
	var line []byte
	err := s.Containers.Stats(ctx, r.id(), once, func(prior, now *containers.Stats) error {
		// Without a stream the answer is the first reading that has one before it to compare with; a stopped container has nothing to compare.
		if !streaming && !once && now.Running && prior.Read.IsZero() {
			return nil
		}
		if !begun {
			w.Header()["Content-Type"] = []string{types.MediaTypeJSON}
			begun = true
		}
		// A client that is slow makes the engine wait here and nowhere else: it gets the newest reading next.
		line = appendStats(line[:0], prior, now, r.version)
		if _, err := w.Write(line); err != nil {
			return errEnough // it is gone
		}
		if !streaming {
			return errEnough
		}
		return rc.Flush()
	})
	switch {
	case errors.Is(err, errEnough), ctx.Err() != nil, err == nil:
		return nil
	case !begun:
		return err
	}
	cut(w)
	return nil
}

func (s *Server) containerExport(w http.ResponseWriter, r *request) error {
	out := &lazyStream{w: w, contentType: "application/octet-stream"}
	return out.finish(s.Containers.Export(r.Context(), r.id(), func() io.Writer { return out }))
}
