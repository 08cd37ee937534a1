// Package logs is the room of what containers said: a bounded, indexed log that is read while it is written.
//
// It owns reading a log folder; the format and the writer are package logfile, which links nothing but system calls, because it runs inside the monitor. It promises: a record that Write returned for survives kill -9 of everything, the writer included; no line is split,
// doubled or lost by rotation, except that the oldest file as a whole is dropped when the bound is reached; a reader never blocks the writer.
//
// Lines are kept whole whatever their length, but a reader that joins them gives up at 1 MiB and goes on with the rest as if it were another line. What was written
// in the last half minute before a power cut (not a kill) may be missing: the kernel writes it back at its own pace; finished files are flushed, and so is the end
// of the log of a container whose exit is.
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

// ReadOptions choose lines, as `docker logs` does: the last Tail lines, and of those the ones between Since and Until. Zero times do not bound.
type ReadOptions struct {
	Since, Until   time.Time
	Tail           int // -1 for all
	Follow         bool
	Stdout, Stderr bool
}

// Reader gives lines in the order in which they were completed. Next returns io.EOF at the end; with Follow it waits until ctx ends or done (given to Open) closes
// and everything written was read. [Open] returns one.
type Reader interface {
	Next(ctx context.Context) (Line, error)
	Close() error
}
