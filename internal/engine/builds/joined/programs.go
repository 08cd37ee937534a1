package joined

import (
	"context"
	"fmt"
	"sync"
	"syscall"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/snapshot"
)

// programs gives the service what runs programs for who drives a build.
type programs struct{ steps *step.Steps }

func (p programs) For(sessions builds.Sessions, granted []string) frontend.Containers {
	return &containers{p.steps, sessions, granted}
}

// Shell runs a program where a step failed.
func (p programs) Shell(ctx context.Context, failed *build.StepError, sessions builds.Sessions, args []string, stdio builds.Terminal) (code int, err error) {
	ctr, cmd, err := p.steps.Failed(ctx, build.Env{Vertex: failed.Vertex, Session: sessions, Progress: silent{}}, failed)
	if err != nil {
		return -1, err
	}
	defer func() {
		if rerr := ctr.Release(context.WithoutCancel(ctx)); err == nil {
			err = rerr
		}
	}()
	if len(args) > 0 {
		cmd.Args = args
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio, stdio, stdio
	sizes := stdio.Sizes()
	if sizes != nil {
		cmd.Tty = true
		select {
		case size := <-sizes:
			cmd.Cols, cmd.Rows = size[0], size[1]
		case <-ctx.Done():
			return -1, context.Cause(ctx)
		}
	}
	proc, err := ctr.Start(cmd, nil)
	if err != nil {
		return -1, err
	}
	over := make(chan struct{})
	defer close(over)
	if sizes != nil {
		go func() {
			for {
				select {
				case size, ok := <-sizes:
					if !ok {
						return
					}
					_ = proc.Resize(size[1], size[0]) // of a process that may be gone
				case <-over:
					return
				}
			}
		}()
	}
	stop := context.AfterFunc(ctx, func() { _ = proc.Signal(syscall.SIGKILL) }) // likewise
	defer stop()
	return proc.Wait()
}

// containers makes containers for the frontends of one build.
type containers struct {
	steps    *step.Steps
	sessions builds.Sessions
	granted  []string
}

func (c *containers) New(ctx context.Context, spec frontend.ContainerSpec) (frontend.Container, error) {
	s := step.ContainerSpec{Hostname: spec.Hostname, Network: spec.Net, ExtraHosts: spec.ExtraHosts, Platform: spec.Platform, Granted: c.granted}
	for _, m := range spec.Mounts {
		mount := &pb.Mount{
			Input: int64(pb.Empty), Output: int64(pb.SkipOutput), Dest: m.Dest, Selector: m.Selector, Readonly: m.Readonly, MountType: m.MountType,
			CacheOpt: m.CacheOpt, SecretOpt: m.SecretOpt, SSHOpt: m.SSHOpt,
		}
		if m.Tree != nil {
			mount.Input = int64(len(s.Inputs))
			s.Inputs = append(s.Inputs, *m.Tree)
		}
		s.Mounts = append(s.Mounts, mount)
	}
	ctr, err := c.steps.NewContainer(ctx, build.Env{Session: c.sessions, Progress: silent{}}, s)
	if err != nil {
		return nil, err
	}
	return container{ctr}, nil
}

type container struct{ ctr *step.Container }

func (c container) Start(_ context.Context, spec frontend.ProcessSpec) (gateway.ContainerProcess, error) {
	proc, err := c.ctr.Start(step.Command{
		Args: spec.Args, Env: spec.Env, Cwd: spec.Cwd, User: spec.User, Security: spec.Security, Tty: spec.Tty, Stdin: spec.Stdin, Stdout: spec.Stdout, Stderr: spec.Stderr,
	}, spec.SecretEnv)
	if err != nil {
		return nil, err
	}
	return &process{Process: proc}, nil
}

func (c container) Open(_ context.Context, mount int) (*snapshot.Mounted, error) {
	return c.ctr.Open(mount)
}

func (c container) Release(ctx context.Context) error { return c.ctr.Release(ctx) }

// process is a process as the gateway's contract has it.
type process struct {
	step.Process
	once sync.Once
	err  error
}

func (p *process) Wait() error {
	p.once.Do(func() {
		code, err := p.Process.Wait()
		switch {
		case err != nil:
			p.err = err
		case code != 0:
			p.err = &gwpb.ExitError{ExitCode: uint32(code), Err: fmt.Errorf("exit code: %d", code)}
		}
	})
	return p.err
}

func (p *process) Resize(_ context.Context, size gateway.WinSize) error {
	return p.Process.Resize(uint16(size.Rows), uint16(size.Cols))
}

func (p *process) Signal(_ context.Context, sig syscall.Signal) error { return p.Process.Signal(sig) }

// silent takes what nobody asked for.
type silent struct{}

func (silent) Log(int, []byte)                   {}
func (silent) Status(string, int64, int64, bool) {}
func (silent) Warn(build.Warning)                {}
