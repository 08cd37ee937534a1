// Package containers is the engine's service for the noun container: one file per verb.
//
// It owns the live table of containers and their records in <data-root>/containers. It does not know HTTP or wire types, and makes no kernel calls itself: rooms do. It promises: a record is
// durable before Create returns (except for containers that are removed with their process); every verb is a list of steps that are taken back when one fails; no lock is held
// over a mount, a wait or a request; after a kill -9 of the engine, New finds every container again as it really is.
package containers

import (
	"context"
	"io"
	"net"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/snapshot"
)

// CreateRequest asks for a container.
type CreateRequest struct {
	Name     string // empty: one is made up
	Platform string
	Config   container.Config
	Host     container.Host
	Networks map[string]container.EndpointSettings
}

// Created tells what Create made.
type Created struct {
	ID       string
	Warnings []string
}

// View is a container as it is now: the record with a fresh state, and what only live parts know.
type View struct {
	container.Record
	Execs   []string
	LogPath string
	// LogDestinations are those that the log is handed on to; empty where the log stays here.
	LogDestinations []ship.Status
	// Egress is what the egress list of a running container let through and dropped; nil where it has none. By Inspect only.
	Egress     *network.EgressCount
	Driver     string         // snapshot driver
	Place      snapshot.Place // of the tree, for inspection; empty where the driver has no such thing
	SizeRw     *int64         // only when asked
	SizeRootFs *int64
	// Paths of the generated files.
	ResolvConfPath, HostnamePath, HostsPath string
}

// ListOptions choose containers, as `ps` does.
type ListOptions struct {
	All   bool
	Limit int
	Size  bool
	// Brief views have the record only: with a thousand containers the rest is most of the work, and a table shows none of it.
	Brief   bool
	Filters filter.Args
}

// StopOptions: Signal and Timeout are the container's own (or SIGTERM and 10 s) when empty; Timeout -1 waits for ever.
type StopOptions struct {
	Signal  string
	Timeout *int
}

// RemoveOptions are those of `rm`.
type RemoveOptions struct{ Volumes, Link, Force bool }

// WaitCondition is "not-running", "next-exit" or "removed".
type WaitCondition string

const (
	NotRunning WaitCondition = "not-running"
	NextExit   WaitCondition = "next-exit"
	Removed    WaitCondition = "removed"
)

// Ended is the answer to Wait.
type Ended struct {
	Code int
	Err  string
}

// AttachOptions are those of the attach endpoint. Hijack is called once everything was checked; it gives the client's connection and what was read of it already.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Stream, Logs          bool
	DetachKeys            string
	Hijack                func(tty bool) (conn net.Conn, preread []byte, err error)
}

// LogOptions are those of the logs endpoint.
type LogOptions struct {
	Stdout, Stderr, Follow, Timestamps, Details bool
	Since, Until                                time.Time
	Tail                                        int // -1 all
}

// ExecRequest asks for a process in a running container.
type ExecRequest struct {
	User, WorkingDir, DetachKeys            string
	Env, Cmd                                []string
	Tty, Privileged                         bool
	AttachStdin, AttachStdout, AttachStderr bool
	ConsoleSize                             [2]uint
}

// ExecView is an exec session as `inspect` shows it.
type ExecView struct {
	ExecRequest
	ID, Container string
	Running       bool
	ExitCode      *int
	PID           int
	CanRemove     bool
}

// ExecStart starts a session; Hijack is nil when detached.
type ExecStart struct {
	Detach      bool
	Tty         bool
	ConsoleSize [2]uint
	Hijack      func(tty bool) (conn net.Conn, preread []byte, err error)
}

// Stats is one reading for one container.
type Stats struct {
	ID, Name   string
	Read       time.Time
	Running    bool
	OnlineCPUs int
	SystemCPU  uint64 // ns, of the whole host
	CgroupV2   bool
	runtime.Stats
	Networks []NetStats

	fault error // why there are none
}

// NetStats are an interface's counters.
type NetStats struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// PathStat is what `cp` learns about a path.
type PathStat struct {
	Name       string
	Size       int64
	Mode       uint32 // os.FileMode bits
	Mtime      time.Time
	LinkTarget string
}

// CommitRequest is `commit`.
type CommitRequest struct {
	Container, Ref, Author, Comment string
	Changes                         []string
	Pause                           bool
	Config                          *container.Config // replaces the container's config when set
}

// UpdateRequest is `update`; nil parts stay.
type UpdateRequest struct {
	Resources *container.Resources
	Restart   *container.RestartPolicy
}

// Pruned tells what a prune removed.
type Pruned struct {
	Deleted []string
	Space   int64
}

// API is everything that doors may ask of this service. It is wide because it is the list of verbs of the noun; doors declare the part that they use.
// Every ref is an id, a unique id prefix, or a name; errors are errs.NotFound "No such container: x".
type API interface {
	Create(ctx context.Context, req CreateRequest) (Created, error)
	// Start returns when the program was executed. errs.NotModified when it runs already.
	Start(ctx context.Context, ref string, detachKeys string) error
	Stop(ctx context.Context, ref string, opts StopOptions) error
	Restart(ctx context.Context, ref string, opts StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Remove(ctx context.Context, ref string, opts RemoveOptions) error
	// Wait returns at once (so that the door can send its headers) with a channel that gets one answer.
	Wait(ctx context.Context, ref string, cond WaitCondition) (<-chan Ended, error)
	Update(ctx context.Context, ref string, req UpdateRequest) ([]string, error)
	Prune(ctx context.Context, filters filter.Args) (Pruned, error)
	// Edit changes what a container was made with, Upgrade its image; both put back what was when the new settings fail.
	Edit(ctx context.Context, ref string, req EditRequest) (Edited, error)
	Upgrade(ctx context.Context, ref string, req UpgradeRequest) (Edited, error)

	List(ctx context.Context, opts ListOptions) ([]View, error)
	Inspect(ctx context.Context, ref string, size bool) (View, error)
	Top(ctx context.Context, ref string, psArgs []string) (titles []string, rows [][]string, err error)
	// Stats gives a reading at once and one a second until ctx ends, each with the one before it; with once a single one. Readings are shared: they must not be changed.
	Stats(ctx context.Context, ref string, once bool, fn func(prior, now *Stats) error) error

	Attach(ctx context.Context, ref string, opts AttachOptions) error
	// Run starts a container with a client attached from its first byte on. When all output was delivered and the process has ended (when it is to be removed: when it is gone), or
	// when it could not be started, it sends what last says of that, and ends the connection. It returns when that is done, or nobody is there any more to be told.
	Run(ctx context.Context, ref string, opts AttachOptions, last func(end Ended, refused error) []byte) error
	// Logs calls begin once the container was found (the door then sends its headers, framed unless tty) and writes to what it returns.
	Logs(ctx context.Context, ref string, opts LogOptions, begin func(tty bool) (io.Writer, error)) error
	Resize(ctx context.Context, ref string, height, width uint) error

	ExecCreate(ctx context.Context, ref string, req ExecRequest) (string, error)
	ExecStart(ctx context.Context, id string, opts ExecStart) error
	ExecInspect(ctx context.Context, id string) (ExecView, error)
	ExecResize(ctx context.Context, id string, height, width uint) error

	Changes(ctx context.Context, ref string) ([]snapshot.Change, error)
	Export(ctx context.Context, ref string, begin func() io.Writer) error
	Commit(ctx context.Context, req CommitRequest) (imageID string, err error)
	StatPath(ctx context.Context, ref, path string) (PathStat, error)
	ArchivePath(ctx context.Context, ref, path string, begin func(PathStat) io.Writer) error
	ExtractTo(ctx context.Context, ref, path string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error
}
