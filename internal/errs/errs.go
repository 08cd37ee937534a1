// Package errs is the one error idiom of Corten: a handful of kinds that callers can ask for with [errors.Is],
// carried under plain messages.
//
// It owns the list of kinds. It promises that a kind never shows in the text: the text is the chain of what was
// being done, in small letters, with the names in it ("start web: image alpine: not found" is written by the callers).
// Doors translate a kind to their own vocabulary (HTTP status, exit code) in one place each.
package errs

import (
	"errors"
	"fmt"
)

// The kinds. Doors map them to HTTP: Invalid 400, Unauthorized 401, Forbidden 403, NotFound 404, Conflict 409,
// NotModified 304, NotImplemented 501, Unavailable 503, everything else 500.
var (
	Invalid        = errors.New("invalid argument")
	Unauthorized   = errors.New("unauthorized")
	Forbidden      = errors.New("forbidden")
	NotFound       = errors.New("not found")
	Conflict       = errors.New("conflict")
	NotModified    = errors.New("not modified")
	NotImplemented = errors.New("not implemented")
	Unavailable    = errors.New("unavailable")
	// NoCommand and NotExecutable tell a failed start apart, for exit codes 127 and 126. Docker answers 400 for both.
	NoCommand     = errors.New("command not found")
	NotExecutable = errors.New("command cannot be executed")
)

type kinded struct {
	kind error
	err  error
}

func (k *kinded) Error() string   { return k.err.Error() }
func (k *kinded) Unwrap() []error { return []error{k.err, k.kind} }

// New formats an error of the given kind; %w works as in fmt.Errorf.
func New(kind error, format string, args ...any) error {
	return &kinded{kind: kind, err: fmt.Errorf(format, args...)}
}

// As gives err the kind, keeping its text. A nil err stays nil.
func As(kind, err error) error {
	if err == nil {
		return nil
	}
	return &kinded{kind: kind, err: err}
}

// Also adds what else went wrong, while cleaning up, on the same line. What is nil adds nothing.
func Also(err error, more ...error) error {
	for _, m := range more {
		switch {
		case m == nil:
		case err == nil:
			err = m
		default:
			err = fmt.Errorf("%w; %w", err, m)
		}
	}
	return err
}
