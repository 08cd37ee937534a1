// Package step is the part of the build room that runs programs: the ops of kind exec (RUN), the containers of frontends, and the shell in a step that failed.
//
// It owns the writable trees whose keys begin with "step-", from the start of a step until its outputs are layers; those of a failed step belong to who gets its [build.StepError]; and what it puts beside
// a tree for the time of a step: secrets and sockets of agents, on file systems in memory that have no name on the host. It does not know how a process is made: an [Executor]
// does. It promises: nothing that was put in for a step is in its outputs; no path of a tree, of a mount's source or of a mount point is resolved by name alone; a value of a
// secret is never part of a key, an error, a log line or a file on disk; who cancels gets the step's processes killed at once.
//
// # A step
//
//	inputs' chains ─▶ trees: root, writable mounts (Prepare), read-only ones (View), caches      ─┐
//	session        ─▶ secrets, agents' sockets                                                   ─┼─▶ Executor.Start ─▶ Wait ─▶ mount points made for it go
//	root           ─▶ mount points that are missing are made, and remembered by descriptor       ─┘                          ─▶ trees become layers (Turn)
//
// # Mount points
//
// A mount needs something to stand on. What is missing in the root is made before the step and removed after it, when it is still the same file and still empty. Both ends are
// descriptors, and by the time of the removal all processes of the step are gone: whatever links the step put in the way lead nowhere (BuildKit's CVE-2024-23652). The times of the
// directory around are put back, so that a step that only mounts leaves no trace.
package step

import (
	"context"
	"io"
	"log/slog"
	"os"
	"syscall"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/snapshot"
)

// Executor runs processes in trees, isolated as containers are.
type Executor interface {
	// Start runs the first process of s and returns once its program was executed. It lives until it ends, or ctx does; then everything that it started is killed too. Files and
	// mounts of s stay the caller's, and are needed no longer once Start returned, except s.Root, which is needed until the process ended.
	Start(ctx context.Context, s Step) (Process, error)
}

// Step is a first process and what it sees.
type Step struct {
	ID       string
	Root     *snapshot.Mounted
	ReadOnly bool
	Mounts   []Mount
	Command
	Hostname     string
	ExtraHosts   []*pb.HostIP
	Network      pb.NetMode
	Ulimits      []*pb.Ulimit
	CgroupParent string
	Resources    *pb.LinuxResources
	// Devices are those of the Container Device Interface that it asks for (RUN --device), and was granted.
	Devices []*pb.CDIDevice
}

// Mount is a detached mount and where it goes.
type Mount struct {
	Dest     string // absolute
	Tree     *os.File
	ReadOnly bool
	Options  []string // beside: nosuid, noexec, nodev
}

// Command is a program to run.
type Command struct {
	Args, Env []string
	Cwd       string
	User      string // as in Dockerfiles: name or number, each with :group; looked up in the tree
	Security  pb.SecurityMode
	// Tty gives it a terminal: then everything it writes goes to Stdout.
	Tty        bool
	Rows, Cols uint16
	// Stdin is empty when nil. It is read until the process ended, and one read longer.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Process is a process that was started.
type Process interface {
	// Wait returns when the process ended, its output was delivered, and all of the step is gone. The code is 128+n after signal n.
	Wait() (code int, err error)
	Signal(sig syscall.Signal) error
	Resize(rows, cols uint16) error
	// Exec runs another process beside the first; it ends with it at the latest.
	Exec(ctx context.Context, c Command) (Process, error)
}

// Trees are the file trees of the snapshot room that steps use. It is wide by one: a layer that was made of a directory before is looked for.
type Trees interface {
	Stat(ctx context.Context, chain snapshot.ChainID) (snapshot.Layer, error)
	Prepare(ctx context.Context, key string, chain snapshot.ChainID, opts snapshot.Options) error
	Mount(ctx context.Context, key string) (*snapshot.Mounted, error)
	View(ctx context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error)
	Turn(ctx context.Context, key string, opts snapshot.TurnOptions) (snapshot.Layer, error)
	Remove(ctx context.Context, key string) error
	Walk(ctx context.Context, fn func(key string, labels map[string]string) error) error
}

// Caches gives the trees of cache mounts.
type Caches interface {
	// Acquire gives the writable tree of a cache mount, made on base when there is none, as its sharing says. It is the caller's until release.
	Acquire(ctx context.Context, id string, base snapshot.ChainID, sharing pb.CacheSharingOpt) (key string, release func(), err error)
}

// Checksums tells the content of what a mount shows.
type Checksums interface {
	// Checksum is that of the file or directory at path, links followed, with all below it; errs.NotFound.
	Checksum(ctx context.Context, env build.Env, in build.Output, path string) (digest.Digest, error)
}

// Options join this part to its neighbours.
type Options struct {
	Executor Executor
	Trees    Trees
	Caches   Caches
	// Checksums is nil where the identity of mounts is that of their whole chain.
	Checksums Checksums
	// Layers makes layers of what is at path of a directory outside of the store, so that it can be mounted. The result has it at the same path.
	Layers func(ctx context.Context, env build.Env, in build.Output, path string) (snapshot.ChainID, error)
	// Cache keeps those layers, as records of kind "source.local"; nil: they are made again each time.
	Cache build.Cache
	// Hold keeps layers that have no record until release, and lets them go then; nil: nobody collects them.
	Hold func(chain snapshot.ChainID) (release func())
	Log  *slog.Logger
}

// Steps makes the ops of kind exec, and containers.
type Steps struct {
	opts   Options
	log    *slog.Logger
	holder mount.Holder
}

// New takes away what steps of an engine that was killed left behind, and gives a maker of ops.
func New(ctx context.Context, opts Options) (*Steps, error) {
	if opts.Executor == nil || opts.Trees == nil {
		return nil, errs.New(errs.Invalid, "steps: an executor and trees are needed")
	}
	s := &Steps{opts: opts, log: opts.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, s.sweep(ctx)
}

// label marks the trees of steps.
const label = "corten.build.step"

// sweep removes trees that nobody has any more.
func (s *Steps) sweep(ctx context.Context) error {
	var old []string
	err := s.opts.Trees.Walk(ctx, func(key string, labels map[string]string) error {
		if _, ok := labels[label]; ok {
			old = append(old, key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range old {
		if err := s.opts.Trees.Remove(ctx, key); err != nil {
			s.log.Warn("remove the tree of a step that was cut off", "tree", key, "err", err)
		}
	}
	return nil
}
