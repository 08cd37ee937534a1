// Package ship hands containers' logs on: to files, system loggers and log servers.
//
// It owns the contract of a log driver, the words that all drivers share (what is told of a container, tags, attributes, options), and the followers: one for each container and driver.
// Drivers are packages beside it, joined in cmd. It promises: a container is never slowed or stopped by where its log goes, because a follower reads the log that the
// monitor writes anyway; a message is handed over at least once, in the order of the log, through restarts and kills of the engine and absences of the receiver, as long as
// the log's own bounds keep it; what was dropped there before it could be sent is counted and said.
//
//	container ─▶ monitor ─▶ the container's own log (package logfile, bounded; `logs` reads it, whatever the driver)
//	                              │
//	                              ├──▶ follower ─ messages ─▶ driver ─▶ destination      one per driver; its place in the log is a small file:
//	                              └──▶ follower ─ messages ─▶ driver ─▶ destination      <container>/ship/<driver>
//
//	follower   read ─▶ cut into lines (pieces of 16 KiB, as Docker's) ─▶ send ─▶ keep the place ─▶ read …
//	                                       │ the receiver is away
//	                                       └─▶ wait (twice as long each time) ─▶ open again ─▶ send the same messages
//
// A message may be handed over twice when the engine is killed, or the connection lost, between sending and keeping the place: never more than one batch.
package ship

import (
	"context"
	"errors"
	"fmt"
	"time"

	"corten.dev/corten/internal/logs"
)

// Message is one line, or a piece of a line that is longer than MaxLine.
type Message struct {
	Stream int // logs.Stdout or logs.Stderr
	Time   time.Time
	Line   []byte // without its newline; valid until Send returns
	// Number counts a container's messages for one driver from 1 on. It is the same when a message is sent again.
	Number int64
	// Ends is false for a piece that more will follow, and for a line that the program left without a newline.
	Ends bool
	// Partial is set for pieces of a line.
	Partial Partial
}

// Partial tells which piece of a line a message is; zero for a whole line.
type Partial struct {
	ID      string `json:",omitempty"` // of the line, random
	Ordinal int    `json:",omitempty"` // from 1
	Last    bool   `json:"-"`
}

// Split tells whether the message is a piece of a line.
func (m *Message) Split() bool { return m.Partial.Ordinal > 0 }

// Stderr tells whether the program complained.
func (m *Message) Stderr() bool { return m.Stream == logs.Stderr }

// Driver makes destinations of one kind.
type Driver interface {
	Name() string
	// Options names every option that the driver takes beside the common ones; AnyOption stands for all.
	Options() []string
	// Check refuses values of options, in Docker's words, without reaching for the destination. opts holds no option that the driver does not take.
	Check(opts map[string]string) error
	// Open reaches the destination. It is called before a container's process starts, and the start fails with it unless Lazy says otherwise; and again whenever Send failed.
	Open(ctx context.Context, info *Info) (Destination, error)
	// Policy says how failures are met.
	Policy(opts map[string]string) Policy
}

// AnyOption is every option: what a plugin takes only the plugin knows.
const AnyOption = "*"

// Policy is how a follower treats a destination.
type Policy struct {
	// Lazy: a start does not wait for the destination, and does not fail when it is away.
	Lazy bool
	// Wait is the first pause after a failure (default 500 ms); it doubles up to MaxWait (default 30 s).
	Wait, MaxWait time.Duration
	// Tries bounds how often one batch is tried before it is given up and counted; 0 for no bound.
	Tries int
	// Batch bounds the bytes that are handed over at once (default 256 KiB).
	Batch int
}

// Destination is an open connection or file. One goroutine at a time.
type Destination interface {
	// Send hands messages over and returns how many the destination has for certain, also with an error; the rest is sent again, after an error through a new Destination. Fewer without
	// an error are no failure. An error that is [ErrRefused] means that the first message behind those can never be delivered.
	Send(ctx context.Context, msgs []Message) (int, error)
	Close() error
}

// Marked is a Destination that can be taken back to where it was when the place in the log was kept last: nothing is doubled there then.
type Marked interface {
	Destination
	// Mark is what Resume needs, after the last Send.
	Mark() string
	// Resume is called before the first Send with the mark that was kept last; "" for none.
	Resume(mark string) error
}

// ErrRefused is wrapped by errors about one message that no retry will help.
var ErrRefused = errors.New("the message cannot be sent")

// Again marks an error that is no failure of the destination: the follower opens it anew at once.
func Again(err error) error { return fmt.Errorf("%w: %w", errAgain, err) }

var errAgain = errors.New("open anew")

// MaxLine is the longest piece of a line in one message, as in Docker.
const MaxLine = 16 << 10

// Info is what drivers know of a container. The field and method names are those that Docker's tag templates use.
type Info struct {
	Config              map[string]string // the driver's options
	ContainerID         string
	ContainerName       string // with the leading slash
	ContainerEntrypoint string
	ContainerArgs       []string
	ContainerImageID    string // sha256:…
	ContainerImageName  string
	ContainerCreated    time.Time
	ContainerEnv        []string
	ContainerLabels     map[string]string
	LogPath             string // of drivers that write a file
	DaemonName          string // "docker", which tags and their readers expect
	Host                string `json:"-"` // the host's name
	Bound               Bound  `json:"-"`
}

// Bound is how large a file may grow for drivers that write some; zero fields are defaults.
type Bound struct {
	MaxSize  int64 // bytes; negative: no bound
	MaxFiles int
	Compress bool
}
