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
	"corten.dev/corten/internal/runtime/foreign"
)

// OverRuntimes makes the runtime rooms fit what this service asks for, and has them prepare what many containers share. Others are asked for containers that name them. own tells the names of our own, which
// others may take.
func OverRuntimes(rt *runtime.Runtime, others *foreign.Runtimes, own func(name string) bool) Runtime {
	rt.Prepare()
	others.Prepare()
	return theRuntimes{rt, others, own}
}

type theRuntimes struct {
	rt     *runtime.Runtime
	others *foreign.Runtimes
	own    func(name string) bool
}

func (r theRuntimes) Knows(name string) bool { return r.others.Has(name) || r.own(name) }

func (r theRuntimes) Create(ctx context.Context, name string, opts runtime.RunOptions) (Process, error) {
	opts.Launcher = ownDescriptor{opts.Launcher}
	if !r.own(name) || r.others.Has(name) {
		ctr, err := r.others.Create(ctx, name, opts)
		if err != nil {
			return nil, err
		}
		return otherProcess{ctr}, nil
	}
	ctr, err := r.rt.Create(ctx, opts)
	if err != nil {
		return nil, bare(err)
	}
	return theProcess{ctr}, nil
}

func (r theRuntimes) Load(ctx context.Context, id string) (Process, error) {
	ctr, err := r.rt.Load(id)
	if errors.Is(err, errs.NotFound) {
		other, oerr := r.others.Load(ctx, id)
		if oerr == nil {
			return otherProcess{other}, nil
		}
		err = oerr
	}
	if err != nil {
		return nil, err
	}
	return theProcess{ctr}, nil
}

func (r theRuntimes) List(context.Context) ([]string, error) {
	ids, err := r.rt.List()
	more, merr := r.others.List()
	return append(ids, more...), errors.Join(err, merr)
}

// otherProcess is a container of another runtime.
type otherProcess struct{ *foreign.Container }

func (p otherProcess) Exec(ctx context.Context, exec runtime.Exec) (int, error) {
	exec.Launcher = ownDescriptor{exec.Launcher}
	return p.Container.Exec(ctx, exec)
}

func (p otherProcess) Meter(keep *counters.Budget) Meter { return p.Container.Meter(keep) }

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
