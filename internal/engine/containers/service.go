package containers

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/linux/counters"
	"corten.dev/corten/internal/linux/spread"
	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/volume"
)

// The needs of this service. Each is the part of a room that containers use, so that a test can stand in for it.

// Runtime makes processes of OCI specs and finds them again.
type Runtime interface {
	// Knows tells whether containers may name this runtime.
	Knows(name string) bool
	// Create runs the container by the runtime of that name and returns after its execve succeeded.
	Create(ctx context.Context, name string, opts runtime.RunOptions) (Process, error)
	// Load finds a container of an earlier engine; errs.NotFound when nothing of it is there.
	Load(ctx context.Context, id string) (Process, error)
	// List names all containers that the runtime has something of.
	List(ctx context.Context) ([]string, error)
}

// Process is a container as the runtime sees it: all its processes and its cgroups. It is as wide as what can be done to them.
type Process interface {
	PID() int
	Exec(ctx context.Context, exec runtime.Exec) (pid int, err error)
	// Signal goes to the first process; with all, to every process of the container.
	Signal(ctx context.Context, sig syscall.Signal, all bool) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Update(ctx context.Context, res *specs.LinuxResources) error
	// Meter reads the figures again and again, by files that stay open as far as the budget goes.
	Meter(keep *counters.Budget) Meter
	PIDs(ctx context.Context) ([]int, error)
	// Delete kills what is left and removes state and cgroups.
	Delete(ctx context.Context) error
}

// Trees are the writable file trees (snapshot.Store).
type Trees interface {
	Name() string
	Prepare(ctx context.Context, key string, chain snapshot.ChainID, opts snapshot.Options) error
	Mount(ctx context.Context, key string) (*snapshot.Mounted, error)
	Changes(ctx context.Context, key string) ([]snapshot.Change, error)
	Usage(ctx context.Context, key string) (int64, error)
	Remove(ctx context.Context, key string) error
	Walk(ctx context.Context, fn func(key string, labels map[string]string) error) error
}

// Images finds what containers are made of, and keeps what is made of them.
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	// GetFor finds the image of a platform below a name that leads to several.
	GetFor(ctx context.Context, ref string, p manifest.Platform) (image.Image, error)
	Commit(ctx context.Context, opts image.CommitOptions) (image.Image, error)
}

// imageUses is an Images that wants to know when an image was used last: whatever happens to a container is a use of its image.
type imageUses interface {
	Used(id digest.Digest, when time.Time)
}

// LiveNetworks changes the network of a running container.
type LiveNetworks interface {
	Connect(ctx context.Context, owner string, pid int, req network.EndpointRequest) (network.Endpoint, error)
	Disconnect(ctx context.Context, owner string, pid int, network string) error
	SetPorts(ctx context.Context, owner string, ports []network.Port) error
	SetLimits(ctx context.Context, owner string, pid int, want network.Limits) error
	Sandbox(owner string) (network.Sandbox, bool)
}

// Networks gives containers their network (network.Manager without the verbs of networks themselves).
type Networks interface {
	LiveNetworks
	Get(ctx context.Context, ref string) (network.Network, error)
	Join(ctx context.Context, req network.JoinRequest) (*network.Sandbox, error)
	Restore(ctx context.Context, req network.JoinRequest, sb network.Sandbox, pid int) error
	Leave(ctx context.Context, owner string) error
	Rename(ctx context.Context, owner, name string) error
	HostGateway() netip.Addr
	EgressCounts(ctx context.Context) (owners, networks map[string]network.EgressCount, err error)
}

// Volumes gives containers named directories (volume.Store without listing).
type Volumes interface {
	Create(ctx context.Context, opts volume.CreateOptions) (volume.Volume, error)
	Get(ctx context.Context, name string) (volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Acquire(ctx context.Context, name, user string) error
	Release(ctx context.Context, name, user string) error
	Mount(ctx context.Context, name, user string) (string, error)
	Unmount(ctx context.Context, name, user string) error
	Fill(ctx context.Context, name string, src *os.File) error
}

// Options join the service with its rooms. All rooms are needed; the rest has useful zeros.
type Options struct {
	Root     string // <data-root>/containers
	ExecRoot string // <exec-root>: generated things that a boot may lose

	Runtime  Runtime
	Monitors monitor.Starter
	Trees    Trees
	Images   Images
	Networks Networks
	Volumes  Volumes
	Events   *events.Bus
	Log      *slog.Logger
	// ReadExit reads what a monitor left on disk (default: monitor.ReadExit); errs.NotFound when it left nothing.
	ReadExit func(path string) (monitor.Exit, error)

	CgroupParent   string // default "/corten", or "system.slice" with systemd
	Network        string // of containers that name none: "bridge" (default), or "none" where there is no default bridge
	SystemdCgroup  bool
	Init           bool                        // --init for all containers
	Ulimits        map[string]container.Ulimit // defaults of all containers
	CDI            *hostspec.CDI               // devices by name; nil: none
	ShmSize        int64                       // default 64 MB
	LogConfig      container.LogConfig         // of containers that name no driver; default: the own format, shown as "json-file"
	LogDrivers     ship.Drivers                // beside "local" and "none"
	Seccomp        string                      // default profile: "" built in, "unconfined", or JSON
	NoNewPrivs     bool                        // default of all containers
	StopTimeout    int                         // seconds, default 10
	BootID         string                      // default: the kernel's
	TreeSize       int64                       // how many bytes a container's own files may take, if it does not say; 0: no bound
	DefaultRuntime string                      // of containers that name none; default "corten"
	MaxStarts      int                         // how many are started at once at boot, default 4
}

// Service is the live table of containers and all their verbs. It implements [API].
type Service struct {
	Options
	init  *initProgram
	maker *hostspec.Maker
	host  func() (*cgroup.Host, error) // looked at once
	// supports is what the cgroups of this host can limit; looked at once.
	supports func() cgroup.Support
	figures  *figures
	folders  *spread.Folder // Root

	// ctx ends with Close; background work belongs to it.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	closing sync.Mutex // guards closed
	closed  bool

	table table
	execs execTable
	plain plainNetworks
	// watches tells those who hand logs on that there is more.
	watches *logs.Watches
	links   linkBook
	owed    owed
}

var _ API = (*Service)(nil)

// New finds every container again as it really is and returns the service. Containers whose policy says so are started in the background.
func New(opts Options) (*Service, error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	s := &Service{Options: opts, host: sync.OnceValues(cgroup.Discover), init: &initProgram{dir: opts.ExecRoot}}
	s.supports, s.figures = sync.OnceValue(supports(s.host)), newFigures()
	s.maker = &hostspec.Maker{
		Security: hostspec.NewSecurity(opts.Seccomp, opts.Log), CgroupParent: opts.CgroupParent, SystemdCgroup: opts.SystemdCgroup, NoNewPrivs: opts.NoNewPrivs, Ulimits: opts.Ulimits, CDI: opts.CDI,
	}
	if _, err := s.logConfig(s.LogConfig); err != nil {
		return nil, fmt.Errorf("default log driver: %w", err)
	}
	s.watches = logs.NewWatches()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.table.byID, s.table.byName = map[string]*live{}, map[string]*live{}
	s.execs.byID = map[string]*session{}
	if err := os.MkdirAll(opts.Root, 0o700); err != nil {
		return nil, err
	}
	var err error
	if s.folders, err = spread.Below(opts.Root); err != nil {
		s.Log.Warn("folders of containers are kept near each other, which can be slow", "error", err)
	}
	if err := s.restore(s.ctx); err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

func (o *Options) fill() error {
	switch {
	case o.Runtime == nil, o.Monitors == nil, o.Trees == nil, o.Images == nil, o.Networks == nil, o.Volumes == nil:
		return errs.New(errs.Invalid, "containers: a room is missing in the options")
	case o.Root == "" || o.ExecRoot == "":
		return errs.New(errs.Invalid, "containers: no folder given")
	}
	if o.Events == nil {
		o.Events = &events.Bus{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Network == "" {
		o.Network = "bridge"
	}
	if o.CgroupParent == "" {
		o.CgroupParent = "/corten"
		if o.SystemdCgroup {
			o.CgroupParent = "system.slice"
		}
	}
	if o.ShmSize == 0 {
		o.ShmSize = 64 << 20
	}
	if o.LogDrivers == nil {
		o.LogDrivers = func(string) ship.Driver { return nil }
	}
	if o.LogConfig.Type == "" {
		o.LogConfig.Type, o.LogConfig.Own = "json-file", true // client libraries read the logs of json-file and journald only
	}
	if o.DefaultRuntime == "" {
		o.DefaultRuntime = "corten"
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 10
	}
	if o.MaxStarts == 0 {
		o.MaxStarts = 4
	}
	if o.ReadExit == nil {
		o.ReadExit = monitor.ReadExit
	}
	if o.BootID == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return err
		}
		o.BootID = string(b[:len(b)-1])
	}
	return nil
}

// Close stops what the service does by itself (back-offs, watching) and waits for it. Containers go on running under their monitors; where none does, their parent cgroup goes.
func (s *Service) Close() error {
	s.cancel()
	s.closing.Lock()
	s.closed = true
	s.closing.Unlock()
	s.work.Wait()
	s.closeLogs()
	for _, ctr := range s.table.all() {
		ctr.mu.Lock()
		mon := ctr.mon
		ctr.mu.Unlock()
		if mon != nil && ctr.record().State.Status.Live() {
			if err := mon.Close(); err != nil {
				s.Log.Warn("closing the connection to a monitor", "container", ctr.id, "error", err)
			}
		}
	}
	host, err := s.host()
	if err != nil || s.SystemdCgroup {
		return nil // there are none, or systemd removes them
	}
	if err := cgroup.RemoveParent(host, s.CgroupParent); err != nil {
		s.Log.Warn("remove the parent of the containers' cgroups", "error", err)
	}
	return nil
}

// begin counts a piece of work that nobody asked for; false when the service closes, and must be left as it is.
func (s *Service) begin() bool {
	s.closing.Lock()
	defer s.closing.Unlock()
	if !s.closed {
		s.work.Add(1)
	}
	return !s.closed
}

// background runs fn beside everything else; Close waits for it.
func (s *Service) background(fn func(ctx context.Context)) {
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		fn(s.ctx)
	}()
}
