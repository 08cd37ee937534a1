package containers

import (
	"context"
	"errors"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/counters"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/runtime"
)

// OverRuntime makes the runtime room fit what this service asks for, and has it prepare what many containers share.
func OverRuntime(rt *runtime.Runtime) Runtime {
	rt.Prepare()
	return theRuntime{rt}
}

type theRuntime struct{ rt *runtime.Runtime }

func (r theRuntime) Create(ctx context.Context, opts runtime.RunOptions) (Process, error) {
	opts.Launcher = ownDescriptor{opts.Launcher}
	ctr, err := r.rt.Create(ctx, opts)
	if err != nil {
		return nil, bare(err)
	}
	return theProcess{ctr}, nil
}

func (r theRuntime) Load(_ context.Context, id string) (Process, error) {
	ctr, err := r.rt.Load(id)
	if err != nil {
		return nil, err
	}
	return theProcess{ctr}, nil
}

func (r theRuntime) List(context.Context) ([]string, error) { return r.rt.List() }

// ownDescriptor gives the runtime a pidfd of its own: it closes the one it gets, and so does the monitor.
type ownDescriptor struct{ runtime.Launcher }

func (l ownDescriptor) Launch(ctx context.Context, program []byte, files []*os.File) (int, *os.File, error) {
	pid, fd, err := l.Launcher.Launch(ctx, program, files)
	if err != nil {
		return 0, nil, err
	}
	own, err := pidfd.Dup(fd)
	if err != nil {
		return 0, nil, err
	}
	return pid, own, nil
}

type theProcess struct{ *runtime.Container }

func (p theProcess) PID() int { return p.Pid() }

func (p theProcess) Exec(ctx context.Context, exec runtime.Exec) (int, error) {
	exec.Launcher = ownDescriptor{exec.Launcher}
	pid, fd, err := p.Container.Exec(ctx, exec)
	if err != nil {
		return 0, bare(err)
	}
	return pid, fd.Close()
}

func (p theProcess) Signal(ctx context.Context, sig syscall.Signal, all bool) error {
	err := p.Kill(ctx, sig, all)
	if errors.Is(err, errs.Conflict) { // not running
		return errs.As(errs.NotFound, err)
	}
	return err
}

func (p theProcess) Resume(ctx context.Context) error {
	return ignore(p.Container.Resume(ctx), errs.Conflict) // not paused is what was wanted
}

func (p theProcess) Update(ctx context.Context, res *specs.LinuxResources) error {
	return p.Container.Update(ctx, res)
}

func (p theProcess) PIDs(context.Context) ([]int, error) { return p.Pids() }

func (p theProcess) Delete(ctx context.Context) error { return p.Container.Delete(ctx, true) }

func (p theProcess) Meter(keep *counters.Budget) Meter { return p.Container.Meter(keep) }

// bare takes the room's own "verb container id:" away: this service says it by name.
func bare(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}
