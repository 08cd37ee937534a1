package frontend

import (
	"context"
	"log/slog"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	fstypes "github.com/tonistiigi/fsutil/types"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// NewContainer implements [gateway.Client].
func (c *client) NewContainer(ctx context.Context, req gateway.NewContainerRequest) (_ gateway.Container, err error) {
	defer task.Contain(c.gw.Log, "make a container", &err)
	if c.gw.Containers == nil {
		return nil, errs.New(errs.NotImplemented, "containers of frontends are not available in this engine")
	}
	spec := ContainerSpec{Hostname: req.Hostname, Net: req.NetMode, ExtraHosts: req.ExtraHosts, Platform: req.Platform}
	for _, m := range req.Mounts {
		mount := Mount{Mount: m}
		if m.Ref != nil {
			ref, ok := m.Ref.(*Ref)
			if !ok {
				return nil, errs.New(errs.Invalid, "mount %s: a result of another gateway (%T)", m.Dest, m.Ref)
			}
			out, err := ref.result.Bring(ctx)
			if err != nil {
				return nil, err
			}
			mount.Tree = &out
		}
		spec.Mounts = append(spec.Mounts, mount)
	}
	ctr, err := c.gw.Containers.New(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &container{c.gw.Log, ctr}, nil
}

// container is a [Container] as the gateway's contract has it.
type container struct {
	log *slog.Logger
	ctr Container
}

func (c *container) Start(ctx context.Context, req gateway.StartRequest) (_ gateway.ContainerProcess, err error) {
	defer task.Contain(c.log, "start a process", &err)
	spec := ProcessSpec{
		Args: req.Args, Env: req.Env, SecretEnv: req.SecretEnv, User: req.User, Cwd: req.Cwd, Tty: req.Tty, Security: req.SecurityMode,
	}
	// A nil stream in an interface of another type would not be nil any more.
	if req.Stdin != nil {
		spec.Stdin = req.Stdin
	}
	if req.Stdout != nil {
		spec.Stdout = req.Stdout
	}
	if req.Stderr != nil {
		spec.Stderr = req.Stderr
	}
	return c.ctr.Start(ctx, spec)
}

func (c *container) Release(ctx context.Context) (err error) {
	defer task.Contain(c.log, "release a container", &err)
	return c.ctr.Release(ctx)
}

func (c *container) tree(ctx context.Context, mount int) (*tree, error) {
	m, err := c.ctr.Open(ctx, mount)
	if err != nil {
		return nil, err
	}
	return &tree{root: m.Root, close: func() { _ = m.Close() }}, nil
}

func (c *container) ReadFile(ctx context.Context, req gateway.ReadContainerRequest) (_ []byte, err error) {
	defer task.Contain(c.log, "read from a container", &err)
	t, err := c.tree(ctx, req.MountIndex)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.readFile(req.ReadRequest)
}

func (c *container) StatFile(ctx context.Context, req gateway.StatContainerRequest) (_ *fstypes.Stat, err error) {
	defer task.Contain(c.log, "read from a container", &err)
	t, err := c.tree(ctx, req.MountIndex)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.stat(req.Path)
}

func (c *container) ReadDir(ctx context.Context, req gateway.ReadDirContainerRequest) (_ []*fstypes.Stat, err error) {
	defer task.Contain(c.log, "read from a container", &err)
	t, err := c.tree(ctx, req.MountIndex)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.readDir(req.ReadDirRequest)
}

// rootMount is the mount of a frontend image's own tree.
func rootMount(out build.Output) Mount {
	return Mount{Mount: gateway.Mount{Dest: "/", MountType: pb.MountType_BIND}, Tree: &out}
}
