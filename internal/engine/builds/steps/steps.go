// Package steps runs the processes of builds: it implements the build room's [step.Executor] with the runtime and network rooms.
//
// It owns <exec-root>/steps (the runtime's records of what runs, and the generated files that steps share) and nothing that outlives the engine. It does not know graphs or layers. It
// promises: a step is isolated as a container is, by the same configuration (package hostspec); a step's processes end with its context, and with the engine, whatever ends that;
// what a killed engine could not take down (cgroups, records) the next one does at its start; after Wait nothing of a step is left but its tree.
//
// # Why there is no monitor
//
// A monitor is for what must outlive the engine. A step must not: its pipes go straight to the engine, which is the parent of its first process, and the kernel kills that process when
// the thread that cloned it ends (PR_SET_PDEATHSIG). So one goroutine keeps a thread for nothing but cloning, as long as the engine lives. The first process is the init of a process
// namespace: all others end with it.
package steps

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
)

// Networks is what steps need of the network room.
type Networks interface {
	Join(ctx context.Context, req network.JoinRequest) (*network.Sandbox, error)
	Leave(ctx context.Context, owner string) error
	HostGateway() netip.Addr
}

// Options of an Executor.
type Options struct {
	// Root is <exec-root>/steps.
	Root     string
	Networks Networks
	// Network is that of steps which ask for none in particular: "bridge" (default), or "none" where there is no default bridge.
	Network string
	// Maker writes configurations; its defaults (cgroup parent, limits) are those of containers.
	Maker *hostspec.Maker
	Log   *slog.Logger
}

// Executor runs steps.
type Executor struct {
	opts     Options
	log      *slog.Logger
	rt       *runtime.Runtime
	launcher *launcher
	files    files
	null     *os.File
	mostPids func() int64

	mu      sync.Mutex // guards what follows
	running map[*process]bool
	closed  bool
	work    sync.WaitGroup
}

var _ step.Executor = (*Executor)(nil)

// New takes down what an engine that was killed left behind, and is ready for steps.
func New(ctx context.Context, opts Options) (*Executor, error) {
	if opts.Root == "" || opts.Networks == nil || opts.Maker == nil {
		return nil, errs.New(errs.Invalid, "steps: a folder, networks and a maker of configurations are needed")
	}
	e := &Executor{opts: opts, log: opts.Log, running: map[*process]bool{}, files: files{dir: filepath.Join(opts.Root, "files")}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(e.files.dir, 0o700); err != nil {
		return nil, fmt.Errorf("steps: %w", err)
	}
	e.mostPids = sync.OnceValue(mostPids)
	e.rt = runtime.New(runtime.Options{Root: filepath.Join(opts.Root, "runtime"), Systemd: opts.Maker.SystemdCgroup, Logger: e.log})
	if err := e.sweep(ctx); err != nil {
		return nil, fmt.Errorf("steps of an earlier engine: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("steps: %w", err)
	}
	e.null = null
	e.rt.Prepare()
	e.launcher = newLauncher()
	return e, nil
}

// mostPids bounds the processes of a step to half of the numbers that the host has for processes: no build needs more, and a fork bomb leaves the other half to everybody else. Containers
// have no such bound of their own, as Docker's; somebody looks at what they run. 0: the host does not say.
func mostPids() int64 {
	text, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n / 2
}

// sweep kills and removes what earlier steps left. The kernel has killed nearly all: not what had changed its user, see [runtime.RunOptions].
func (e *Executor) sweep(ctx context.Context) error {
	ids, err := e.rt.List()
	if err != nil {
		return err
	}
	for _, id := range ids {
		ctr, err := e.rt.Load(id)
		if err == nil {
			err = ctr.Delete(ctx, true)
		}
		if err != nil {
			e.log.Error("a step of an earlier engine is not gone", "step", id, "err", err)
		}
	}
	return nil
}

// begin counts a step that starts; false when the executor closes.
func (e *Executor) begin() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.work.Add(1)
	}
	return !e.closed
}

func (e *Executor) add(p *process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running[p] = true
	if e.closed {
		p.kill()
	}
}

func (e *Executor) remove(p *process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, p)
}

// Close kills all steps and waits until they are gone.
func (e *Executor) Close() error {
	e.mu.Lock()
	e.closed = true
	for p := range e.running {
		p.kill()
	}
	e.mu.Unlock()
	e.work.Wait()
	e.launcher.close()
	return e.null.Close()
}
