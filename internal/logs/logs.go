// Package logs is the room of what containers said: a bounded, indexed log that is read while it is written.
//
// It owns the format of a log folder (drawn in format.go) and reading it; the writer half ([Writer]) links nothing but system calls, because it
// runs inside the monitor. It promises: a record that Write returned for survives kill -9 of everything, the writer included; no line is split,
// doubled or lost by rotation, except that the oldest file as a whole is dropped when the bound is reached; a reader never blocks the writer.
package logs

import (
	"context"
	"time"
)

// Stream numbers are Docker's.
const (
	Stdout = 1
	Stderr = 2
)

// Line is one line (or the unterminated end) of a stream, with its newline if it had one.
type Line struct {
	Stream int
	Time   time.Time
	Data   []byte // valid until the next call
}

// ReadOptions choose lines, as `docker logs` does.
type ReadOptions struct {
	Since, Until   time.Time
	Tail           int // -1 for all
	Follow         bool
	Stdout, Stderr bool
}

// Reader gives lines in the order they were written. Next returns io.EOF at the end; with Follow it waits until ctx ends or done (given to Open) closes
// and everything written was read.
type Reader interface {
	Next(ctx context.Context) (Line, error)
	Close() error
}
