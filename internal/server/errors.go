package server

import (
	"context"
	"errors"
	"net/http"

	"github.com/moby/moby/api/types/common"

	"corten.dev/corten/internal/errs"
)

// kinds is the one place where the kinds of errs become HTTP.
var kinds = []struct {
	kind   error
	status int
}{
	{errs.Invalid, http.StatusBadRequest},
	{errs.Unauthorized, http.StatusUnauthorized},
	{errs.Forbidden, http.StatusForbidden},
	{errs.NotFound, http.StatusNotFound},
	{errs.Conflict, http.StatusConflict},
	{errs.NotModified, http.StatusNotModified},
	{errs.NotImplemented, http.StatusNotImplemented},
	{errs.Unavailable, http.StatusServiceUnavailable},
	{errs.NoCommand, http.StatusBadRequest},
	{errs.NotExecutable, http.StatusBadRequest},
}

// status finds the outermost kind of an error, because what wraps says more about the request than what was wrapped.
func status(err error) int {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return http.StatusRequestEntityTooLarge
	}
	for level := []error{err}; len(level) > 0; {
		var next []error
		for _, e := range level {
			for _, k := range kinds {
				if e == k.kind {
					return k.status
				}
			}
			switch u := e.(type) {
			case interface{ Unwrap() error }:
				next = append(next, u.Unwrap())
			case interface{ Unwrap() []error }:
				next = append(next, u.Unwrap()...)
			}
		}
		level = next
	}
	return http.StatusInternalServerError
}

// failWith answers with the status of err, unless the answer has begun: handlers that stream end it themselves.
func (s *Server) failWith(w http.ResponseWriter, r *request, err error) {
	code := status(err)
	if cut := (*cutError)(nil); errors.As(err, &cut) {
		s.Logger.Error("answer cut off", "method", r.Method, "path", r.URL.Path, "err", err.Error())
		return
	}
	if code >= http.StatusInternalServerError && code != http.StatusNotImplemented && code != http.StatusServiceUnavailable && !errors.Is(err, context.Canceled) {
		s.Logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err.Error()) // some errors print the stack of who made them
	} else {
		s.Logger.Debug("request refused", "method", r.Method, "path", r.URL.Path, "status", code, "err", err.Error())
	}
	if code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	s.fail(w, code, err.Error())
}

// fail answers {"message": …}.
func (s *Server) fail(w http.ResponseWriter, code int, message string) {
	if err := writeJSON(w, code, common.ErrorResponse{Message: message}); err != nil {
		s.Logger.Debug("answer an error", "err", err)
	}
}
